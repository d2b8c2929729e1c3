"""The matrix of source × signal: what the literature calls each cell, and why a few are refused.

No cell is refused for being unusual, only where its loss is not defined on its states. What is refused is refused
before a model is loaded, with the nearest cell that trains. Names and reasons come from the kinds themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from statewise.config.study import ArmSection
from statewise.errors import UsageError
from statewise.kind import Refusal
from statewise.signals import SIGNALS, WeightedSignal
from statewise.states import SOURCES, Source


def refusal(source: Source, signals: Sequence[WeightedSignal]) -> Refusal | None:
    """Why this cell cannot train; None where it can. Of a log, ask with what `resolve` gives."""
    found = [_refuse_laws(source), source.refusal(), *(one.signal.refusal(source) for one in signals)]
    return next((one for one in found if one), None)


def _refuse_laws(source: Source) -> Refusal | None:
    """A loss is taken at one temperature and top-p, so the parts of an update share them; data count as 1."""
    for name in ("temperature", "top_p"):
        values = sorted({getattr(law, name) for law in source.laws})
        if len(values) > 1:
            return Refusal(
                f"its parts have {name} {' and '.join(f'{value:g}' for value in values)}, and the loss of an update is "
                f"taken at one {name} (data count as 1)",
                f"{name} = {1 if 1.0 in values else values[0]:g} in every part",
            )
    return None


def resolve(source: Source, sources: Mapping[str, Source], seen: frozenset[str] = frozenset()) -> Source:
    """`source` with every log replaced by the source of the arm it replays, however indirectly.

    What a log yields has the groups and laws of that source. `sources`: by the arm or path that is replayed; `seen`:
    not followed again.
    """

    def follow(leaf: Source) -> Source:
        records = [record for record in (*leaf.replayed_arms, *leaf.replayed_paths) if record in sources]
        if not records or records[0] in seen:
            return leaf
        return resolve(sources[records[0]], sources, seen | {records[0]})

    return source.with_leaves(follow)


def check_cell(arm: ArmSection, source: Source, place: str) -> None:
    """Refuse an arm whose cell cannot train; `source` is its own, resolved.

    Raises:
        UsageError: with the reason and the nearest cell that works.
    """
    if found := refusal(source, arm.signal):
        raise UsageError(f"{place}: {arm.cell}: {found.reason}; nearest that works: {found.nearest}")


def matrix() -> list[dict[str, str]]:
    """Every cell in order: `source`, `signal`, `name`, and `refused` ("" where it trains, else why and what works).

    Sources that can give several answers to a prompt give two, as signals that compare answers need; all other fields
    are as they are by default. A kind with a setting that has no default is there if it gives an example of itself.
    """
    columns = [source for kind in SOURCES.values() for source in kind.examples()]
    cells = []
    for kind, signal in SIGNALS.items():
        if (example := signal.example()) is None:
            continue
        for row, names in (signal.cells or {kind: {}}).items():
            for source in columns:
                found = refusal(source, [WeightedSignal(signal=example)])
                note = f"{found.reason}; nearest that works: {found.nearest}" if found else ""
                name = names.get(source.column, f"{row} on {source.column} states")
                cells.append({"source": source.column, "signal": row, "name": name, "refused": note})
    return cells
