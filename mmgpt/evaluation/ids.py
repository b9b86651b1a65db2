"""Ids of questions, images and samples, whose type is no matter: 7, 7.0 and "7" are one id."""

import re
from typing import Any

WHOLE = re.compile(r"[-+]?\d+\.0+")


def id_text(value: Any) -> str | None:
    """An id as text, None if the value is none: missing, not a number, true or false, a list."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else str(value) if value == value else None
    text = str(value).strip()
    return text.partition(".")[0] if WHOLE.fullmatch(text) else text or None
