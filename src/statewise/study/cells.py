"""The matrix of source × signal: what the literature calls each cell, and why a few are refused.

No cell is refused for being unusual, only where its loss is not defined on its states. What is refused is refused
before a model is loaded, with the nearest cell that trains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from statewise.errors import UsageError
from statewise.signals import SIGNALS, Signal, WeightedSignal
from statewise.signals.advantage import OF_GROUPS
from statewise.signals.expert import Expert
from statewise.signals.imitate import Imitate
from statewise.signals.preference import Preference
from statewise.signals.reward import Reward
from statewise.states import Source, leaves, replace_leaves
from statewise.states.dataset import Dataset
from statewise.states.log import Log
from statewise.states.mixture import Mixture, Part
from statewise.states.prefix import Prefix
from statewise.states.rollout import ModelRollout

DIVERGENCES = ("forward_kl", "reverse_kl", "jsd")
# By signal (`imitate` also with its filter) and by source (a stale learner, or one with a replay buffer, by itself).
NAMES: dict[str, dict[str, str]] = {
    "imitate": {
        "dataset": "SFT",
        "teacher": "sequence-level KD (Kim & Rush 2016)",
        "learner": "self-training without a filter: zero gradient in expectation, a control",
        "base": "rehearsal of the base model's own text",
        "stale": "self-training on an older self's text",
        "replay": "self-training with a replay buffer",
        "prefix": "scheduled sampling (arXiv:1506.03099), the learner's own tokens as labels",
        "log": "SFT on another arm's states",
        "mixture": "SFT mixed with own text",
    },
    "imitate(only_correct)": {
        "dataset": "SFT, of the documents whose gold text the grader accepts",
        "teacher": "rejection-sampled distillation",
        "learner": "RFT / self-SFT (arXiv:2308.01825); one step of expert iteration",
        "base": "STaR-like rejection sampling from base (arXiv:2203.14465), without rationalization",
        "stale": "asynchronous RFT",
        "replay": "RFT with a replay buffer (ReST-like, arXiv:2308.08998)",
        "prefix": "RFT from given beginnings",
        "log": "RFT on another arm's states",
        "mixture": "SFT mixed with RFT",
    },
    "continuation": {
        "dataset": "teacher continuations of gold prefixes",
        "teacher": "sequence-level KD on a window of each text",
        "learner": "OPD of arXiv:2605.22731, eq. 7; DAgger-like",
        "base": "distillation on the base model's states",
        "stale": "OPD with a stale actor",
        "replay": "OPD with a replay buffer",
        "prefix": "OPD from mixed beginnings (AggreVaTe-like roll-in)",
        "log": "OPD on another arm's states",
        "mixture": "hybrid OPD",
    },
    "expert": {
        "dataset": "hard-label KD (teacher's arg-max)",
        "teacher": "behavior cloning of the teacher",
        "learner": "DAgger (arXiv:1011.0686), β = 0, without aggregation",
        "base": "DAgger on the base model's states",
        "stale": "DAgger with a stale actor",
        "replay": "DAgger with aggregation over the last trajectories",
        "prefix": "DAgger with β (arXiv:1011.0686)",
        "log": "DAgger labels on another arm's states",
        "mixture": "DAgger with β by trajectory or by state",
    },
    "divergence": {
        "dataset": "offline, word-level KD (arXiv:1503.02531); GKD with λ = 0",
        "teacher": "supervised KD on teacher text (arXiv:2306.13649)",
        "learner": "token-level OPD; GKD with λ = 1 (arXiv:2306.13649)",
        "base": "KD on the base model's states",
        "stale": "OPD with a stale actor",
        "replay": "OPD with a replay buffer",
        "prefix": "imitation KD with mixed roll-in (ImitKD, arXiv:2009.07253)",
        "log": "KD on another arm's states",
        "mixture": "GKD with 0 < λ < 1, by trajectory or by state",
    },
    "reward": {
        "dataset": "off-policy REINFORCE on gold text (with reward 1: SFT)",
        "teacher": "off-policy policy gradient (LUFFY-like, arXiv:2504.14945)",
        "learner": "GRPO, Dr. GRPO, RLOO, REINFORCE; PPO-clip with num_epochs > 1",
        "base": "off-policy policy gradient on base rollouts",
        "stale": "asynchronous RL (importance: token or sequence)",
        "replay": "RL with a replay buffer",
        "prefix": "RL from given beginnings (reverse curriculum, arXiv:2402.05808)",
        "log": "off-policy RL on another arm's states",
        "mixture": "mixed-policy RL",
    },
    "preference": {
        "dataset": "DPO, IPO on given pairs (arXiv:2305.18290, arXiv:2310.12036)",
        "teacher": "DPO on pairs of teacher answers",
        "learner": "online DPO (arXiv:2402.04792)",
        "base": "DPO on pairs of base answers, ranked by reward",
        "stale": "online DPO with a stale actor",
        "replay": "online DPO with a replay buffer",
        "prefix": "DPO from given beginnings",
        "log": "DPO on another arm's states",
        "mixture": "DPO on pairs across writers",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Refusal:
    """Why a cell cannot train, and the nearest one that can."""

    reason: str
    nearest: str


def told_source(source: Source) -> str:
    """A source in a few words: "learner rollout", "log of rl", "mixture of dataset, learner rollout"."""
    if isinstance(source, ModelRollout):
        stale = f" {source.lag} updates old" if source.lag else ""
        return f"{source.by} rollout{stale}" + (" with replay" if source.buffer_size else "")
    if isinstance(source, Prefix):
        return f"{source.of} prefix"
    if isinstance(source, Log):
        return f"log of {source.record}"
    if source.kind == "mixture":
        return "mixture of " + ", ".join(told_source(leaf) for leaf in leaves(source))
    return source.kind


def told_signals(signals: Sequence[WeightedSignal]) -> str:
    """An arm's signals in a few words: "reward + 0.1 reverse_kl"."""
    return " + ".join((f"{one.weight:g} " if one.weight != 1 else "") + one.signal.kind for one in signals)


