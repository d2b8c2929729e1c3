"""Rewards of a user's own data: the named ones by hand, and functions that do what they should not."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from statewise.errors import UsageError
from statewise.storage.records import digest_file
from statewise.tasks import rewards
from statewise.tasks.rewards import file_of_reward, make_reward


def score(reward, answer, right):
    return make_reward(reward, "a")("p", answer, {"a": right})


@pytest.mark.parametrize(
    ("reward", "answer", "right", "expected"),
    [
        ("exact_match", " 42\n", "42", 1.0),
        ("exact_match", "42.", "42", 0.0),
        ("contains", "it is 42, I think", " 42 ", 1.0),
        ("contains", "it is 4", "42", 0.0),
        ("math", "3 + 4 = 7, so 7 apples.", "#### 7", 1.0),
        ("math", "1,234", "so 1234", 1.0),
        ("math", "7.0", "7", 1.0),
        ("math", "-3", "3", 0.0),
        ("math", "none", "3", 0.0),
        ("math", "costs $1,000.50.", "1000.5", 1.0),
        (r"regex:answer: (\w+)", "answer: yes. answer: no", "answer: no", 1.0),
        (r"regex:answer: (\w+)", "no", "answer: no", 0.0),
        (r"regex:[A-D]", "B or C", "C", 1.0),
    ],
)
def test_a_named_reward_by_hand(reward, answer, right, expected):
    assert score(reward, answer, right) == expected


@pytest.mark.parametrize(("reward", "right"), [("math", "no number"), ("regex:[0-9]", "none")])
def test_a_completion_that_has_nothing_to_compare_with_cannot_be_scored(reward, right):
    assert math.isnan(score(reward, "5", right))


@given(st.integers(), st.text(alphabet="abc .,", max_size=5))
def test_a_whole_number_is_found_at_the_end_of_any_text(number, before):
    assert score("math", f"{before} {number}", f"{number:,}") == 1.0


@pytest.mark.parametrize(
    ("reward", "told"),
    [
        ("regex:(", "data.reward 'regex:\\(': no regular expression: missing"),
        ("regex:", "data.reward 'regex:': needs a pattern after the colon"),
    ],
)
def test_a_pattern_that_is_none_is_refused(reward, told):
    with pytest.raises(UsageError, match=told):
        make_reward(reward, "a")


@pytest.mark.parametrize(
    ("reward", "path"),
    [("a.py:f", "a.py"), ("/b/a.py:f", "/b/a.py"), ("math", None), ("regex:x.py:f", "regex:x.py"), ("a.py", None)],
)
def test_the_file_of_a_reward(reward, path):
    assert file_of_reward(reward) == path


FUNCTIONS = """
import time

def fine(prompt, completion, row):
    return len(completion) / row["most"]

def yes(prompt, completion, row):
    return True

def raises(prompt, completion, row):
    return row["nothing"]

def sleeps(prompt, completion, row):
    time.sleep(60)

def loops(prompt, completion, row):
    while True:
        pass

def text(prompt, completion, row):
    return "0.5"

def nothing(prompt, completion, row):
    return float("nan")

def two(prompt, completion, row):
    return 2.0

def prints(prompt, completion, row):
    print("x" * 10**6)
    return 1

def numpy_says(prompt, completion, row):
    import numpy
    return numpy.bool_(completion == "ab")

def writes_bytes(prompt, completion, row):
    import sys
    sys.stdout.buffer.write(b"x" * 10**6)
    return 1

def leaves(prompt, completion, row):
    raise SystemExit(0)

def catches(prompt, completion, row):
    try:
        time.sleep(60)
    except Exception:
        pass
    return 0.0

def retries(prompt, completion, row):
    for _ in range(3):
        try:
            time.sleep(60)
        except BaseException:
            pass
    return 1.0

def changes(prompt, completion, row):
    row.clear()
    return 1
"""


@pytest.fixture
def function(tmp_path):
    (tmp_path / "own.py").write_text(FUNCTIONS)
    return lambda name: make_reward(f"{tmp_path / 'own.py'}:{name}", "")


def test_a_function_is_given_prompt_answer_and_row(function):
    row = {"most": 4}
    assert function("fine")("p", "ab", row) == 0.5
    assert function("yes")("p", "ab", row) == 1.0
    assert function("changes")("p", "ab", row) == 1.0
    assert (function("numpy_says")("p", "ab", row), function("numpy_says")("p", "b", row)) == (1.0, 0.0)
    assert row == {"most": 4}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raises", "raised KeyError: 'nothing'"),
        ("text", "returned '0.5', which is no number"),
        ("nothing", "returned nan, which is no number"),
        ("sleeps", "took more than 0.2 s"),
        ("loops", "took more than 0.2 s"),
        ("catches", "took more than 0.2 s"),
        ("retries", "took more than 0.2 s"),
        ("leaves", "raised SystemExit: 0"),
    ],
)
def test_a_function_that_gives_no_reward_gives_nan_and_says_why(function, monkeypatch, name, why):
    monkeypatch.setattr(rewards, "LIMIT_S", 0.2)
    began = time.monotonic()
    assert math.isnan(function(name)("p", "a", {}))
    assert function(name).problem("p", "a", {}) == why
    assert time.monotonic() - began < 5


def test_a_reward_outside_of_0_to_1_is_refused(function):
    with pytest.raises(UsageError, match=r"reward own\.py:two: returned 2\.0; a reward is a number from 0 to 1"):
        function("two")("p", "a", {})


def test_what_a_function_prints_is_not_shown(function, capfd):
    assert (function("prints")("p", "a", {}), function("writes_bytes")("p", "a", {})) == (1.0, 1.0)
    assert capfd.readouterr() == ("", "")


def test_a_file_without_the_function_and_one_that_cannot_be_imported_are_named(function, tmp_path):
    with pytest.raises(UsageError, match=r"own\.py has no function 'fin'; it has fine, yes"):
        function("fin")
    (tmp_path / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(UsageError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        make_reward(f"{tmp_path / 'broken.py'}:f", "")
    (tmp_path / "leaving.py").write_text("import sys\nprint('hello')\nsys.exit(0)")
    with pytest.raises(UsageError, match=r"leaving\.py cannot be imported: SystemExit: 0"):
        make_reward(f"{tmp_path / 'leaving.py'}:f", "")


def test_a_file_that_changed_since_the_study_was_read_is_refused(tmp_path):
    (tmp_path / "own.py").write_text("def f(prompt, completion, row): return 1")
    digest = digest_file(tmp_path / "own.py")
    assert make_reward(f"{tmp_path / 'own.py'}:f", "", digest)("p", "a", {}) == 1.0
    (tmp_path / "own.py").write_text("def f(prompt, completion, row): return 0")
    with pytest.raises(UsageError, match=r"own\.py changed since the study was read; run the same command again"):
        make_reward(f"{tmp_path / 'own.py'}:f", "", digest)
