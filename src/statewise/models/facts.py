"""What a run's records say of one trained model: recipe, budget, scores with intervals, provenance."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from statewise.errors import UsageError
from statewise.folder.item_scores import Scores, lay_out
from statewise.folder.run_folder import RunFolder, read_object
from statewise.models.model_folder import origin_of_arm, split_revision
from statewise.plan.dag import BASE
from statewise.results.intervals import estimate_score, weigh_difference, weigh_forgetting
from statewise.storage.model_records import ModelFacts, ModelScore
from statewise.storage.records import Estimate
from statewise.types import Matrix

LICENSE = re.compile(r"\A---\n(?:.*\n)*?license: *(\S+) *\n(?:.*\n)*?---\n")  # front matter of a model card


def read_facts(run: RunFolder, arm: str, seed: int, name: str) -> ModelFacts:
    """The facts of the model of `arm` and `seed`; `weights` and its digest are left to who copies it.

    Raises:
        UsageError: the run has no summary yet, or damaged records.
    """
    summary = _read_summary(run.folder)
    described: dict[str, Any] = next((one for one in summary["runs"] if one["arm"] == arm), {})
    section, shared = run.config.arms.get(arm), run.config.shared
    origin = origin_of_arm(run, arm)
    base_model, revision = split_revision(shared.model)
    trained, evaluated = run.record(arm, seed, "train"), run.record(arm, seed, "evaluate")
    scores = _matrices(run.scores(arm, seed), summary["columns"])
    of_base = _matrices(run.scores(BASE, seed), summary["columns"]) if arm != BASE else {}
    against_base = described.get("against_base", {})
    provenance = {
        "study_fingerprint": read_object(run.folder / "plan.json").get("fingerprint", ""),
        "train_fingerprint": trained.get("fingerprint", ""),
        "evaluate_fingerprint": evaluated.get("fingerprint", ""),
        "state_hash": trained.get("state_hash", ""),
        "base_weights_sha256": origin.base_sha256,
    }
    return ModelFacts(
        name=name,
        study=run.config.study.name,
        description=run.config.study.description,
        arm=arm,
        label=str(described.get("label", arm)),
        seed=seed,
        base_model=base_model,
        base_revision=revision,
        license=_license(origin.base) if origin.base else None,
        weights="",
        recipe=str(described.get("recipe", "")),
        config=section.model_dump(mode="json", exclude={"label", "levels"}, exclude_none=True) if section else {},
        target=shared.target,
        retention=tuple(shared.retention),
        end_of_text=shared.end_of_text,
        budget={**trained.get("budget", {}), **({"train_s": trained["node_s"]} if "node_s" in trained else {})},
        scores=tuple(
            _score(key, heading, scores, of_base) for key, heading in summary["columns"].items() if key in scores
        ),
        forgetting=_forgetting(summary["retention"], of_base, scores),
        arm_seeds=int(described.get("num_seeds", 0)),
        arm_differences={key: Estimate(**value) for key, value in against_base.items()},
        arm_forgetting=Estimate(**described["forgetting"]) if described.get("forgetting") else None,
        protocols=dict(evaluated.get("protocols", {})),
        base_tasks=origin.base_tasks,
        provenance={key: value for key, value in provenance.items() if value},
        environment=summary["environment"],
        commands=(f"statewise run study.toml --out {quote(run.folder.resolve().name)}",),
    )


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        raise UsageError(f"{folder}: no summary.json yet; continue the run with the command that began it")
    summary = read_object(path)
    missing = [key for key in ("runs", "columns", "retention", "environment") if key not in summary]
    if missing:
        raise UsageError(f"{path}: no {missing[0]!r}; run the study again to write it anew")
    return summary


def _matrices(scores: Scores, columns: Mapping[str, str]) -> dict[str, Matrix]:
    """[items, 1] by the key of a column."""
    return {column.key: lay_out([one]) for column, one in scores.items() if column.key in columns}


def _score(key: str, heading: str, scores: Mapping[str, Matrix], base: Mapping[str, Matrix]) -> ModelScore:
    score = estimate_score(scores[key])
    if key not in base:
        return ModelScore(key, heading, score)
    difference = weigh_difference(scores[key], base[key]).estimate()
    return ModelScore(key, heading, score, estimate_score(base[key]), difference)


def _forgetting(retention: list[str], base: Mapping[str, Matrix], scores: Mapping[str, Matrix]) -> Estimate | None:
    if not retention or not all(key in base and key in scores for key in retention):
        return None
    return weigh_forgetting([base[key] for key in retention], [scores[key] for key in retention]).estimate()


def _license(base: Path) -> str | None:
    """The licence that the base model's own card names."""
    card = base / "README.md"
    found = LICENSE.match(card.read_text(encoding="utf-8")) if card.is_file() else None
    return found[1] if found else None
