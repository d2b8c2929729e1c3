"""What a study puts to the test, and what is held together: its hypotheses, and the gain and the F of its runs.

Every family keeps the chance of any false verdict at α = .05 by Holm's procedure. A verdict and the interval beside it
come from one p-value, at the level that decided, so that they cannot contradict each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from statewise.config.study import HypothesisSection
from statewise.plan.dag import BASE
from statewise.results.intervals import Evidence, weigh_forgetting
from statewise.results.measured import FORGETTING, GAIN, Measured
from statewise.storage.records import LEVEL, HypothesisSummary, Largest, RunSummary

ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class _Tested:
    """A hypothesis with what the data say of each contrast; `p`: two-sided, that none of its verdicts is due."""

    hypothesis: HypothesisSection
    evidence: dict[str, Evidence]
    verdict: str
    p: float

    def is_claimed(self, evidence: Evidence) -> bool:
        """Whether the value lies on the claimed side of the margin."""
        beyond = evidence.value - self.hypothesis.margin
        return beyond > 0 if self.hypothesis.comparison == "more" else beyond < 0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: of the r-th smallest of n, the largest of (n − i) p_i over i <= r (from 0), at most 1.

    Source:
        Holm, A simple sequentially rejective multiple test procedure (1979). It asks nothing of how tests depend.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def judge_hypotheses(measured: Measured) -> tuple[HypothesisSummary, ...]:
    """The verdicts of a study's hypotheses, held together by Holm's procedure."""
    tested = [_test(measured, hypothesis) for hypothesis in measured.config.hypotheses]
    return conclude(tested)


def conclude(tested: Sequence[_Tested]) -> tuple[HypothesisSummary, ...]:
    """Adjusted p-values, verdicts, and each interval at the level at which its hypothesis was decided."""
    adjusted = holm([one.p for one in tested])
    num_resolved = sum(p < ALPHA for p in adjusted)
    order = sorted(range(len(tested)), key=lambda index: tested[index].p)
    concluded: dict[int, HypothesisSummary] = {}
    for rank, index in enumerate(order):
        # Holm stops at the first p that is too large; all that follow are judged as that one was.
        alpha = ALPHA / (len(tested) - min(rank, num_resolved))
        concluded[index] = _summary(tested[index], adjusted[index], alpha, len(tested))
    return tuple(concluded[index] for index in range(len(tested)))


def weigh_hypothesis(hypothesis: HypothesisSection, evidence: dict[str, Evidence]) -> _Tested:
    """One hypothesis by itself: it holds if every contrast lies beyond the margin, not if one lies on the other side.

    The first is an intersection–union test (Berger 1982): each contrast at α keeps α for all. The second takes the best
    of K contrasts, so that its p is K times the smallest (Bonferroni).
    """
    found = _Tested(hypothesis, evidence, "holds", 1.0)
    against = [one.p_value(hypothesis.margin) for one in evidence.values() if not found.is_claimed(one)]
    if against:
        return replace(found, verdict="does not hold", p=min(1.0, len(hypothesis.arms) * min(against)))
    is_complete = len(evidence) == len(hypothesis.arms)
    return replace(found, p=max(one.p_value(hypothesis.margin) for one in evidence.values())) if is_complete else found


@dataclass(frozen=True)
class RunFamily:
    """One number of every run, arm → evidence, held together."""

    response: str
    evidence: dict[str, Evidence]

    @property
    def p_adjusted(self) -> dict[str, float]:
        """Arm → two-sided p of 0, by Holm's procedure."""
        return dict(zip(self.evidence, holm([one.p_value() for one in self.evidence.values()]), strict=True))

    def largest(self) -> Largest:
        """The largest of the values. Which one it is the data chose, so its interval holds for all of them at once.

        Source:
            Bonferroni: n intervals at 1 − α / n all cover with probability >= 1 − α, so whichever is chosen does.
        """
        value = max(one.value for one in self.evidence.values())
        arms = tuple(arm for arm, one in self.evidence.items() if one.value == value)
        estimate = self.evidence[arms[0]].estimate(1 - ALPHA / len(self.evidence))
        return Largest(self.response, arms, estimate, len(self.evidence))


