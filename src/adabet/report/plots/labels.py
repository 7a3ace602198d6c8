"""Where the numbers of points go, so that they cover neither points nor each other."""

from collections.abc import Sequence

WIDTHS = (300, 860)
"""Widths of a plot, pixels, at which labels are to be readable: a phone's and a desk's."""

PLACES = tuple(
    (reach * x, reach * y)
    for reach in (15, 22)
    for x, y in ((1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.8, -0.8), (-0.8, -0.8), (0.8, 0.8), (-0.8, 0.8))
)
"""Where a label's middle may lie from its point's, pixels; the sooner the better."""

LABEL, MARK = (15.0, 13.0), (13.0, 13.0)
"""Width and height of a label and of a mark, pixels."""


def label_places(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """For each point, how far from it its label goes.

    Args:
        points: horizontal places as shares of the width, vertical ones in pixels.

    Returns:
        Pixels to the right and down, one pair for each point.

    Examples:
        >>> label_places([(0.5, 100.0), (0.52, 100.0)])
        [(-15.0, 0.0), (15.0, 0.0)]
    """
    found: list[tuple[float, float]] = []
    for index, (x, y) in enumerate(points):

        def covered(place: tuple[float, float], x: float = x, y: float = y, index: int = index) -> float:
            total = 0.0
            for width in WIDTHS:
                middle = (x * width + place[0], y + place[1])
                marks = [(other[0] * width, other[1]) for other in points]
                labels = [
                    (other[0] * width + offset[0], other[1] + offset[1])
                    for other, offset in zip(points[:index], found, strict=True)
                ]
                total += sum(_overlap(middle, LABEL, mark, MARK) for mark in marks)
                total += sum(_overlap(middle, LABEL, label, LABEL) for label in labels)
                total += 50.0 * (not 0 <= middle[0] <= width + 10)
            return total

        found.append(min(PLACES, key=covered))
    return found


def _overlap(
    one: tuple[float, float], size: tuple[float, float], other: tuple[float, float], other_size: tuple[float, float]
) -> float:
    """Area that two boxes have in common, from their middles and sizes."""
    sides = [(size[axis] + other_size[axis]) / 2 - abs(one[axis] - other[axis]) for axis in range(2)]
    return max(0.0, sides[0]) * max(0.0, sides[1])
