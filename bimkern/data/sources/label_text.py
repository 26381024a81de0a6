"""Labels as words, and which of them are missing."""

import math
from typing import Any


def label_text(value: Any) -> str | None:
    """Return a label as text; None where it is missing: nothing, no text, or the NaN that tables have for it."""
    is_missing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return None if is_missing else str(value)
