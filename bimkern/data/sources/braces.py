"""Names with braces, which stand for several: shards-{0000..0099}.tar, {train,more}.tar."""

import re
from collections.abc import Iterator
from itertools import product

_RANGE = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")


def expanded(text: str) -> Iterator[str]:
    """Yield what the braces in a text stand for: `{00..12}` and `{a,b}`."""
    parts = _RANGE.split(text)  # text and braces in turns
    choices = []
    for braces in parts[1::2]:
        numbers = _NUMBERS.fullmatch(braces)
        if numbers:
            first, last = map(int, numbers.groups())
            choices.append([f"{i:0{len(numbers[1])}d}" for i in range(first, last + 1)])
        else:
            choices.append(braces.split(","))
    for chosen in product(*choices):
        yield "".join([parts[0], *(word + after for word, after in zip(chosen, parts[2::2], strict=True))])
