"""Text for cells of a CSV that people open in a spreadsheet, which would run what begins as a formula does."""

from typing import Any

FORMULA = ("=", "+", "-", "@", "\t", "\r")


def safe(cell: Any) -> Any:
    """The cell; text that a spreadsheet would take for a formula with a `'` before it, which marks it as text.

    A file or a label may have any name. Numbers are left alone, in words too.
    """
    if not isinstance(cell, str) or not cell.startswith(FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell
