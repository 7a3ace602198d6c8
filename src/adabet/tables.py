"""Plain text tables for `__str__`; the command line draws its own."""

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Text columns: the first left-aligned, numbers right-aligned.

    Examples:
        >>> print(table(("layer", "b1"), [("conv1", "12"), ("fc", "3")]))
        layer  b1
        conv1  12
        fc      3
    """
    cells = [list(headings), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    right = [
        column > 0 and all(row[column][:1] in "0123456789-+." for row in cells[1:] if row[column])
        for column in range(len(headings))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )
