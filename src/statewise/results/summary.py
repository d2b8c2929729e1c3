"""From the records of a run folder to its summary: scores, differences, forgetting, drift, verdicts.

Reads records only, so an old run can be summarised again. What it returns is written as `summary.json` and rendered by
the report.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from statewise.config.study import StudyConfig
from statewise.drift.measure import DriftValue
from statewise.drift.over_seeds import over_seeds
from statewise.errors import DamagedError
from statewise.folder.item_scores import Column, Scores, read_scores
from statewise.folder.store import Store
from statewise.plan.dag import BASE, Job, Plan
from statewise.plan.estimate import plan_budgets
from statewise.results.effects import Cell, estimate_effects
from statewise.results.hypotheses import hold_together, judge_hypotheses, weigh_runs
from statewise.results.intervals import (
    estimate_retention_ratio,
    estimate_score,
    weigh_forgetting,
)
from statewise.results.measured import FORGETTING, GAIN, Measured
from statewise.storage import integrity, records
from statewise.storage.records import DriftEstimate, EffectTable, Estimate, RunSummary, StudySummary

Results = dict[Job, dict[str, Any]]


def summarise(plan: Plan, store: Store, environment: dict[str, str]) -> StudySummary:
    """Summarise what is done; arms that are not yet evaluated are left out and named among the problems."""
    config, (results, damaged) = plan.config, _read_results(plan, store)
    evaluated = {
        job: result
        for job, result in results.items()
        if job.action == "evaluate" and result.get("status") == "evaluated"
    }
    measured = _measure(config, store, evaluated)
    planned = plan_budgets(plan)
    runs = tuple(
        replace(_summarise_run(plan, store, measured, results, name), planned=planned.get(name, {}))
        for name in [BASE, *config.arms]
    )
    target = measured.columns[0].key if measured.columns else ""
    families = weigh_runs(measured)
    missing = [job.id for job in plan.jobs if job not in results]
    problems = [f"not done yet: {', '.join(missing)}"] if missing else []
    problems += [*damaged, *_mixed(plan, evaluated.values()), *_problems(results, measured)]
    reference = config.reference
    return StudySummary(
        name=config.study.name,
        description=config.study.description,
        columns={column.key: column.heading for column in measured.columns},
        target=target,
        retention=tuple(column.key for column in measured.retention),
        protocols=next((dict(result["protocols"]) for result in evaluated.values()), {}),
        runs=hold_together(runs, families, target),
        hypotheses=judge_hypotheses(measured),
        environment=environment,
        reference_label=reference.label if reference else "",
        reference_headings=tuple(reference.headings) if reference else (),
        reference_rows=tuple(tuple(row) for row in reference.rows) if reference else (),
        problems=tuple(problems),
        effects=_effects(measured),
        largest=tuple(family.largest() for family in families),
    )


def write_summary(summary: StudySummary, store: Store) -> None:
    """Write `results.parquet` with one row per run and column, and `summary.json`, which carries its digest."""
    rows = [
        {
            "arm": run.arm,
            "column": key,
            **{k: v for k, v in asdict(estimate).items() if k in records.RESULT_SCHEMA.names},
        }
        for run in summary.runs
        for key, estimate in run.scores.items()
    ]
    table = records.write_table(store.folder / "results.parquet", rows, records.RESULT_SCHEMA)
    summarised = {**asdict(summary), "files": {"results.parquet": table}}
    integrity.write_sealed(store.folder / "summary.json", summarised)


def _read_results(plan: Plan, store: Store) -> tuple[Results, list[str]]:
    """What every job that is done left; and what was damaged while the run went on, which does not enter the table."""
    results: Results = {}
    damaged = []
    for job in plan.jobs:
        try:
            result = store.checked_result(job)
        except DamagedError as error:
            damaged.append(f"{job.id}: {error}")
            continue
        if result is not None:
            results[job] = result
    return results, damaged


def _measure(config: StudyConfig, store: Store, evaluated: Results) -> Measured:
    # Parts are told apart of the target alone; of others, as MMLU's 57, they would be kept and never shown.
    scores = {
        (job.arm, job.seed): read_scores(store.arm_folder(job.arm, job.seed), result["files"], config.shared.target)
        for job, result in evaluated.items()
    }
    seen = dict.fromkeys(column for one in scores.values() for column in one)
    return Measured(config, _choose_columns(config, list(seen)), scores)


def _count_answers(config: StudyConfig, scores: Scores) -> dict[str, int]:
    """What became of the answers to the target's items that a model generated in evaluation, greedy and sampled."""
    shared = config.shared
    own = [
        (not is_finished, score > 0)
        for column, one in scores.items()
        if (column.task, column.metric, column.member) == (shared.target, shared.reward_metric, "")
        for is_finished, score in zip(one.finished, one.values.tolist(), strict=True)
        if is_finished is not None
    ]
    return {
        "num_answers": len(own), "num_unfinished": sum(is_cut for is_cut, _ in own),
        "num_rewarded": sum(is_right for _, is_right in own), "num_rewarded_unfinished": sum(map(all, own)),
    }  # fmt: skip


def _choose_columns(config: StudyConfig, seen: list[Column]) -> tuple[Column, ...]:
    """Target first, then one column a retention task.

    The target's are the reward metric greedy, sampled and pass@k; greedy, of the members of its items where it has
    several; and its other metrics, greedy.
    """
    shared = config.shared
    target = [column for column in seen if column.task == shared.target and not column.member]
    rewarded = [column for column in target if column.metric == shared.reward_metric]
    others = [column for column in target if column.metric != shared.reward_metric and column.decoding == "greedy"]
    parts = [c for c in seen if c.member and replace(c, member="") in rewarded and c.decoding == "greedy"]
    is_greedy = [column.decoding == "greedy" for column in rewarded]
    ordered = [
        *itertools.compress(rewarded, is_greedy),
        *(column for column in rewarded if column.decoding != "greedy"),
        *(parts if len(parts) > 1 else []),
        *others,
    ] or target[:1]
    for task in shared.retention:
        ordered.extend([column for column in seen if column.task == task][:1])
    return tuple(replace(column, heading=_heading(column, others)) for column in ordered)


def _heading(column: Column, others: list[Column]) -> str:
    detail = "" if column.decoding == "choices" else f" {column.member or column.decoding}"
    if column in others:
        detail = f" {column.metric.partition(',')[2] or column.metric}"
    return f"{column.task}{detail}"


def _summarise_run(plan: Plan, store: Store, measured: Measured, results: Results, name: str) -> RunSummary:
    arm = plan.arms.get(name)
    trained = {job.seed: one for job, one in results.items() if (job.action, job.arm) == ("train", name)}
    seeds, paired = measured.seeds_of(name), measured.seeds_of(name, BASE)
    columns = measured.columns
    teacher = arm.teacher if arm else None
    with_teacher = measured.seeds_of(name, teacher) if teacher in (BASE, *plan.arms) else []  # else from elsewhere
    is_compared = name != BASE and bool(paired)
    base, post = (measured.retained(one, paired) if is_compared else [] for one in (BASE, name))
    return RunSummary(
        arm=name,
        label=(arm.label or name) if arm else "base",
        num_seeds=len(seeds),
        num_diverged=sum(result.get("status") == "diverged" for result in trained.values()),
        recipe=_recipe(plan, name),
        scores={c.key: estimate_score(measured.matrix(name, c, seeds)) for c in columns} if seeds else {},
        against_base=_against(measured, name, BASE, paired) if name != BASE else {},
        teacher=teacher,
        against_teacher=_against(measured, name, str(teacher), with_teacher),
        forgetting=weigh_forgetting(base, post).estimate() if base else None,
        retention_ratio=estimate_retention_ratio(base, post) if base else None,
        drift=_drift(store, name, seeds),
        budget=_mean_budget(list(trained.values())),
        answers=_add([result.get("answers") for result in trained.values()]),
        evaluated_answers=_add([_count_answers(plan.config, measured.scores[name, seed]) for seed in seeds]),
        levels=dict(arm.levels) if arm else {},
        state_hashes={str(seed): str(one["state_hash"]) for seed, one in trained.items() if "state_hash" in one},
    )


def _against(measured: Measured, arm: str, than: str, seeds: list[int]) -> dict[str, Estimate]:
    """The difference of two runs in every column; {} where they have no seed in common."""
    return {c.key: measured.difference(c, arm, than, seeds).estimate() for c in measured.columns if seeds}


