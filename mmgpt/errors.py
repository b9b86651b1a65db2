"""What a user can mend is told as a UserError: the value, the rule, the remedy, the nearest right name."""

import difflib
from collections.abc import Iterable

MOST_NAMES = 60  # that a message lists


class UserError(ValueError):
    """Something the user can mend: the message holds the value, the rule and the remedy. The CLI exits with 2."""

    def __str__(self) -> str:
        """The message as any terminal and file takes it: a lone surrogate of a row or a file name is spelt out."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """The tail of an error message: the nearest right spelling, or all of them."""
    known = sorted(options)
    near = difflib.get_close_matches(str(word), known, n=1)
    more = f" and {len(known) - MOST_NAMES:,} more" if len(known) > MOST_NAMES else ""
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known[:MOST_NAMES])}{more}"
