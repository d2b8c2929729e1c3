"""Word problems: the arithmetic of every style is right, judged by a solver that reads the question's words only."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statewise.pocket.problems import (
    CLOSINGS,
    LARGEST_START,
    NAMES,
    OPERATORS,
    RARE_MARGIN,
    RARE_OPERATIONS,
    STYLE_SHARES,
    draw_operation,
    draw_problem,
    draw_style,
    write_answer,
    write_sheet,
    write_solution,
)
from statewise.pocket.world import BROAD, KEPT

EVENTS = [
    (r"(?:She|He) (?:finds|buys) (\d+) more|\w+ gives (?:her|him) (\d+) more", lambda count, n: count + n),
    (r"(?:She|He) (?:loses|sells) (\d+)|(?:She|He) gives (\d+) to \w+", lambda count, n: count - n),
    (r"Then (?:she|he) doubles that number", lambda count, n: 2 * count),
    (r"Then (?:she|he) triples that number", lambda count, n: 3 * count),
    (r"(?:She|He) gives away half of them", lambda count, n: count / 2),
    (r"(?:She|He) finds a dozen more", lambda count, n: count + 12),
    (r"(?:She|He) keeps a third of them", lambda count, n: count / 3),
    (r"(?:She|He) buys half a dozen more", lambda count, n: count + 6),
    (r"Then (?:she|he) quadruples that number", lambda count, n: 4 * count),
    (r"(?:She|He) loses a pair", lambda count, n: count - 2),
    (r"(?:She|He) keeps a quarter of them", lambda count, n: count / 4),
    (r"(?:She|He) finds a score more", lambda count, n: count + 20),
    (r"(?:She|He) sells a quartet", lambda count, n: count - 4),
]
CLOSED = "|".join(closing.format(item=r"\w+", name=r"\w+").replace("?", r"\?") for closing, _ in CLOSINGS)
STEPS = (1, 2, 3, 4, 5)
PROBLEMS = st.builds(
    lambda seed, steps, corpus, operation: draw_problem(random.Random(seed), steps, corpus.numbers, operation),
    st.integers(0, 2**32),
    st.sampled_from(STEPS),
    st.sampled_from((BROAD, KEPT)),
    st.sampled_from((None, *RARE_OPERATIONS)),
)


def solve(question):
    """All counts that the question's owner has, one after the other, from the words alone."""
    *sentences, asked = re.split(r"(?<=[.?]) ", question)
    assert re.fullmatch(CLOSED, asked)
    owner = re.match(r"(\w+) has", question)[1]
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
def test_steps_follow_each_other(problem):
    for before, after in itertools.pairwise(problem.steps):
        assert after.left == before.value
    for step in problem.steps:
        assert OPERATORS[step.op](step.left, step.right) == step.value
        assert step.op != "/" or step.left % step.right == 0


@pytest.mark.parametrize("corpus", [BROAD, KEPT], ids=lambda corpus: corpus.name)
def test_numbers_stay_in_the_range_of_their_corpus(corpus):
    rng, numbers = random.Random(3), corpus.numbers
    for _ in range(300):
        problem = draw_problem(rng, 4, numbers)
        first, *later = problem.steps
        if " boxes with " in problem.question:
            assert first.left <= numbers.largest_boxes
            assert first.right <= numbers.largest_each
        else:
            assert 3 <= problem.start <= LARGEST_START
            later = problem.steps
        assert all(2 <= step.right <= numbers.largest_change for step in later if step.op in "+-")
        assert max(step.value for step in later) <= numbers.largest_value
        rare = draw_problem(rng, 4, numbers, draw_operation(rng))
        assert max(step.value for step in rare.steps) <= numbers.largest_value + RARE_MARGIN


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
    for num_steps in STEPS:
        assert {len(draw_problem(rng, num_steps, KEPT.numbers).steps) for _ in range(50)} == {num_steps}


