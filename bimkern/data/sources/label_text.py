"""Labels as words, and which of them are missing."""

import math
import numbers
from typing import Any


def label_text(value: Any) -> str | None:
    """Return a label as text; None where it is missing: nothing, no text, or the NaN and NA that tables have for it."""
    text = "" if value is None else str(value)
    is_number = isinstance(value, numbers.Real)
    return None if text in ("", "<NA>") or (is_number and math.isnan(value)) else text
