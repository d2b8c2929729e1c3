"""What the kinds of an arm said of themselves, held against what they do: plans and refusals stood on the former."""

from __future__ import annotations

from collections.abc import Sequence

from statewise.batch import States
from statewise.errors import UsageError
from statewise.kind import Kind, Law
from statewise.loop.build import Setup


def check_visited(setup: Setup, visited: States) -> None:
    """The states that the source yielded were drawn as it says, and fit the context of the arm's models.

    Raises:
        UsageError: they were not, or do not.
    """
    source, law = setup.recipe.source, Law(visited.temperature, visited.top_p)
    if source.laws and law not in source.laws:
        said = " or ".join(f"{one.temperature:g}, top_p {one.top_p:g}" for one in source.laws)
        raise UsageError(
            f"source {source.kind!r}: its states were drawn at temperature {law.temperature:g}, top_p {law.top_p:g}, "
            f"and its 'laws' say {said}; a source says what it does"
        )
    _check_fits(setup, visited, source)


def check_supervised(setup: Setup, supervised: Sequence[States]) -> None:
    """What each signal of the arm made of its states fits every context. Raises as `check_visited`."""
    for one, states in zip(setup.recipe.signals, supervised, strict=True):
        _check_fits(setup, states, one.signal)


def _check_fits(setup: Setup, states: States, kind: Kind) -> None:
    """What `kind` yielded fits the context of all models of the arm, beyond which a model's law is arbitrary.

    Raises:
        UsageError: a trajectory does not.
    """
    longest = int(states.lengths.max(initial=0))
    for name, policy in setup.writers.policies.items():
        if longest > policy.context_length:
            raise UsageError(
                f"{kind.registry.what} {kind.kind!r}: a trajectory has {longest} tokens, and {name!r} has a context of "
                f"{policy.context_length}; a {kind.registry.what} yields what fits"
            )
