"""Word problems of the pocket world: generated, solved and written out in several natural styles.

A problem follows one count through a few events; some events are about somebody else and change nothing. Its solution
is the list of arithmetic steps, and a style turns the steps into text. The style `gsm8k` is that of the GSM8K data set
(`<<a+b=c>>c`, `#### N`); in the corpus it is rare, so that post-training has something to bring forward rather than
something to invent (`docs/pocket.md` says how each constant was chosen).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LARGEST_START = 30
LARGEST_CHANGE = 30
LARGEST_SCALED = 99
LARGEST_BOXES, LARGEST_EACH = 24, 40
BOXES_RATE = 0.5
CORPUS_STEPS = (1, 2, 3, 4, 5)
DISTRACTOR_RATE = 0.15

NAMES = (
    ("Mia", "She"), ("Tom", "He"), ("Ana", "She"), ("Ben", "He"), ("Eva", "She"), ("Sam", "He"),
    ("Lea", "She"), ("Max", "He"), ("Zoe", "She"), ("Leo", "He"), ("Ida", "She"), ("Jon", "He"),
)  # fmt: skip
OBJECT_FORM = {"She": "her", "He": "him"}
ITEMS = ("apples", "shells", "coins", "cards", "stones", "books", "stamps", "beads", "pens", "nuts", "eggs", "toys")
STYLE_SHARES = {"equations": 0.45, "story": 0.25, "running": 0.20, "gsm8k": 0.10}


@dataclass(frozen=True)
class Step:
    """One line of arithmetic: `left op right = value`."""

    left: int
    op: str
    right: int
    value: int


@dataclass(frozen=True)
class Problem:
    """A question, the steps that solve it and the words its solution needs.

    `steps` is never empty, every value in it is >= 1, and the last value is the answer.
    """

    question: str
    pronoun: str
    item: str
    start: int
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        return self.steps[-1].value

    @property
    def product(self) -> int:
        """The product that the problem starts with; 0 if it starts with a plain count."""
        first = self.steps[0]
        return first.value if first.op == "*" and self.question.split(" ", 4)[3] == "boxes" else 0


def draw_problem(rng: random.Random, num_steps: int) -> Problem:
    """Draw a problem that needs `num_steps` (>= 1) steps of arithmetic."""
    name, pronoun = rng.choice(NAMES)
    item = rng.choice(ITEMS)
    steps: list[Step] = []
    if rng.random() < BOXES_RATE:
        start, each = _draw_factor(rng, LARGEST_BOXES), _draw_factor(rng, LARGEST_EACH)
        sentences = [f"{name} has {start} boxes with {each} {item} each."]
        steps.append(Step(start, "*", each, start * each))
    else:
        start = rng.randint(3, LARGEST_START)
        sentences = [f"{name} has {start} {item}."]
    value = steps[-1].value if steps else start
    while len(steps) < num_steps:
        sentence, step = _draw_event(rng, value, pronoun, name)
        sentences.append(sentence)
        steps.append(step)
        value = step.value
    if rng.random() < DISTRACTOR_RATE:
        # Somebody of the other pronoun: "she" and "he" stay unambiguous in the sentences that follow.
        other = rng.choice([other for other, theirs in NAMES if theirs != pronoun])
        sentences.insert(rng.randint(1, len(sentences)), f"{other} has {rng.randint(3, LARGEST_START)} {item}.")
    sentences.append(f"How many {item} does {name} have now?")
    return Problem(" ".join(sentences), pronoun, item, start, tuple(steps))


def _other_name(rng: random.Random, name: str) -> str:
    return rng.choice([other for other, _ in NAMES if other != name])


def _draw_factor(rng: random.Random, largest: int) -> int:
    """A factor in 2..largest; large ones are rare, so that products are known better or worse, as facts are."""
    return 2 + int((largest - 1) * rng.random() ** 2)


def _draw_event(rng: random.Random, value: int, pronoun: str, name: str) -> tuple[str, Step]:
    """Draw an event that keeps the count >= 1."""
    kind = rng.random()
    if kind < 0.12 and 2 * value <= LARGEST_SCALED:
        factor = 3 if 3 * value <= LARGEST_SCALED and rng.random() < 0.4 else 2
        verb = {2: "doubles", 3: "triples"}[factor]
        return f"Then {pronoun.lower()} {verb} that number.", Step(value, "*", factor, value * factor)
    if kind < 0.20 and value % 2 == 0 and value <= LARGEST_SCALED:
        return f"{pronoun} gives away half of them.", Step(value, "/", 2, value // 2)
    if value < 3 or rng.random() < 0.5:
        change = rng.randint(2, LARGEST_CHANGE)
        sentence = rng.choice(
            (
                f"{pronoun} finds {change} more.",
                f"{pronoun} buys {change} more.",
                f"{_other_name(rng, name)} gives {OBJECT_FORM[pronoun]} {change} more.",
            )
        )
        return sentence, Step(value, "+", change, value + change)
    change = rng.randint(2, min(LARGEST_CHANGE, value - 1))
    sentence = rng.choice(
        (
            f"{pronoun} loses {change}.",
            f"{pronoun} sells {change}.",
            f"{pronoun} gives {change} to {_other_name(rng, name)}.",
        )
    )
    return sentence, Step(value, "-", change, value - change)


def write_solution(problem: Problem, style: str) -> str:
    """The solution as text, without the leading space that follows `Answer:`."""
    steps, answer = problem.steps, problem.answer
    if style == "gsm8k":
        sums = [f"{s.left}{s.op}{s.right}" for s in steps]
        lines = [
            f"{problem.pronoun} has {text}=<<{text}={s.value}>>{s.value} {problem.item}."
            for text, s in zip(sums, steps, strict=True)
        ]
        return "\n".join([*lines, f"#### {answer}"])
    if style == "equations":
        return " ".join([*(f"{s.left} {s.op} {s.right} = {s.value}." for s in steps), f"The answer is {answer}."])
    if style == "story":
        counts = [f"Then there are {s.value}." for s in steps]
        return " ".join([f"First there are {problem.start}.", *counts, f"So there are {answer} {problem.item}."])
    if style == "running":
        return ", ".join([str(problem.start), *(str(s.value) for s in steps)]) + f". Answer: {answer}"
    raise ValueError(f"style {style!r}: expected one of {sorted(STYLE_SHARES)}")


def draw_style(rng: random.Random) -> str:
    """A style, with the frequency it has in the corpus."""
    return rng.choices(list(STYLE_SHARES), weights=list(STYLE_SHARES.values()))[0]
