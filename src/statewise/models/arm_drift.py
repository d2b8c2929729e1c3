"""Drift between two arms of recorded runs, measured again from the rollouts that their evaluations left.

Against a run's own base model it gives the numbers of the run. Any other pair of arms can be compared as well, of one
run or of two, as long as they wrote on the same prompts.
"""

from __future__ import annotations

from statewise.drift.measure import measure_drift
from statewise.drift.over_seeds import over_seeds
from statewise.drift.rollout_records import rows_to_rollouts
from statewise.errors import UsageError
from statewise.folder.protocol import drift_config, permutation_key
from statewise.folder.run_folder import RunFolder
from statewise.models.sides import find_arm
from statewise.plan.dag import BASE
from statewise.storage import records
from statewise.storage.records import DriftEstimate
from statewise.types import Rollout


def measure_arms(a: str, b: str) -> dict[str, DriftEstimate]:
    """Distances of the states of `b` from those of `a`, seed by seed, then over the seeds.

    The floor is the distance between two samples of one policy: `a`, where it is a base model, else the base model of
    its run, since a trained arm was sampled once. Arms of two runs with the same name and seed drew with the same
    random numbers, so that their distance is smaller than that of independent samples.

    Args:
        a: `RUN:ARM` or `RUN:ARM:SEED`.
        b: the same. Two single seeds are compared, whatever their numbers; else the seeds that both have.

    Raises:
        UsageError: no such arm, no seed in common, or rollouts on other prompts or of another length.
    """
    (run_a, arm_a, of_a), (run_b, arm_b, of_b) = _open(a), _open(b)
    if run_a.config.shared.drift != run_b.config.shared.drift:
        raise UsageError(
            f"{a} and {b}: [shared.drift] of their studies differs; compare arms that were rolled out alike"
        )
    both = [(seed, seed) for seed in of_a if seed in of_b]
    pairs = [*zip(of_a, of_b, strict=True)] if len(of_a) == len(of_b) == 1 else both
    if not pairs:
        raise UsageError(f"{a} and {b}: no seed in common was evaluated; compare single seeds, RUN:ARM:SEED")
    measured = [
        measure_drift(
            _rollouts(run_a, arm_a, seed),
            _rollouts(run_a, BASE, seed, "rollouts_again"),
            _rollouts(run_b, arm_b, other),
            drift_config(run_a.config.shared.drift),
            permutation_key(arm_b, other),
            None if arm_a == BASE else _rollouts(run_a, BASE, seed),
        )
        for seed, other in pairs
    ]
    return {name: over_seeds([one[name] for one in measured]) for name in measured[0]}


def _open(text: str) -> tuple[RunFolder, str, list[int]]:
    """The run, arm and evaluated seeds that `text` names."""
    found = find_arm(text)
    if found is None:
        raise UsageError(f"{text}: no arm of a run; give RUN:ARM or RUN:ARM:SEED, RUN the folder of a `statewise run`")
    run, arm, seeds = found
    evaluated = [seed for seed in seeds if run.record(arm, seed, "evaluate").get("status") == "evaluated"]
    return run, arm, evaluated


def _rollouts(run: RunFolder, arm: str, seed: int, name: str = "rollouts") -> list[Rollout]:
    """The recorded rollouts of an arm and seed, after its record was checked."""
    run.record(arm, seed, "evaluate")
    path = run.arm_folder(arm, seed) / f"{name}.parquet"
    if not path.is_file():
        raise UsageError(f"{path} is missing; run the study to its end")
    return rows_to_rollouts(records.read_table(path))