def _effects(measured: Measured) -> tuple[EffectTable, ...]:
    """The analysis of variance of gain and forgetting over the cells of a factorial design, if the study is one."""
    arms = {name: arm.levels for name, arm in measured.config.arms.items() if arm.levels}
    if not measured.columns or not arms:
        return ()

    def mean(column: Column, arm: str, than: str, seed: int) -> float:
        return float((measured.matrix(arm, column, [seed]) - measured.matrix(than, column, [seed])).mean())

    gains: list[Cell] = []
    losses: list[Cell] = []
    for name, levels in arms.items():
        seeds = measured.seeds_of(name, BASE)
        gains.append((levels, {seed: mean(measured.columns[0], name, BASE, seed) for seed in seeds}))
        lost = {seed: [mean(column, BASE, name, seed) for column in measured.retention] for seed in seeds}
        losses.append((levels, {seed: float(np.mean(values)) for seed, values in lost.items() if values}))
    tables = [estimate_effects(GAIN, gains), estimate_effects(FORGETTING, losses) if measured.retention else None]
    return tuple(table for table in tables if table is not None)


def _recipe(plan: Plan, name: str) -> str:
    """One line: where, what, how far."""
    if name == BASE:
        return "not trained"
    arm = plan.arms[name]
    teacher = f" of {arm.teacher}" if arm.teacher else ""
    update = arm.update
    each = arm.source.trajectories_per_update
    parts = [
        f"{arm.signal_summary}{teacher} on {arm.source.summary} states",
        f"{update.num_updates} updates" + (f" of {each}" if each else ""),
        f"lr {update.lr:g} {update.schedule}",
        arm.adapter.summary,
        *(one.kind for one in arm.locality),
    ]
    return " · ".join(parts)


def _drift(store: Store, name: str, seeds: list[int]) -> dict[str, DriftEstimate]:
    paths = [store.arm_folder(name, seed) / "drift.json" for seed in seeds]  # of results that were checked
    measured = [records.read_json(path) for path in paths if path.exists()]
    distances = dict.fromkeys(distance for one in measured for distance in one)
    return {
        distance: over_seeds([DriftValue(**one[distance]) for one in measured if distance in one])
        for distance in distances
    }


def _add(counts: list[Any]) -> dict[str, int]:
    """Counts of answers, summed over an arm's seeds; empty where all answers ended by themselves."""
    found = [one for one in counts if isinstance(one, dict)]
    total = {key: sum(one.get(key, 0) for one in found) for key in dict.fromkeys(key for one in found for key in one)}
    return total if total.get("num_unfinished") else {}


def _mean_budget(results: list[dict[str, object]]) -> dict[str, float]:
    """What an arm used, mean over its seeds."""
    budgets = [dict(r["budget"], train_s=r["node_s"]) for r in results if "budget" in r]  # type: ignore[call-overload]
    if not budgets:
        return {}
    keys = sorted({key for budget in budgets for key in budget})
    return {key: float(np.mean([budget.get(key, 0.0) for budget in budgets])) for key in keys}


def _problems(results: Results, measured: Measured) -> list[str]:
    """What a reader must know beside the table: diverged and skipped arms, unscored answers."""
    problems = []
    for job, result in results.items():
        if result.get("status") in ("diverged", "skipped"):
            problems.append(f"{job.id} {result['status']}: {result['reason']}")
        problems += [f"{job.id}: {note}" for note in result.get("notes", [])]
    for (arm, seed), scores in measured.scores.items():
        for column in measured.columns:
            if unscored := scores[column].num_unscored:
                problems.append(f"{arm} seed {seed}: {unscored} answers of {column.heading} could not be scored")
    return problems


def _mixed(plan: Plan, results: Collection[dict[str, Any]]) -> list[str]:
    """What differs between evaluations that are compared: a folder that moved between machines or versions."""
    problems = []
    for task in plan.tasks:
        for key, what in (("protocols", "protocols"), ("items_sha256", "items")):
            if len({str(result.get(key, {}).get(task)) for result in results}) > 1:
                problems.append(f"{task}: evaluated under different {what} in this folder; run it anew in another one")
    devices = sorted({str(result.get("device")) for result in results if result.get("device")})
    if len(devices) > 1:
        problems.append(f"evaluated on different devices or in different precisions: {'; '.join(devices)}")
    return problems
