"""The one kind of error a person is meant to read: what is wrong and what to do, in one line."""


class UserError(Exception):
    """Wrong input or a damaged file. The message is one line: the fault, then the remedy. The `rdd` command exits 2."""
