"""A run folder written by hand: toy weights, scores that the test chooses, no training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from statewise.config.read import read_study, to_toml
from statewise.folder.store import LEFT
from statewise.plan.digest import digest_weights
from statewise.storage import integrity, records
from statewise.storage.records import ITEM_SCHEMA, Estimate

STUDY = """\
[study]
name = "by-hand"
description = "a study | that nobody ran"
seeds = [0, 1]
factors = ["source", "signal", "teacher", "adapter"]
[shared]
model = "{model}"
target = "sums"
retention = ["facts"]
[shared.update]
num_updates = 4
lr = 3e-4
[arms.sft]
label = "mild SFT"
source = {{ kind = "dataset", num_trajectories = 8 }}
signal = {{ kind = "imitate" }}
[arms.slim]
source = {{ kind = "dataset", num_trajectories = 8 }}
signal = {{ kind = "imitate" }}
adapter = {{ kind = "lora", rank = 2 }}
[arms.wild]
source = {{ kind = "dataset", num_trajectories = 8 }}
signal = {{ kind = "imitate" }}
[arms.late]
source = {{ kind = "dataset", num_trajectories = 8 }}
signal = {{ kind = "imitate" }}
"""
PROTOCOL = "0-shot; split test, n = 4; task version 1.0, lm-eval 0.4.13"
METRIC = "exact_match,none"
SUMS, FACTS = f"sums:greedy:{METRIC}", "facts:choices:acc,none"
COLUMNS = {SUMS: "sums greedy", FACTS: "facts"}


def write_run(folder: Path, model: Path, model_name: str = "") -> Path:
    """An empty run of `STUDY` on the base model in `model`."""
    folder.mkdir(parents=True)
    (folder / "study.toml").write_text(STUDY.format(model=model_name or model))
    (folder / "study.toml").write_text(to_toml(read_study(folder / "study.toml")))
    seal_plan(folder, model)
    summary = {
        "columns": COLUMNS, "target": SUMS, "retention": [FACTS], "environment": {"torch": "2.9", "statewise": "0.1.0"},
        "runs": [
            {
                "arm": "sft", "label": "mild SFT", "num_seeds": 2, "recipe": "imitate on dataset states",
                "against_base": {SUMS: asdict(Estimate(0.125, 0.05, 0.2, 4, 2, "by hand"))},
                "forgetting": asdict(Estimate(0.01, -0.02, 0.04, 4, 2, "by hand")),
            },
        ],
    }  # fmt: skip
    integrity.write_sealed(folder / "summary.json", {**summary, "files": {}})
    return folder


def seal_plan(folder: Path, model: Path) -> None:
    """Record the study file as it is now."""
    plan = {"fingerprint": "plan-print", "model": str(model), "jobs": []}
    integrity.write_sealed(folder / "plan.json", {**plan, "files": integrity.table_of(folder, ["study.toml"])})


def trained(run: Path, arm: str, seed: int) -> Path:
    """Record what lies in the arm's `model` or `adapter` as trained; returns the arm's folder."""
    folder = run / "arms" / arm / str(seed)
    source = folder / "model" if (folder / "model").exists() else folder / "adapter"
    result = {
        "fingerprint": f"train-{arm}-{seed}", "status": "trained", "state_hash": "cafe", "node_s": 2.5,
        "weights_sha256": digest_weights(source), "budget": {"num_updates": 4.0, "num_generated_learner": 90.0},
    }  # fmt: skip
    integrity.write_sealed(folder / "train.json", {**result, "files": integrity.table_of(folder, LEFT["train"])})
    return folder


def item_rows(
    task: str, decoding: str, metric: str, scores: list[float | None] | dict[int, float | None], answer: str = ""
) -> list[dict]:
    """Rows of items that are numbered from 0, or as the keys of `scores` say."""
    numbered = scores if isinstance(scores, dict) else dict(enumerate(scores))
    return [
        {
            "task": task,
            "member": task,
            "item": item,
            "decoding": decoding,
            "metric": metric,
            "score": score,
            "response": answer and f"{answer} {item}",
            "item_sha256": f"{task} {item}",
            "prompt": f"{task}, question {item}:\n",
        }
        for item, score in numbered.items()
    ]


def evaluated(
    run: Path, arm: str, seed: int, sums: list, facts: list, *, protocol: str = PROTOCOL, digest: str = "d"
) -> None:
    """Record the scores of an arm's items."""
    folder = run / "arms" / arm / str(seed)
    for task, decoding, metric, scores in (("sums", "greedy", METRIC, sums), ("facts", "choices", "acc,none", facts)):
        path = folder / "evals" / f"{task}.parquet"
        records.write_table(path, item_rows(task, decoding, metric, scores, f"{arm} says"), ITEM_SCHEMA)
    both = {"sums": protocol, "facts": protocol}
    done = {"fingerprint": f"evaluate-{arm}-{seed}", "status": "evaluated", "protocols": both}
    done |= {"items_sha256": dict.fromkeys(both, digest) if digest else {}}
    integrity.write_sealed(folder / "done.json", {**done, "files": integrity.table_of(folder, LEFT["evaluate"])})


def write_evaluation(folder: Path, scores: dict[str, list], protocol: str = PROTOCOL, digest="d", **model) -> Path:
    """A folder of `statewise eval` with the given scores of tasks that are decoded greedily."""
    tasks = {}
    for task, values in scores.items():
        path = folder / "evals" / f"{task}.parquet"
        sha256 = records.write_table(path, item_rows(task, "greedy", METRIC, values), ITEM_SCHEMA)
        tasks[task] = {"protocol": protocol, "items_sha256": digest, "sha256": sha256}
    integrity.write_sealed(folder / "eval.json", {"model": model, "tasks": tasks})
    return folder
