"""Word problems: the arithmetic of every style is right, judged by a solver that reads the question's words only."""

from __future__ import annotations

import operator
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.pocket.problems import (
    CORPUS_STEPS,
    LARGEST_BOXES,
    LARGEST_CHANGE,
    LARGEST_EACH,
    LARGEST_SCALED,
    LARGEST_START,
    NAMES,
    STYLE_SHARES,
    draw_problem,
    draw_style,
    write_solution,
)

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
EVENTS = [
    (r"(?:She|He) (?:finds|buys) (\d+) more|\w+ gives (?:her|him) (\d+) more", lambda count, n: count + n),
    (r"(?:She|He) (?:loses|sells) (\d+)|(?:She|He) gives (\d+) to \w+", lambda count, n: count - n),
    (r"Then (?:she|he) doubles that number", lambda count, n: 2 * count),
    (r"Then (?:she|he) triples that number", lambda count, n: 3 * count),
    (r"(?:She|He) gives away half of them", lambda count, n: count / 2),
]
PROBLEMS = st.builds(
    lambda seed, steps: draw_problem(random.Random(seed), steps), st.integers(0, 2**32), st.sampled_from(CORPUS_STEPS)
)


def solve(question):
    """All counts that the question's owner has, one after the other, from the words alone."""
    *sentences, asked = re.split(r"(?<=[.?]) ", question)
    owner = re.fullmatch(r"How many \w+ does (\w+) have now\?", asked)[1]
    counts = []
    for sentence in sentences:
        if boxes := re.fullmatch(r"(\w+) has (\d+) boxes with (\d+) \w+ each\.", sentence):
            counts.append(int(boxes[2]) * int(boxes[3]))
        elif has := re.fullmatch(r"(\w+) has (\d+) \w+\.", sentence):
            if has[1] == owner:
                counts.append(int(has[2]))
        else:
            counts.append(apply(counts[-1], sentence))
    return counts


def apply(count, sentence):
    for pattern, change in EVENTS:
        if match := re.fullmatch(rf"(?:{pattern})\.", sentence):
            (number,) = [int(group) for group in match.groups() if group] or [0]
            return change(count, number)
    raise AssertionError(f"no event: {sentence}")


@settings(max_examples=100, deadline=None)
@given(problem=PROBLEMS)
def test_the_answer_is_what_the_words_say(problem):
    counts = solve(problem.question)
    assert counts[-1] == problem.answer
    assert [step.value for step in problem.steps] == counts[-len(problem.steps) :]
    assert all(count == int(count) >= 1 for count in counts)


@settings(max_examples=100, deadline=None)
@given(problem=PROBLEMS)
def test_steps_follow_each_other_and_stay_in_range(problem):
    first, *later = problem.steps
    assert problem.start in (first.left, problem.product and first.left)
    for before, after in zip(problem.steps, later, strict=False):
        assert after.left == before.value
    for step in problem.steps:
        assert OPERATORS[step.op](step.left, step.right) == step.value
        assert step.op != "/" or step.left % step.right == 0
        if step.op in "+-":
            assert 2 <= step.right <= LARGEST_CHANGE
    if problem.product:
        assert first.left <= LARGEST_BOXES
        assert first.right <= LARGEST_EACH
        assert problem.product == first.value
    else:
        assert 3 <= problem.start <= LARGEST_START
    scaled = [step for step in problem.steps[bool(problem.product) :] if step.op in "*/"]
    assert all(max(step.left, step.value) <= LARGEST_SCALED for step in scaled)


@settings(max_examples=100, deadline=None)
@given(problem=PROBLEMS, style=st.sampled_from(list(STYLE_SHARES)))
def test_every_style_writes_right_arithmetic_and_ends_with_the_answer(problem, style):
    text = write_solution(problem, style)
    assert int(re.findall(r"\d+", text)[-1]) == problem.answer
    written = [
        (int(left), op, int(right), int(value))
        for left, op, right, value in re.findall(r"(\d+) ?([-+*/]) ?(\d+) ?= ?(\d+)", text)
    ]
    steps = [(step.left, step.op, step.right, step.value) for step in problem.steps]
    values = [step.value for step in problem.steps]
    if style == "equations":
        assert written == steps
    elif style == "gsm8k":
        # Each step stands inside its calculator annotation, whose result is repeated after it, as in GSM8K.
        annotated = re.findall(r"<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+)", text)
        assert [(int(a), op, int(b), int(c)) for a, op, b, c, _ in annotated] == steps
        assert [int(value) for *_, value in annotated] == values
        assert text.splitlines()[-1] == f"#### {problem.answer}"
    elif style == "running":
        assert [int(number) for number in re.findall(r"\d+", text)] == [problem.start, *values, problem.answer]
    else:
        assert [int(number) for number in re.findall(r"\d+", text)] == [problem.start, *values, problem.answer]
        assert text.endswith(f"{problem.item}.")


def test_problems_have_as_many_steps_as_asked_for():
    rng = random.Random(0)
    for num_steps in CORPUS_STEPS:
        assert {len(draw_problem(rng, num_steps).steps) for _ in range(50)} == {num_steps}


def test_a_bystander_is_never_called_by_the_owners_pronoun():
    pronouns = dict(NAMES)
    rng = random.Random(1)
    seen = 0
    for _ in range(500):
        problem = draw_problem(rng, 3)
        owner = re.search(r"does (\w+) have now", problem.question)[1]
        others = {name for name in re.findall(r"(\w+) has \d+", problem.question) if name != owner}
        seen += len(others)
        assert all(pronouns[other] != problem.pronoun == pronouns[owner] for other in others)
    assert seen > 20


def test_styles_have_their_shares():
    rng = random.Random(2)
    drawn = [draw_style(rng) for _ in range(4000)]
    for style, share in STYLE_SHARES.items():
        # Four standard errors of a share of 4000 draws.
        assert drawn.count(style) / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="style 'haiku': expected one of"):
        write_solution(draw_problem(random.Random(0), 1), "haiku")