def row_of(signal: str) -> str:
    """The row of `NAMES` that a signal's kind, or `imitate(only_correct)`, belongs to."""
    return "divergence" if signal in DIVERGENCES else signal


def name_of(column: str, signal: str) -> str:
    """What the literature calls a cell."""
    return NAMES[row_of(signal)][column]


def refusal(source: Source, signals: Sequence[WeightedSignal]) -> Refusal | None:
    """Why this cell cannot train; None where it can. Of a log, ask with what `resolve` gives."""
    if found := _refuse_laws(source) or _refuse_buffer(source):
        return found
    for one in signals:
        signal = one.signal
        if isinstance(signal, Reward):
            found = _refuse_reward(source, signal)
        elif isinstance(signal, Expert):
            found = _refuse_expert(source, signal)
        elif isinstance(signal, Preference) and source.samples_per_prompt == 1:
            found = Refusal(
                "a preference is between two answers to one prompt, and this source has one",
                "source.pairs = '<file>'" if source.kind == "dataset" else _grouped(source),
            )
        else:
            found = None
        found = found or _refuse_given(source, signal)
        if found:
            return found
    return None


def _refuse_expert(source: Source, signal: Expert) -> Refusal | None:
    """An action drawn at one temperature and learned at another makes the policy something else than the teacher."""
    at = sorted({_temperature(leaf) for leaf in leaves(source) if not isinstance(leaf, Log)} - {signal.temperature})
    if not at or not signal.temperature:
        return None
    return Refusal(
        f"the teacher's action is drawn at temperature {signal.temperature:g}, and the loss on these states is taken "
        f"at {at[0]:g} (data count as 1)",
        f"signal.temperature = {at[0]:g}, or 0 for its arg-max",
    )


def _refuse_given(source: Source, signal: Signal) -> Refusal | None:
    """Data count as temperature 1: as a part of a text, too, where it is the text's own actions that are trained on."""
    for leaf in leaves(source) if isinstance(signal, Imitate | Reward | Preference) else ():
        if isinstance(leaf, Prefix) and leaf.of == "dataset" and leaf.trains_on == "all" and leaf.temperature != 1:
            return Refusal(
                "the given part is data, which count as temperature 1, and would be trained on at "
                f"{leaf.temperature:g}",
                "source.trains_on = 'rest', or source.temperature = 1",
            )
    return None


def _temperature(leaf: Source) -> float:
    return leaf.temperature if isinstance(leaf, ModelRollout | Prefix) else 1.0


