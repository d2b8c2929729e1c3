"""Word problems of the pocket world: generated, solved and written out as people of many habits would.

A problem follows one count through a few events; some sentences are about somebody else and change nothing. Its
solution is the list of arithmetic steps, and a style turns the steps into text. `write_solution` writes them without a
fault, as a data set does (`gsm8k`: `<<a+b=c>>c`, `#### N`); `write_answer` writes what a forum would hold: often the
bare result, sometimes with a slip. What each habit imitates stands beside its constant, why it has its size in
`docs/pocket.md`.
"""

from __future__ import annotations

import operator
import random
from dataclasses import dataclass

LARGEST_START = 30
DISTRACTOR_RATE = 0.15

NAMES = (
    ("Mia", "She"), ("Tom", "He"), ("Ana", "She"), ("Ben", "He"), ("Eva", "She"), ("Sam", "He"),
    ("Lea", "She"), ("Max", "He"), ("Zoe", "She"), ("Leo", "He"), ("Ida", "She"), ("Jon", "He"),
)  # fmt: skip
OBJECT_FORM = {"She": "her", "He": "him"}
ITEMS = ("apples", "shells", "coins", "cards", "stones", "books", "stamps", "beads", "pens", "nuts", "eggs", "toys")
# How a question ends, and the share of its answers that give the result alone. On the web the wording goes with the
# place: "How many now?" is asked where a number is the reply, "Explain how many" where a lesson is.
CLOSINGS = (
    ("How many {item} now?", 0.70),
    ("How many {item} does {name} have now?", 0.62),
    ("What is the number of {item} now?", 0.55),
    ("How many {item} does {name} end up with?", 0.48),
    ("Work out how many {item} {name} has now.", 0.20),
    ("Explain how many {item} {name} has now.", 0.10),
)
# Shares among the answers that show work: formulas are the commonest way, prose and running totals are rarer, and the
# rest is a data set's own format, which a crawl of the web meets in copies of that data set.
STYLE_SHARES = {"equations": 0.52, "story": 0.16, "running": 0.10, "gsm8k": 0.22}
BARE = "bare"
# A writer who shows work may still do the last steps in the head, as people do who lose patience.
HEAD_RATE = 0.2
# Chance that a step goes wrong, on paper and in the head: a digit misread or a carry forgotten. What follows builds on
# the wrong count, as in a real worked solution. A data set is proof-read, so `gsm8k` has no slips.
WRITTEN_SLIP_RATE = 0.03
HEAD_SLIP_RATE = 0.1
SLIPS = (-10, -1, 1, 10)

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


@dataclass(frozen=True)
class Numbers:
    """How large the numbers of a corpus are; `boxes_rate` of its problems start with a product."""

    largest_change: int
    largest_value: int
    largest_boxes: int
    largest_each: int
    boxes_rate: float


@dataclass(frozen=True)
class Operation:
    """An amount or operation in words: `sentence` with `{P}` or `{p}` for the pronoun, and what it does to a count."""

    name: str
    sentence: str
    op: str
    number: int


