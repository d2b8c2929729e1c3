"""A number that may change over the updates of an arm: a share of given tokens, a weight in a mixture."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from statewise.kind import Strict

Share = Annotated[float, Field(ge=0, le=1)]


class Ramp(Strict):
    """From `start` in the first update to `end` after `over` of the arm's updates, and `end` from then on.

    `shape`: `linear`, or `exponential` (start · (end/start)^t, as DAgger's β^i; both ends above 0).
    """

    start: Share
    end: Share
    over: Annotated[float, Field(gt=0, le=1)] = 1.0
    shape: Literal["linear", "exponential"] = "linear"

    @model_validator(mode="after")
    def _ends_are_above_zero(self) -> Self:
        if self.shape == "exponential" and min(self.start, self.end) <= 0:
            raise ValueError("an exponential ramp needs start and end above 0")
        return self

    def at(self, update: int, num_updates: int) -> float:
        """The value in `update` (from 0) of an arm of `num_updates`; the last update has `end` exactly."""
        last = max(1.0, (num_updates - 1) * self.over)
        done = min(1.0, update / last)
        if self.shape == "exponential":
            return float(self.start * (self.end / self.start) ** done)
        return self.start + (self.end - self.start) * done


def ends_of(value: float | Ramp) -> tuple[float, float]:
    """`value` in the first update and in the last; the others lie between."""
    return (value.start, value.end) if isinstance(value, Ramp) else (value, value)


def value_at(value: float | Ramp, update: int, num_updates: int) -> float:
    """`value` in `update`, whether it changes or not."""
    return value.at(update, num_updates) if isinstance(value, Ramp) else value
