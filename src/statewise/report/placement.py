"""Where the labels of a scatter plot stand: beside their points, clear of lines and of each other.

Greedy: label after label takes the candidate place with the least overlap. Deterministic, and good enough for the ten
points of a study; no attempt at an optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

END_DISTANCE = 3.0  # points from the end of an error bar to the label
DISTANCES = (6.0, 11.0, 17.0)  # points from the marker's centre to the label
DIRECTIONS = (
    *((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)),
    *((1, 0.5), (-1, 0.5), (1, -0.5), (-1, -0.5), (0.5, 1), (-0.5, 1), (0.5, -1), (-0.5, -1)),
)
LABEL_MARGIN = 4.0  # points kept free around a label, so that two of them do not read as one
# A label that leaves the axes is worse than one on a line; one far from its point is a little worse than a near one.
OUTSIDE_COST = 20.0
DISTANCE_COST = 0.4


@dataclass(frozen=True)
class Box:
    """A rectangle in points; `left` < `right`, `bottom` < `top`."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def grown(self, margin: float) -> Box:
        return Box(self.left - margin, self.bottom - margin, self.right + margin, self.top + margin)

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.top - self.bottom)


@dataclass(frozen=True)
class Anchor:
    """A point to be named, in points of the page, with the box that its error bars span."""

    x: float
    y: float
    cross: Box


def place_labels(
    anchors: Sequence[Anchor], sizes: Sequence[tuple[float, float]], obstacles: Sequence[Box], bounds: Box
) -> list[Box]:
    """One box a label, in the order given.

    Args:
        anchors: the points.
        sizes: width and height of each label, in points.
        obstacles: what labels should not cover.
        bounds: where labels should stay.
    """
    taken = list(obstacles)
    placed = []
    for anchor, size in zip(anchors, sizes, strict=True):
        box, _ = min(_candidates(anchor, size), key=lambda candidate: _cost(candidate, taken, bounds))
        placed.append(box)
        taken.append(box.grown(LABEL_MARGIN))
    return placed


def _candidates(anchor: Anchor, size: tuple[float, float]) -> list[tuple[Box, float]]:
    """Boxes around the marker and beyond the ends of its bars, with their distance from the marker."""
    boxes = [
        (_beside(anchor.x, anchor.y, (right * distance, up * distance), size, (right, up)), distance)
        for distance in DISTANCES
        for right, up in DIRECTIONS
    ]
    cross = anchor.cross
    for x, y, right, up in (
        (anchor.x, cross.top, 0, 1),
        (anchor.x, cross.bottom, 0, -1),
        (cross.right, anchor.y, 1, 0),
        (cross.left, anchor.y, -1, 0),
    ):
        offset = (right * END_DISTANCE, up * END_DISTANCE)
        boxes.append((_beside(x, y, offset, size, (right, up)), abs(x - anchor.x) + abs(y - anchor.y)))
    return boxes


def _beside(
    x: float, y: float, offset: tuple[float, float], size: tuple[float, float], direction: tuple[float, float]
) -> Box:
    """The label's box that lies in `direction` from the point moved by `offset`."""
    left = x + offset[0] - size[0] * (1 - direction[0]) / 2
    bottom = y + offset[1] - size[1] * (1 - direction[1]) / 2
    return Box(left, bottom, left + size[0], bottom + size[1])


def _cost(candidate: tuple[Box, float], taken: Sequence[Box], bounds: Box) -> float:
    box, distance = candidate
    outside = box.area - box.overlap(bounds)
    return sum(box.overlap(other) for other in taken) + OUTSIDE_COST * outside + DISTANCE_COST * distance
