"""Given preferences: the file they come in, and that each is compared within itself."""

import numpy as np
import pytest
from toy_arm import make_setup, make_source, supervised_states

from statewise.batch import state_rows, states_of_rows
from statewise.errors import UsageError
from statewise.policy.texts import decode
from statewise.signals import SIGNALS
from statewise.states.pairs import GivenPair, read_pairs

GOOD = '{"index": 1, "chosen": " a", "rejected": " b"}\n'


def write(folder, text):
    path = folder / "pairs.jsonl"
    path.write_text(text, encoding="utf-8")
    return path


def test_pairs_are_read_line_by_line_and_blank_lines_are_passed_over(tmp_path):
    assert read_pairs(write(tmp_path, GOOD + "\n" + GOOD)) == (GivenPair(1, 1, " a", " b"), GivenPair(3, 1, " a", " b"))


@pytest.mark.parametrize("letter", ["\u2028", "\u0085", "\u2029"])
def test_a_pair_may_hold_what_python_takes_for_a_line_break(tmp_path, letter):
    (pair,) = read_pairs(write(tmp_path, GOOD.replace(" a", f" a{letter}b")))
    assert pair.chosen == f" a{letter}b"


def test_a_byte_order_mark_is_no_part_of_the_first_pair(tmp_path):
    assert len(read_pairs(write(tmp_path, "\ufeff" + GOOD))) == 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{}", "index, chosen, rejected is missing"),
        ('{"index": 1, "chosen": " a"}', "rejected is missing"),
        ('{"index": true, "chosen": " a", "rejected": " b"}', "index is True"),
        ('{"index": "1", "chosen": " a", "rejected": " b"}', "index is '1'"),
        ('{"index": 1, "chosen": " a", "rejected": null}', "rejected is None"),
        ('{"index": 1, "chosen": 5, "rejected": " b"}', "chosen is 5"),
        ('{"index": 1, "chosen": "", "rejected": " b"}', "chosen is ''"),
        ('{"index": 1, "chosen": " a", "rejected": " a"}', "both texts are the same"),
    ],
)
def test_a_line_that_is_no_pair_is_refused_by_file_and_line(tmp_path, line, told):
    with pytest.raises(UsageError, match=rf"pairs\.jsonl:2: expected .*but {told}"):
        read_pairs(write(tmp_path, GOOD + line + "\n"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("nonsense", "not valid JSON"),
        ("[]", "expected one JSON object, got list"),
        ('{"index": 1, "chosen": " a\\ud800", "rejected": " b"}', "column 'chosen' holds half a character"),
        ('{"index": 99999999999999999999, "chosen": " a", "rejected": " b"}', "column 'index' holds .* 64 bits"),
        ('{"index": 1, "chosen": " a", "rejected": " b", "chosen": " c"}', "'chosen' stands there twice"),
    ],
)
def test_a_line_that_is_no_row_is_refused_by_the_reader_of_all_rows(tmp_path, line, told):
    with pytest.raises(UsageError, match=rf"source\.pairs: .*pairs\.jsonl:2: .*{told}"):
        read_pairs(write(tmp_path, GOOD + line + "\n"))


def test_a_file_that_is_not_there_not_text_or_empty_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"source\.pairs: .*none\.jsonl: cannot be read"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        read_pairs(tmp_path / "b.jsonl")
    with pytest.raises(UsageError, match="holds no rows"):
        read_pairs(write(tmp_path, "\n"))


def test_an_index_that_names_no_document_is_refused(toy_policy, tmp_path):
    path = write(tmp_path, GOOD + '{"index": 9, "chosen": " a", "rejected": " b"}\n')
    with pytest.raises(UsageError, match=r"pairs\.jsonl:2: index 9 is not one of the 5 training documents"):
        make_setup(toy_policy, make_source("dataset", pairs=str(path)), SIGNALS["preference"]())


def test_every_pair_of_a_prompt_is_trained_on_and_one_drawn_twice_twice(toy_policy, tmp_path):
    path = write(tmp_path, "".join(f'{{"index": 1, "chosen": " {c}", "rejected": " x{c}"}}\n' for c in "abc"))
    setup = make_setup(toy_policy, make_source("dataset", pairs=str(path), num_trajectories=8), SIGNALS["preference"]())
    visited = setup.recipe.source.sample(setup.context, 0)
    states = supervised_states(setup)
    # Four pairs of three in the file: one comes twice.
    assert len(states.lengths) == 8 == len(visited.lengths)
    assert states.advantages.tolist() == [1.0, -1.0] * 4
    assert states.pair_ids.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for row in range(0, 8, 2):
        better, worse = (decode(toy_policy, states.response_ids(row + place)[:-1]) for place in (0, 1))
        assert worse == f" x{better[1:]}"
    # A record keeps what is compared with what.
    again = states_of_rows(state_rows(0, visited))
    assert again.group_ids.tolist() == visited.group_ids.tolist()
    assert len(np.unique(again.group_ids)) == 4