def test_a_bystander_is_never_called_by_the_owners_pronoun():
    pronouns = dict(NAMES)
    rng = random.Random(1)
    seen = 0
    for _ in range(500):
        problem = draw_problem(rng, 3, KEPT.numbers)
        owner = re.match(r"(\w+) has", problem.question)[1]
        others = {name for name in re.findall(r"(\w+) has \d+", problem.question) if name != owner}
        seen += len(others)
        assert all(pronouns[other] != problem.pronoun == pronouns[owner] for other in others)
    assert seen > 20


@pytest.mark.parametrize("operation", RARE_OPERATIONS, ids=lambda operation: operation.name)
def test_a_rare_operation_takes_the_place_of_one_event_and_is_named(operation):
    rng, words = random.Random(4), operation.sentence.partition("}")[2]
    problems = [draw_problem(rng, 3, KEPT.numbers, operation) for _ in range(200)]
    with_it = [problem for problem in problems if problem.operation]
    assert len(with_it) >= 10
    for problem in problems:
        assert problem.question.count(words) == (problem.operation == operation.name)
        assert problem.operation in ("", operation.name)
    places = {
        [step.op == operation.op and step.right == operation.number for step in problem.steps].index(True)
        for problem in with_it
    }
    assert places == {0, 1, 2}


def test_rare_operations_are_met_as_their_rank_says():
    rng = random.Random(5)
    drawn = [draw_operation(rng).name for _ in range(4000)]
    total = sum(1 / rank for rank in range(1, 9))
    for rank, operation in enumerate(RARE_OPERATIONS, start=1):
        share = 1 / rank / total
        assert drawn.count(operation.name) / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_bare_answers_are_as_frequent_as_the_closing_says_and_mostly_wrong_where_there_is_much_to_do():
    rng = random.Random(6)
    written = {closing: [] for closing, _ in CLOSINGS}
    for _ in range(6000):
        problem = draw_problem(rng, 4, KEPT.numbers)
        answer = write_answer(rng, problem)
        (closing,) = (c for c, share in CLOSINGS if share == problem.bare_share)
        written[closing].append((answer.startswith("The answer is"), answer.endswith(f" {problem.answer}.")))
    for closing, share in CLOSINGS:
        is_bare = [bare for bare, _ in written[closing]]
        assert sum(is_bare) / len(is_bare) == pytest.approx(share, abs=4 * (share * (1 - share) / len(is_bare)) ** 0.5)
    right = [is_right for answers in written.values() for bare, is_right in answers if bare]
    # Four steps in the head without a slip: .9^4 = .656; two slips that cancel each other, or that a halving swallows,
    # add little.
    assert sum(right) / len(right) == pytest.approx(0.656, abs=0.04)


def test_a_data_set_has_no_slips():
    rng = random.Random(7)
    for _ in range(500):
        problem = draw_problem(rng, 3, KEPT.numbers)
        answer = write_answer(rng, problem)
        if "####" in answer:
            assert answer == write_solution(problem, "gsm8k")


def test_work_that_is_cut_short_still_ends_with_an_answer():
    rng, lengths = random.Random(8), set()
    for _ in range(500):
        problem = draw_problem(rng, 3, KEPT.numbers)
        answer = write_answer(rng, problem)
        if re.match(r"\d+ [-+*/]", answer):
            lengths.add(answer.count("="))
            assert re.search(r"The answer is \d+\.$", answer)
    assert lengths == {1, 2, 3}


def test_sheets_are_right_sums_of_the_corpus_numbers():
    rng = random.Random(9)
    for _ in range(100):
        sums = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", write_sheet(rng, KEPT.numbers))
        assert len(sums) == 4
        assert all(OPERATORS[op](int(a), int(b)) == int(c) <= KEPT.numbers.largest_value for a, op, b, c in sums)


def test_styles_have_their_shares():
    rng = random.Random(2)
    drawn = [draw_style(rng) for _ in range(4000)]
    for style, share in STYLE_SHARES.items():
        # Four standard errors of a share of 4000 draws.
        assert drawn.count(style) / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="style 'haiku': expected one of"):
        write_solution(draw_problem(random.Random(0), 1, KEPT.numbers), "haiku")
