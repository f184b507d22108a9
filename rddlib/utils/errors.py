"""The one kind of error a person is meant to read: what is wrong and what to do, in one line."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input or a damaged file. The message is one line: the fault, then the remedy. The `rdd` command exits 2."""


class Interrupted(BaseException):
    """A signal asked to stop; a training that was running has saved its state. `signal`: which one.

    No Exception, as KeyboardInterrupt is none: nothing that handles errors should hold it up.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message, signal)  # both, so that it passes from one process to another
        self.message, self.signal = message, signal

    def __str__(self) -> str:
        return self.message


class GuidanceWarning(UserWarning):
    """A guidance weight outside the range that a model was trained for: it draws, but nobody taught it to."""


def check_known(what: str, word: str, known: Iterable[str]) -> None:
    """Raise UserError unless the word is known: `unknown sampler 'dim' (did you mean 'ddim'?): known are ..`."""
    if word not in (known := list(known)):
        raise UserError(f"unknown {what} {word!r}{nearest(word, known)}: known are {', '.join(known)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at what was meant, " (did you mean 'x'?)", where something known is close to the word; else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
