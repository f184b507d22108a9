"""What a configuration asks of its fields: each raises ValueError with the field, its value and what was expected."""

from collections.abc import Collection

from rddlib.utils.text import joined


def check(condition: bool, message: str) -> None:
    """Raise ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def at_least(config: object, least: float, *names: str) -> None:
    """Each of these fields is `least` or more."""
    for name in names:
        check(getattr(config, name) >= least, f"{name} is {getattr(config, name)}, expected at least {least:g}")


def above(config: object, bound: float, *names: str) -> None:
    """Each of these fields is more than `bound`."""
    for name in names:
        check(getattr(config, name) > bound, f"{name} is {getattr(config, name)}, expected above {bound:g}")


def one_of(config: object, known: Collection[str], *names: str) -> None:
    """Each of these fields is one of `known`."""
    for name in names:
        value = getattr(config, name)
        check(value in known, f"{name} is {value!r}, expected one of {', '.join(known)}")


def different(config: object, *names: str) -> None:
    """No value stands twice in any of these fields."""
    for name in names:
        values = getattr(config, name)
        check(len(set(values)) == len(values), f"{name} is {joined(values)}, expected different ones")
