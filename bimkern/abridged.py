"""A few of many, in a line of a message."""

from collections.abc import Iterable

SHOWN = 3


def some(texts: Iterable[str]) -> str:
    """Join the first few texts, with unprintable characters escaped, and say how many more there are."""
    shown = ["".join(c if c.isprintable() else repr(c)[1:-1] for c in text) for text in texts]
    more = [f"and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    return ", ".join([*shown[:SHOWN], *more])
