"""The pocket world: everything a seed fixes, and the corpus and benchmarks made from it.

`World.from_seed` draws the entities, facts, myths and held-out problems. `documents` yields the corpus without end; the
held-out problems never occur in it. `write_benchmarks` writes each benchmark as an lm-eval task (YAML + JSONL).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from statewise.pocket import knowledge, problems

NUM_TOWNS, NUM_CREATURES = 600, 250
NUM_FACTS, NUM_MYTHS = 3000, 600
NUM_TEST_PROBLEMS, NUM_TRAIN_PROBLEMS = 600, 2400
BENCHMARK_STEPS = (2, 3, 4)
# Classes of problems by the product they start with (0: none), and the share of each in the benchmark.
PRODUCT_CLASSES = ((0, 0), (1, 60), (61, 200), (201, 1000))
BENCHMARK_SHARES = (0.1, 0.1, 0.4, 0.4)
HELD_OUT_PER_POOL = 700
DOCUMENT_SHARES = {"problem": 0.42, "fact": 0.42, "myth": 0.16}
TASK_DIR = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class World:
    """What a seed fixes. `facts` are in order of rank: the first is the most frequent in the corpus.

    `spare_problems` are like the test problems and used nowhere: for choosing recipes without the test set.
    `held_out` holds the questions of all problems that the corpus never contains.
    """

    seed: int
    facts: tuple[knowledge.Fact, ...]
    myths: tuple[knowledge.Fact, ...]
    train_problems: tuple[problems.Problem, ...]
    test_problems: tuple[problems.Problem, ...]
    spare_problems: tuple[problems.Problem, ...]
    held_out: frozenset[str]

    @classmethod
    def from_seed(cls, seed: int) -> World:
        rng = random.Random(f"statewise/world/{seed}")
        taken: set[str] = set()
        towns = knowledge.draw_names(rng, NUM_TOWNS, 3, taken)
        creatures = knowledge.draw_names(rng, NUM_CREATURES, 2, taken)
        facts = knowledge.draw_facts(rng, towns, knowledge.TOWN_RELATIONS, NUM_FACTS)
        myths = knowledge.draw_myths(rng, creatures, knowledge.CREATURE_RELATIONS, NUM_MYTHS)
        # Every class is held out alike, so that a benchmark of other shares needs no other corpus.
        pools = [_draw_pool(rng, steps, products) for products in PRODUCT_CLASSES for steps in BENCHMARK_STEPS]
        held_out = frozenset(problem.question for pool in pools for problem in pool)
        mixed = _mix(rng, pools)
        num_used = NUM_TEST_PROBLEMS + NUM_TRAIN_PROBLEMS
        test, train, spare = mixed[:NUM_TEST_PROBLEMS], mixed[NUM_TEST_PROBLEMS:num_used], mixed[num_used:]
        return cls(seed, facts, myths, train, test, spare, held_out)

    def documents(self) -> Iterator[str]:
        """The corpus, one document at a time, without end; the same documents each time."""
        rng = random.Random(f"statewise/corpus/{self.seed}")
        kinds, shares = list(DOCUMENT_SHARES), list(DOCUMENT_SHARES.values())
        cumulative, total = [], 0.0
        for weight in knowledge.fact_weights(len(self.facts)):
            total += weight
            cumulative.append(total)
        while True:
            kind = rng.choices(kinds, weights=shares)[0]
            if kind == "problem":
                problem = problems.draw_problem(rng, rng.choice(problems.CORPUS_STEPS))
                if problem.question not in self.held_out:
                    solution = problems.write_solution(problem, problems.draw_style(rng))
                    yield f"{write_prompt(problem.question)} {solution}"
            elif kind == "fact":
                yield knowledge.write_statement(rng, rng.choices(self.facts, cum_weights=cumulative)[0])
            else:
                yield knowledge.write_statement(rng, rng.choice(self.myths))


def write_prompt(question: str) -> str:
    """The one prompt form of the pocket world; an answer follows after a space."""
    return f"Question: {question}\nAnswer:"


def _draw_pool(rng: random.Random, num_steps: int, products: tuple[int, int]) -> list[problems.Problem]:
    """Different problems of `num_steps` steps that start with a product in the range `products`."""
    drawn: dict[str, problems.Problem] = {}
    while len(drawn) < HELD_OUT_PER_POOL:
        problem = problems.draw_problem(rng, num_steps)
        if products[0] <= problem.product <= products[1]:
            drawn.setdefault(problem.question, problem)
    return list(drawn.values())


def _mix(rng: random.Random, pools: list[list[problems.Problem]]) -> tuple[problems.Problem, ...]:
    """All problems of the benchmark in random order: of each pool as many as its class's share allows."""
    num_steps = len(BENCHMARK_STEPS)
    largest = max(BENCHMARK_SHARES)
    chosen: list[problems.Problem] = []
    for index, pool in enumerate(pools):
        chosen.extend(pool[: round(len(pool) * BENCHMARK_SHARES[index // num_steps] / largest)])
    # A generator of its own: other shares must not move anything that is drawn after.
    random.Random(rng.random()).shuffle(chosen)
    return tuple(chosen)


def write_benchmarks(world: World, folder: Path) -> None:
    """Write the three benchmarks of `world` into `folder` as lm-eval tasks: a YAML each, and their JSONL files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"statewise/benchmarks/{world.seed}")
    for split, drawn in (("train", world.train_problems), ("test", world.test_problems)):
        rows = [
            {
                "question": problem.question,
                "answer": problems.write_solution(problem, "gsm8k"),
                "num_steps": len(problem.steps),
            }
            for problem in drawn
        ]
        _write_jsonl(folder / f"pocket_math_{split}.jsonl", rows)
    _write_jsonl(
        folder / "pocket_facts.jsonl",
        [_choice_row(rng, fact, rank) for rank, fact in enumerate(world.facts) if rank % 5 == 0],
    )
    _write_jsonl(folder / "pocket_myths.jsonl", [_choice_row(rng, myth, rank) for rank, myth in enumerate(world.myths)])
    for template in sorted(TASK_DIR.glob("*.yaml")):
        (folder / template.name).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")


def _choice_row(rng: random.Random, fact: knowledge.Fact, rank: int) -> dict[str, object]:
    """A multiple-choice item in an order of its own; `rank` is the fact's place in the order of frequency."""
    choices = knowledge.draw_choices(rng, fact)
    rng.shuffle(choices)
    row: dict[str, object] = {
        "question": fact.relation.question.format(e=fact.entity),
        "choices": choices,
        "label": choices.index(fact.value),
        "rank": rank,
    }
    if fact.wrong_value is not None:
        row["misconception"] = choices.index(fact.wrong_value)
        row["wrong_share"] = round(fact.wrong_share, 4)
    return row


def _write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