def weigh_runs(measured: Measured) -> tuple[RunFamily, ...]:
    """The gain on the target, and F, of every run that was evaluated beside the base model."""
    seeds = {name: measured.seeds_of(name, BASE) for name in measured.config.arms}
    seeds = {name: common for name, common in seeds.items() if common}
    if not measured.columns or not seeds:
        return ()
    target = measured.columns[0]
    gains = {name: measured.difference(target, name, BASE, common) for name, common in seeds.items()}
    families = [RunFamily(GAIN, gains)]
    if measured.retention:
        lost = {name: _forgetting(measured, name, BASE, common) for name, common in seeds.items()}
        families.append(RunFamily(FORGETTING, lost))
    return tuple(families)


def hold_together(runs: Sequence[RunSummary], families: Sequence[RunFamily], target: str) -> tuple[RunSummary, ...]:
    """The runs with the adjusted p of their gain and of their F."""
    by_response: Mapping[str, dict[str, float]] = {family.response: family.p_adjusted for family in families}
    held = []
    for run in runs:
        gain, forgetting = run.against_base.get(target), run.forgetting
        if gain:
            gain = replace(gain, p_adjusted=by_response[GAIN][run.arm])
            run = replace(run, against_base={**run.against_base, target: gain})
        if forgetting:
            run = replace(run, forgetting=replace(forgetting, p_adjusted=by_response[FORGETTING][run.arm]))
        held.append(run)
    return tuple(held)


def _test(measured: Measured, hypothesis: HypothesisSection) -> _Tested:
    evidence = {}
    for arm in hypothesis.arms:
        seeds = measured.seeds_of(arm, hypothesis.than, BASE)
        if seeds and measured.has(hypothesis.measure):
            evidence[f"{arm} - {hypothesis.than}"] = _weigh(measured, hypothesis, arm, seeds)
    return weigh_hypothesis(hypothesis, evidence)


def _weigh(measured: Measured, hypothesis: HypothesisSection, arm: str, seeds: list[int]) -> Evidence:
    if hypothesis.measure == FORGETTING:
        return _forgetting(measured, arm, hypothesis.than, seeds)
    task, _, decoding = hypothesis.measure.partition(":")
    return measured.difference(measured.primary(task, decoding or None), arm, hypothesis.than, seeds)


def _forgetting(measured: Measured, arm: str, than: str, seeds: list[int]) -> Evidence:
    return weigh_forgetting(measured.retained(than, seeds), measured.retained(arm, seeds))


def _summary(tested: _Tested, p_adjusted: float, alpha: float, num_hypotheses: int) -> HypothesisSummary:
    hypothesis = tested.hypothesis
    levels = {True: 1 - alpha, False: 1 - alpha / len(hypothesis.arms)}
    side = "above" if hypothesis.comparison == "more" else "below"
    rule = f"paired difference of {hypothesis.measure} {side} {hypothesis.margin:g}, two-sided"
    if len(hypothesis.arms) > 1:
        rule += f"; holds: every contrast is; does not hold: one lies on the other side (p × {len(hypothesis.arms)})"
    notes = [hypothesis.note] * bool(hypothesis.note)
    if len(tested.evidence) < len(hypothesis.arms):
        notes.append("an arm of this hypothesis has no scores of this measure")
    return HypothesisSummary(
        name=hypothesis.name,
        statement=hypothesis.statement,
        verdict=tested.verdict if p_adjusted < ALPHA else "not resolved",
        test=rule + (f"; Holm over the {num_hypotheses} hypotheses of the study" if num_hypotheses > 1 else ""),
        contrasts={name: one.estimate(levels[tested.is_claimed(one)]) for name, one in tested.evidence.items()},
        margin=hypothesis.margin,
        note="; ".join(notes),
        p_adjusted=p_adjusted,
    )
