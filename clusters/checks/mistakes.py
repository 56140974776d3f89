"""What a check has to say about a file."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Mistake:
    """What is wrong in a line (counted from 1) and how to mend it."""

    line: int
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.what}; {self.mend}"


def line_at(text: str, position: int) -> int:
    """The line in which a position of a text lies."""
    return text.count("\n", 0, position) + 1