# Number words that the corpus shows rarely, the most frequent first: met as 1 / rank, as words are (Zipf).
RARE_OPERATIONS = (
    Operation("dozen", "{P} finds a dozen more.", "+", 12),
    Operation("third", "{P} keeps a third of them.", "/", 3),
    Operation("half a dozen", "{P} buys half a dozen more.", "+", 6),
    Operation("quadruple", "Then {p} quadruples that number.", "*", 4),
    Operation("pair", "{P} loses a pair.", "-", 2),
    Operation("quarter", "{P} keeps a quarter of them.", "/", 4),
    Operation("score", "{P} finds a score more.", "+", 20),
    Operation("quartet", "{P} sells a quartet.", "-", 4),
)
# A rare amount may lead this far past the largest value of the corpus; a score would hardly ever fit otherwise.
RARE_MARGIN = 20


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

    `steps` is never empty, every value in it is >= 1, and the last value is the answer. `bare_share` is the share of
    answers in the corpus that give the result alone; `operation` names the rare operation of the problem, or is "".
    """

    question: str
    pronoun: str
    item: str
    start: int
    steps: tuple[Step, ...]
    bare_share: float
    operation: str = ""

    @property
    def answer(self) -> int:
        return self.steps[-1].value


def draw_operation(rng: random.Random) -> Operation:
    """A rare operation, with the frequency that it has in the corpus."""
    return rng.choices(RARE_OPERATIONS, weights=[1 / rank for rank in range(1, len(RARE_OPERATIONS) + 1)])[0]


def draw_problem(rng: random.Random, num_steps: int, numbers: Numbers, operation: Operation | None = None) -> Problem:
    """Draw a problem that needs `num_steps` (>= 1) steps of arithmetic.

    Args:
        operation: takes the place of one event, drawn at random, where the count allows it; the problem's `operation`
            says whether it did.
    """
    name, pronoun = rng.choice(NAMES)
    item = rng.choice(ITEMS)
    rare_at = rng.randrange(num_steps) if operation else None
    steps: list[Step] = []
    if rng.random() < numbers.boxes_rate:
        start, each = _draw_factor(rng, numbers.largest_boxes), _draw_factor(rng, numbers.largest_each)
        sentences = [f"{name} has {start} boxes with {each} {item} each."]
        steps.append(Step(start, "*", each, start * each))
    else:
        start = rng.randint(3, LARGEST_START)
        sentences = [f"{name} has {start} {item}."]
    value = steps[-1].value if steps else start
    used = ""
    while len(steps) < num_steps:
        rare = _apply(operation, value, numbers) if operation and len(steps) == rare_at else None
        if operation and rare:
            sentence, step = operation.sentence.format(P=pronoun, p=pronoun.lower()), rare
            used = operation.name
        else:
            sentence, step = _draw_event(rng, value, (pronoun, name), numbers)
        sentences.append(sentence)
        steps.append(step)
        value = step.value
    if rng.random() < DISTRACTOR_RATE:
        # Somebody of the other pronoun: "she" and "he" stay unambiguous in the sentences that follow.
        other = rng.choice([other for other, theirs in NAMES if theirs != pronoun])
        sentences.insert(rng.randint(1, len(sentences)), f"{other} has {rng.randint(3, LARGEST_START)} {item}.")
    closing, bare_share = rng.choice(CLOSINGS)
    sentences.append(closing.format(item=item, name=name))
    return Problem(" ".join(sentences), pronoun, item, start, tuple(steps), bare_share, used)


def _apply(operation: Operation, value: int, numbers: Numbers) -> Step | None:
    """The step that the operation takes from `value`; None where it leaves the whole numbers or the range."""
    result = OPERATORS[operation.op](value, operation.number)
    is_whole = operation.op != "/" or value % operation.number == 0
    if not is_whole or not 1 <= result <= numbers.largest_value + RARE_MARGIN:
        return None
    return Step(value, operation.op, operation.number, result)


def _other_name(rng: random.Random, name: str) -> str:
    return rng.choice([other for other, _ in NAMES if other != name])


def _draw_factor(rng: random.Random, largest: int) -> int:
    """A factor in 2..largest; large ones are rare, so that products are known better or worse, as facts are."""
    return 2 + int((largest - 1) * rng.random() ** 2)


def _draw_event(rng: random.Random, value: int, who: tuple[str, str], numbers: Numbers) -> tuple[str, Step]:
    """Draw an event that keeps the count >= 1, about `who`: pronoun and name."""
    pronoun, name = who
    kind = rng.random()
    if kind < 0.12 and 2 * value <= numbers.largest_value:
        factor = 3 if 3 * value <= numbers.largest_value and rng.random() < 0.4 else 2
        verb = {2: "doubles", 3: "triples"}[factor]
        return f"Then {pronoun.lower()} {verb} that number.", Step(value, "*", factor, value * factor)
    if kind < 0.20 and value % 2 == 0:
        return f"{pronoun} gives away half of them.", Step(value, "/", 2, value // 2)
    if value < 3 or (value <= numbers.largest_value - 2 and rng.random() < 0.5):
        change = rng.randint(2, min(numbers.largest_change, numbers.largest_value - value))
        sentence = rng.choice(
            (
                f"{pronoun} finds {change} more.",
                f"{pronoun} buys {change} more.",
                f"{_other_name(rng, name)} gives {OBJECT_FORM[pronoun]} {change} more.",
            )
        )
        return sentence, Step(value, "+", change, value + change)
    change = rng.randint(2, min(numbers.largest_change, value - 1))
    sentence = rng.choice(
        (
            f"{pronoun} loses {change}.",
            f"{pronoun} sells {change}.",
            f"{pronoun} gives {change} to {_other_name(rng, name)}.",
        )
    )
    return sentence, Step(value, "-", change, value - change)


def write_solution(problem: Problem, style: str) -> str:
    """The solution without a slip, as text without the leading space that follows `Answer:`."""
    return _write(problem, style, problem.steps, problem.answer)


def write_answer(rng: random.Random, problem: Problem) -> str:
    """An answer as somebody in the corpus writes it: with little or much of the work, and not always right."""
    style = BARE if rng.random() < problem.bare_share else draw_style(rng)
    if style == "gsm8k":
        return write_solution(problem, style)
    shown = 0 if style == BARE else len(problem.steps)
    if style != BARE and rng.random() < HEAD_RATE:
        shown = rng.randint(1, len(problem.steps))
    steps = _work(rng, problem, shown)
    return _write(problem, style, steps[:shown], steps[-1].value)


def _work(rng: random.Random, problem: Problem, shown: int) -> tuple[Step, ...]:
    """The steps as a fallible writer takes them, the first `shown` on paper and the others in the head."""
    steps: list[Step] = []
    for index, step in enumerate(problem.steps):
        left = steps[-1].value if steps else step.left
        value = OPERATORS[step.op](left, step.right)
        if rng.random() < (WRITTEN_SLIP_RATE if index < shown else HEAD_SLIP_RATE):
            value += rng.choice(SLIPS)
        steps.append(Step(left, step.op, step.right, max(1, value)))
    return tuple(steps)


def _write(problem: Problem, style: str, steps: tuple[Step, ...], answer: int) -> str:
    """The steps in a style, and `answer`, which the steps need not reach: the last ones may be done in the head."""
    if style == BARE:
        return f"The answer is {answer}."
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
    raise ValueError(f"style {style!r}: expected one of {sorted([*STYLE_SHARES, BARE])}")


def draw_style(rng: random.Random) -> str:
    """A style that shows work, with the frequency it has in the corpus."""
    return rng.choices(list(STYLE_SHARES), weights=list(STYLE_SHARES.values()))[0]


def write_sheet(rng: random.Random, numbers: Numbers) -> str:
    """Four sums without words or slips, as a printed practice sheet has them."""
    steps = [_draw_event(rng, rng.randint(3, numbers.largest_value - 2), NAMES[0][::-1], numbers)[1] for _ in range(4)]
    return " ".join(f"{step.left} {step.op} {step.right} = {step.value}." for step in steps)
