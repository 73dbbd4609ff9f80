"""Rows of the report and the Markdown table that they make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

HEAD = ("measurement", "case", "figure", "wanted", "met")


@dataclass
class Row:
    """One measured figure beside the wanted one; `met` is None where none is wanted."""

    name: str
    case: str
    figure: str
    wanted: str = "-"
    met: bool | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def cells(self) -> tuple[str, ...]:
        """Return the row as it is printed, under `HEAD`."""
        met = {None: "-", True: "yes", False: "NO"}[self.met]
        return self.name, self.case, self.figure, self.wanted, met


def at_most(name: str, case: str, value: float, limit: float, text: str, **data: Any) -> Row:
    """Make the row of a `value` that should not exceed `limit`."""
    return Row(name, case, text, f"<= {limit:g}", value <= limit, {"value": value, **data})


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lay the rows out as a Markdown table."""
    body = list(rows)
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]

    def line(cells: Iterable[str]) -> str:
        padded = (c.ljust(w) for c, w in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(head), line("-" * w for w in widths), *map(line, body)])
