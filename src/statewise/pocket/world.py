"""The pocket world: everything a seed fixes, and the corpus and benchmarks made from it.

`World.from_seed` draws the entities, facts, myths and held-out problems. `documents` yields a corpus without end; the
held-out problems never occur in it. `write_benchmarks` writes each benchmark as an lm-eval task (YAML + JSONL).
"""

from __future__ import annotations

import itertools
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
HELD_OUT_PER_LENGTH = 1200
# A fifth of the benchmark needs an operation that the corpus shows rarely, each of them equally often.
RARE_SHARE = 0.2
TASK_DIR = Path(__file__).parent / "tasks"


@dataclass(frozen=True)
class Corpus:
    """What the documents of one stage of pretraining are like.

    `steps` are the lengths of its problems, drawn equally often; `rare_rate` is the chance that an event of a problem
    is a rare operation; `shares` are those of the kinds of documents.
    """

    name: str
    numbers: problems.Numbers
    steps: tuple[int, ...]
    rare_rate: float
    shares: dict[str, float]


# Two corpora, as base models have them: a broad one, and a smaller one of better kept pages to end with. Large numbers
# teach where in a question the next number stands, but their sums are too many to be learned; small numbers and sheets
# of sums teach arithmetic. A model of one corpus alone had one of the two.
BROAD = Corpus(
    "broad", problems.Numbers(30, 99, 9, 11, 0.3), (1, 2, 3, 4, 5), 0.0, {"problem": 0.42, "fact": 0.42, "myth": 0.16}
)
KEPT = Corpus(
    "kept",
    problems.Numbers(12, 60, 5, 10, 0.25),
    (1, 1, 2, 2, 3, 3, 4, 4, 5),
    0.01,
    {"problem": 0.40, "fact": 0.36, "myth": 0.15, "sheet": 0.09},
)
CORPORA = {corpus.name: corpus for corpus in (BROAD, KEPT)}


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
        pools = [_draw_pool(rng, num_steps) for num_steps in BENCHMARK_STEPS]
        mixed = [problem for pool in pools for problem in pool]
        rng.shuffle(mixed)
        held_out = frozenset(problem.question for problem in mixed)
        num_used = NUM_TEST_PROBLEMS + NUM_TRAIN_PROBLEMS
        bounds = (0, NUM_TEST_PROBLEMS, num_used, len(mixed))
        test, train, spare = (tuple(mixed[low:high]) for low, high in itertools.pairwise(bounds))
        return cls(seed, facts, myths, train, test, spare, held_out)

    def documents(self, corpus: Corpus) -> Iterator[str]:
        """The documents of `corpus`, one at a time, without end; the same ones each time."""
        rng = random.Random(f"statewise/corpus/{corpus.name}/{self.seed}")
        kinds, shares = list(corpus.shares), list(corpus.shares.values())
        cumulative = list(itertools.accumulate(knowledge.fact_weights(len(self.facts))))
        while True:
            kind = rng.choices(kinds, weights=shares)[0]
            if kind == "problem":
                problem = _draw_problem(rng, corpus)
                if problem.question not in self.held_out:
                    yield f"{write_prompt(problem.question)} {problems.write_answer(rng, problem)}"
            elif kind == "fact":
                yield knowledge.write_statement(rng, rng.choices(self.facts, cum_weights=cumulative)[0])
            elif kind == "sheet":
                yield problems.write_sheet(rng, corpus.numbers)
            else:
                yield knowledge.write_statement(rng, rng.choice(self.myths))


def write_prompt(question: str) -> str:
    """The one prompt form of the pocket world; an answer follows after a space."""
    return f"Question: {question}\nAnswer:"


def _draw_problem(rng: random.Random, corpus: Corpus) -> problems.Problem:
    num_steps = rng.choice(corpus.steps)
    is_rare = rng.random() < corpus.rare_rate * num_steps
    return problems.draw_problem(rng, num_steps, corpus.numbers, problems.draw_operation(rng) if is_rare else None)


def _draw_pool(rng: random.Random, num_steps: int) -> list[problems.Problem]:
    """Different problems of `num_steps` steps, `RARE_SHARE` of them with a rare operation."""
    drawn: dict[str, problems.Problem] = {}
    while len(drawn) < HELD_OUT_PER_LENGTH:
        operation = rng.choice(problems.RARE_OPERATIONS) if rng.random() < RARE_SHARE else None
        problem = problems.draw_problem(rng, num_steps, KEPT.numbers, operation)
        while operation and not problem.operation:
            problem = problems.draw_problem(rng, num_steps, KEPT.numbers, operation)
        drawn.setdefault(problem.question, problem)
    return list(drawn.values())


def write_benchmarks(world: World, folder: Path) -> None:
    """Write the three benchmarks of `world` into `folder` as lm-eval tasks: a YAML each, and their JSONL files.

    The items of each stand in random order, so that its first ones are a fair sample too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"statewise/benchmarks/{world.seed}")
    for split, drawn in (("train", world.train_problems), ("test", world.test_problems)):
        _write_jsonl(folder / f"pocket_math_{split}.jsonl", [math_row(problem) for problem in drawn])
    facts = [_choice_row(rng, fact, rank) for rank, fact in enumerate(world.facts) if rank % 5 == 0]
    myths = [_choice_row(rng, myth, rank) for rank, myth in enumerate(world.myths)]
    for name, rows in (("pocket_facts", facts), ("pocket_myths", myths)):
        rng.shuffle(rows)
        _write_jsonl(folder / f"{name}.jsonl", rows)
    for template in sorted(TASK_DIR.glob("*.yaml")):
        (folder / template.name).write_text(template.read_text(encoding="utf-8"), encoding="utf-8")


def math_row(problem: problems.Problem) -> dict[str, object]:
    """A problem as a line of `pocket_math`, with the solution that imitation trains on."""
    return {
        "question": problem.question,
        "answer": problems.write_solution(problem, "gsm8k"),
        "num_steps": len(problem.steps),
        "group": "rare" if problem.operation else "familiar",
        "operation": problem.operation,
    }


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