def _refuse_laws(source: Source) -> Refusal | None:
    """A loss is taken at one temperature and top-p, so the parts of an update share them; data count as 1."""
    for name in ("temperature", "top_p"):
        known = [leaf for leaf in leaves(source) if not isinstance(leaf, Log)]
        values = sorted({getattr(leaf, name) if isinstance(leaf, ModelRollout | Prefix) else 1.0 for leaf in known})
        if len(values) > 1:
            return Refusal(
                f"its parts have {name} {' and '.join(f'{value:g}' for value in values)}, and the loss of an update is "
                f"taken at one {name} (data count as 1)",
                f"{name} = {1 if 1.0 in values else values[0]:g} in every part",
            )
    return None


def _refuse_buffer(source: Source, most: int = 0) -> Refusal | None:
    """`most`: trajectories that an update may draw from `source`; 0: as many as it says itself."""
    if isinstance(source, Mixture):
        of_parts = (_refuse_buffer(part.source, source.num_trajectories) for part in source.parts)
        return next((found for found in of_parts if found), None)
    most = most or source.trajectories_per_update
    if isinstance(source, ModelRollout) and 0 < source.buffer_size < most:
        return Refusal(
            f"buffer_size {source.buffer_size} is below the {most} trajectories of an update", f"buffer_size >= {most}"
        )
    return None


def _grouped(source: Source) -> str:
    return f"samples_per_prompt >= 2 in {'every part of' if source.kind == 'mixture' else 'the'} source"


def _refuse_reward(source: Source, signal: Reward) -> Refusal | None:
    if signal.advantage in OF_GROUPS and source.samples_per_prompt == 1:
        grouped = "" if source.kind == "dataset" else f", or {_grouped(source)}"
        return Refusal(
            f"advantage = {signal.advantage!r} compares the answers to one prompt, and this source has one: the "
            "advantage would be 0",
            f"signal.advantage = 'reinforce'{grouped}",
        )
    if signal.importance != "none" and not source.is_law_known:
        return Refusal(
            f"importance = {signal.importance!r} weighs states by the law that wrote them, and that of data is not "
            "known",
            "signal.importance = 'none'",
        )
    is_cut = [leaf for leaf in leaves(source) if isinstance(leaf, ModelRollout | Prefix) and leaf.top_p < 1]
    if signal.importance != "none" and is_cut:
        return Refusal(
            "importance weights compare whole laws, and top_p < 1 samples from a cut one",
            "source.top_p = 1, or signal.importance = 'none'",
        )
    return None


def resolve(source: Source, sources: Mapping[str, Source], seen: frozenset[str] = frozenset()) -> Source:
    """`source` with every log replaced by the source of the arm it replays, however indirectly.

    What a log yields has the groups and laws of that source. `sources`: by `Log.record`; `seen`: not followed again.
    """

    def follow(leaf: Source) -> Source:
        if isinstance(leaf, Log) and leaf.record in sources and leaf.record not in seen:
            return resolve(sources[leaf.record], sources, seen | {leaf.record})
        return leaf

    return replace_leaves(source, follow)


def check_cell(source: Source, signals: Sequence[WeightedSignal], place: str) -> None:
    """Refuse a cell that cannot train.

    Raises:
        UsageError: with the reason and the nearest cell that works.
    """
    if found := refusal(source, signals):
        kinds = " + ".join(one.signal.kind for one in signals)
        raise UsageError(
            f"{place}: source {source.kind!r} with signal {kinds!r}: {found.reason}; "
            f"nearest that works: {found.nearest}"
        )


def matrix() -> list[dict[str, str]]:
    """Every cell in order: `source`, `signal`, `name`, and `refused` ("" where it trains, else why and what works).

    Sources that can give several answers to a prompt give two, as signals that compare answers need; all other fields
    are as they are by default.
    """
    dataset, learner = Dataset(), ModelRollout(samples_per_prompt=2)
    sources: dict[str, Source] = {
        "dataset": dataset, "teacher": replace(learner, by="teacher"), "learner": learner,
        "base": replace(learner, by="base"), "stale": replace(learner, lag=1),
        "replay": replace(learner, buffer_size=64), "prefix": Prefix(samples_per_prompt=2), "log": learner,
        "mixture": Mixture((Part(dataset, 0.5), Part(learner, 0.5))),
    }  # fmt: skip
    cells = []
    for signal in ("imitate", "imitate(only_correct)", *(kind for kind in SIGNALS if kind != "imitate")):
        built = SIGNALS[signal.partition("(")[0]]()
        for column, source in sources.items():
            found = refusal(source, [WeightedSignal(built)])
            note = f"{found.reason}; nearest that works: {found.nearest}" if found else ""
            cells.append({"source": column, "signal": signal, "name": name_of(column, signal), "refused": note})
    return cells
