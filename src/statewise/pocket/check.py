"""The criterion of a pocket world, measured on the base model alone, before anything is trained from it.

A world is fit for comparing methods if the base can do more than it does, if there is something that it cannot do, and
if what it knows can be seen to move both ways. All is measured on spare problems, which are in no split and no corpus,
so that no constant is ever set by what a method scores. `docs/pocket.md` gives the reason of each bound.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scipy import stats
from transformers.utils import logging as transformers_logging

from statewise.errors import UsageError
from statewise.evals.evaluate import EvalProtocol, evaluate
from statewise.pocket import problems
from statewise.pocket.pretrain import write_digests
from statewise.pocket.problems import Problem
from statewise.pocket.world import KEPT, TASK_DIR, World, math_row
from statewise.policy.load import Policy, load_policy
from statewise.storage import records
from statewise.tasks.load import load_task

BASE_RECORD = "base.json"
METRIC = "exact_match,flexible-extract"
SAMPLES = 8
MAX_NEW_TOKENS = 128
LEVEL = 0.95
DOCUMENTS_COUNTED = 20_000
# By size: items of each measurement, None for all.
ITEMS = {"full": None, "smoke": 24}
# How an answer of each style begins. That of "equations" holds the first number and sign, as a first line does.
OPENINGS: dict[str, Callable[[Problem], str]] = {
    "equations": lambda p: f"{p.steps[0].left} {p.steps[0].op}",
    "story": lambda p: "First there are",
    "running": lambda p: f"{p.start},",
    "gsm8k": lambda p: f"{p.pronoun} has",
    problems.BARE: lambda p: "The answer is",
}
UNGRADED = ("equations", "story", "running")
# A quartile is at the floor or at the ceiling outside of these; the floor of a fact is a guess among four.
QUARTILE_BOUNDS = {"pocket_facts": (0.30, 0.98), "pocket_myths": (0.02, 0.98)}


@dataclass(frozen=True)
class Share:
    """A share of right answers, 0..1, with its exact 95 % interval (Clopper–Pearson) over `num_items`."""

    value: float
    low: float
    high: float
    num_items: int

    @classmethod
    def of(cls, scores: Sequence[float]) -> Share:
        right = round(sum(scores))
        interval = stats.binomtest(right, len(scores)).proportion_ci(LEVEL, "exact")
        return cls(right / len(scores), float(interval.low), float(interval.high), len(scores))


@dataclass(frozen=True)
class Criterion:
    """One statement about a base, the value that decides it, and between which bounds it must lie."""

    statement: str
    value: float
    low: float
    high: float

    @property
    def is_met(self) -> bool:
        return self.low <= self.value <= self.high


def check_base(folder: Path, report: Callable[[str], None], limit: int | None = None) -> dict[str, Any]:
    """Measure the base model in `folder`, write `base.json` there and return what it holds.

    Args:
        folder: as `pretrain` writes it.
        report: gets one line before each measurement.
        limit: problems and items of each benchmark; None for all.

    Raises:
        UsageError: not such a folder, or of another version of the world.
    """
    transformers_logging.disable_progress_bar()
    world = _world_of(folder)
    policy = load_policy(folder, "base")
    spare = world.spare_problems[:limit]
    free = _solve(policy, spare, None, report)
    forced = {style: _solve(policy, spare, style, report) for style in OPENINGS}
    best = max(UNGRADED, key=lambda style: sum(forced[style]["greedy"]))
    choices = {name: _choose(policy, folder / "tasks", name, limit, report) for name in QUARTILE_BOUNDS}
    values = {
        **{name: Share.of(free[name]) for name in ("greedy", "sampled", f"pass@{SAMPLES}")},
        **{f"style {name}": Share.of(free[f"style {name}"]) for name in ("bare", "worked", "graded")},
        **{f"forced {style}": Share.of(forced[style]["greedy"]) for style in OPENINGS},
        "familiar": Share.of(_of(forced[best]["greedy"], spare, lambda p: not p.operation)),
        "rare": Share.of(_of(forced[best]["greedy"], spare, lambda p: bool(p.operation))),
        **{name: Share.of([score for score, _ in scored]) for name, scored in choices.items()},
    }
    base: dict[str, Any] = {
        "world_seed": world.seed,
        "weights_sha256": records.digest_file(folder / "model.safetensors"),
        "best_style": best,
        "values": {name: asdict(share) for name, share in values.items()},
        "quartiles": {name: [asdict(share) for share in _quartiles(scored)] for name, scored in choices.items()},
        "operations": _by_operation(world, forced[best]["greedy"], spare),
    }
    criteria = judge(base)
    base |= {
        "criteria": [{**asdict(one), "is_met": one.is_met} for one in criteria],
        "is_met": all(one.is_met for one in criteria),
    }
    records.write_json(folder / BASE_RECORD, base)
    write_digests(folder)
    return base


def judge(base: dict[str, Any]) -> list[Criterion]:
    """The criteria, in the order of docs/pocket.md, decided by what `base.json` holds."""
    values = {name: share["value"] for name, share in base["values"].items()}
    best = values[f"forced {base['best_style']}"]
    known = [one["share"]["value"] for one in base["operations"] if one["share"]]
    often, seldom = known[: len(known) // 2], known[len(known) // 2 :]
    graded = sum(often) / max(1, len(often)) - sum(seldom) / max(1, len(seldom))
    rare_share = base["values"]["rare"]["num_items"] / base["values"]["greedy"]["num_items"]
    criteria = [
        Criterion("greedy, zero-shot", values["greedy"], 0.30, 0.55),
        Criterion(f"pass@{SAMPLES} at temperature 1", values[f"pass@{SAMPLES}"], 0.75, 1.0),
        Criterion("greedy in the best ungraded style", best, 0.70, 0.88),
        Criterion("the same, above greedy", best - values["greedy"], 0.25, 1.0),
        Criterion("facts", values["pocket_facts"], 0.55, 0.85),
        Criterion("myths", values["pocket_myths"], 0.35, 0.65),
    ]
    for name, (low, high) in QUARTILE_BOUNDS.items():
        inner = [quartile["value"] for quartile in base["quartiles"][name]]
        criteria += [
            Criterion(f"{name}, least known quarter", min(inner), low, 1.0),
            Criterion(f"{name}, best known quarter", max(inner), 0.0, high),
        ]
    return [
        *criteria,
        Criterion("share of rare problems", rare_share, 0.15, 0.25),
        Criterion("rare problems in the best style", values["rare"], 0.10, 0.40),
        Criterion("operations seen often, above those seen seldom", graded, 0.05, 1.0),
        Criterion("familiar problems in the best style", values["familiar"], 0.82, 1.0),
    ]


def _world_of(folder: Path) -> World:
    recipe, test = folder / "pretrain.json", folder / "tasks" / "pocket_math_test.jsonl"
    for path in (recipe, test):
        if not path.is_file():
            raise UsageError(f"{folder}: no {path.relative_to(folder)}; give a folder that `statewise pretrain` wrote")
    world = World.from_seed(int(records.read_json(recipe)["world_seed"]))
    with test.open(encoding="utf-8") as stream:
        questions = [json.loads(line)["question"] for line in stream]
    if questions != [problem.question for problem in world.test_problems]:
        raise UsageError(
            f"{folder}: its problems are not those of world {world.seed} of this version, so the spare ones may be in "
            "its corpus; build it anew with `statewise pretrain`"
        )
    return world


def _solve(
    policy: Policy, spare: Sequence[Problem], style: str | None, report: Callable[[str], None]
) -> dict[str, list[float]]:
    """Scores by decoding, problem by problem; with a style, its opening is put into the model's mouth."""
    report(f"{len(spare)} spare problems, {f'made to begin as {style}' if style else 'free'}")
    name = f"pocket_math_{style or 'free'}"
    with tempfile.TemporaryDirectory() as temporary:
        tasks = Path(temporary)
        text = (TASK_DIR / "pocket_math.yaml").read_text(encoding="utf-8")
        text = text.replace("task: pocket_math\n", f"task: {name}\n")
        opening = 'gen_prefix: "{{opening}}"\n' if style else ""
        (tasks / f"{name}.yaml").write_text(text + opening, encoding="utf-8")
        rows = [{**math_row(p), "opening": OPENINGS[style](p) if style else ""} for p in spare]
        for split in ("train", "test"):
            (tasks / f"pocket_math_{split}.jsonl").write_text(
                "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
            )
        task = load_task(name, task_folder=tasks, reward_metric=METRIC)
        how = EvalProtocol(max_new_tokens=min(MAX_NEW_TOKENS, policy.context_length // 2), samples=SAMPLES)
        answered = evaluate(policy, task, replace(how, decodings=("greedy",), samples=None) if style else how)
    scores: dict[str, list[float]] = {}
    for row in answered:
        kind, _, detail = row["metric"].partition(",")
        is_style = kind == "style" and row["decoding"] == "greedy"
        if is_style or row["metric"] == METRIC:
            scores.setdefault(f"style {detail}" if is_style else row["decoding"], []).append(row["score"] or 0.0)
    return scores


def _choose(
    policy: Policy, tasks: Path, name: str, limit: int | None, report: Callable[[str], None]
) -> list[tuple[float, float]]:
    """Per item its score and how well it may be known: the rank of a fact, the wrong share of a myth."""
    report(f"{name}")
    lines = (tasks / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = evaluate(policy, load_task(name, task_folder=tasks), EvalProtocol(limit))
    scores = {row["item"]: row["score"] or 0.0 for row in rows if row["metric"] == "acc,none"}
    documents = {item: json.loads(lines[item]) for item in scores}
    return [(scores[item], float(one.get("wrong_share", one["rank"]))) for item, one in documents.items()]


def _quartiles(scored: Sequence[tuple[float, float]]) -> list[Share]:
    """Four equal parts, from the best to the least known."""
    ordered = [score for score, _ in sorted(scored, key=lambda pair: pair[1])]
    bounds = [round(len(ordered) * part / 4) for part in range(5)]
    return [Share.of(ordered[low:high]) for low, high in itertools.pairwise(bounds)]


def _of(scores: Sequence[float], spare: Sequence[Problem], is_meant: Callable[[Problem], bool]) -> list[float]:
    return [score for score, problem in zip(scores, spare, strict=True) if is_meant(problem)]


def _by_operation(world: World, scores: Sequence[float], spare: Sequence[Problem]) -> list[dict[str, Any]]:
    """Of each rare operation, the most often seen first: how many documents of 20,000 hold it, and the base's score."""
    documents = list(itertools.islice(world.documents(KEPT), DOCUMENTS_COUNTED))
    found = []
    for operation in problems.RARE_OPERATIONS:
        words = operation.sentence.split("}")[-1]
        scored = _of(scores, spare, lambda problem, name=operation.name: problem.operation == name)  # type: ignore[misc]
        share = asdict(Share.of(scored)) if scored else None
        seen = sum(words in document for document in documents)
        found.append({"operation": operation.name, "num_documents": seen, "share": share})
    return sorted(found, key=lambda one: -one["num_documents"])
