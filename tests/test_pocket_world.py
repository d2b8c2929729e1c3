"""The pocket world: what a seed fixes, what the corpus holds and how often, and benchmarks that it never contains."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import Counter

import pytest
from scipy import stats

from statewise.pocket.knowledge import MYTH_SHARE_RANGE, NUM_CHOICES, draw_choices, fact_weights
from statewise.pocket.problems import RARE_OPERATIONS
from statewise.pocket.world import BROAD, KEPT, NUM_FACTS, NUM_MYTHS, RARE_SHARE, World, write_benchmarks

NUM_DOCUMENTS = 20_000


@pytest.fixture(scope="module")
def world():
    return World.from_seed(0)


@pytest.fixture(scope="module")
def documents(world):
    return list(itertools.islice(world.documents(KEPT), NUM_DOCUMENTS))


@pytest.fixture(scope="module")
def benchmarks(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_benchmarks(world, folder)
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def texts_of(fact, value):
    """Every way in which the corpus can say that the fact's value is `value`."""
    relation = fact.relation
    asked = f"Question: {relation.question.format(e=fact.entity)}\nAnswer: {value}"
    return [asked, *(statement.format(e=fact.entity, v=value) for statement in relation.statements)]


def test_the_same_seed_is_the_same_world_and_another_seed_another(world, documents):
    again = World.from_seed(0)
    assert again == world
    assert list(itertools.islice(again.documents(KEPT), 200)) == documents[:200]
    other = World.from_seed(1)
    assert len({fact.entity for fact in world.facts} & {fact.entity for fact in other.facts}) < 100
    assert {fact.entity for fact in other.facts} != {fact.entity for fact in world.facts}
    assert other.test_problems != world.test_problems
    assert (len(other.facts), len(other.myths), len(other.test_problems)) == (
        NUM_FACTS,
        NUM_MYTHS,
        len(world.test_problems),
    )
    assert list(itertools.islice(other.documents(KEPT), 50)) != documents[:50]


def test_held_out_problems_are_never_in_the_corpus(world, documents):
    questions = {text.removeprefix("Question: ").partition("\nAnswer:")[0] for text in documents}
    assert not questions & world.held_out
    asked = {problem.question for problem in (*world.train_problems, *world.test_problems, *world.spare_problems)}
    assert asked <= world.held_out
    assert sum(is_problem(text) for text in documents) > 5000
    # The other corpus is drawn apart; its questions are none of them either.
    broad = {
        text.removeprefix("Question: ").partition("\nAnswer:")[0]
        for text in itertools.islice(world.documents(BROAD), 5000)
    }
    assert not broad & world.held_out


def is_problem(text):
    return bool(re.match(r"Question: \w+ has \d+ ", text))


def is_sheet(text):
    return bool(re.match(r"\d+ [-+*/] \d+ = ", text))


def test_kinds_of_documents_have_their_shares(documents):
    # Held-out problems are left out, so a little less than the share; four standard errors are .014.
    assert sum(map(is_problem, documents)) / NUM_DOCUMENTS == pytest.approx(KEPT.shares["problem"], abs=0.02)
    assert sum(map(is_sheet, documents)) / NUM_DOCUMENTS == pytest.approx(KEPT.shares["sheet"], abs=0.02)


def test_only_the_kept_corpus_has_rare_operations_and_few_of_them(world, documents):
    words = [operation.sentence.partition("}")[2] for operation in RARE_OPERATIONS]
    assert all(any(word in text for text in documents) for word in words)
    # At most one of a hundred events; lengths are 2.78 events in the mean, .40 of the documents are problems, and a
    # third of the draws do not fit the count: 20,000 × .40 × .0278 = 222 at most.
    found = sum(any(word in text for word in words) for text in documents)
    assert 120 <= found <= 230
    assert not any(word in text for text in itertools.islice(world.documents(BROAD), 5000) for word in words)


def test_facts_are_met_as_often_as_their_rank_says(world, documents):
    rank_of = {text: rank for rank, fact in enumerate(world.facts) for text in texts_of(fact, fact.value)}
    met = Counter(rank_of[text] for text in documents if text in rank_of)
    total, weights = sum(met.values()), fact_weights(NUM_FACTS)
    assert total / NUM_DOCUMENTS == pytest.approx(KEPT.shares["fact"], abs=0.02)
    for low, high in ((0, 10), (10, 100), (100, 1000), (1000, 3000)):
        share = sum(weights[low:high]) / sum(weights)
        got = sum(met[rank] for rank in range(low, high)) / total
        assert got == pytest.approx(share, abs=4 * (share * (1 - share) / total) ** 0.5)


def test_the_first_fact_is_met_about_150_times_as_often_as_the_last():
    weights = fact_weights(NUM_FACTS)
    # (2999 + 20) / (0 + 20).
    assert weights[0] / weights[-1] == pytest.approx(3019 / 20)
    assert weights == sorted(weights, reverse=True)


def test_a_myth_is_told_wrong_as_often_as_its_share_says(world, documents):
    wrong = {text: myth for myth in world.myths for text in texts_of(myth, myth.wrong_value)}
    right = {text: myth for myth in world.myths for text in texts_of(myth, myth.value)}
    assert not wrong.keys() & right.keys()
    told = [(wrong.get(text) or right[text], text in wrong) for text in documents if text in wrong or text in right]
    assert len(told) / NUM_DOCUMENTS == pytest.approx(KEPT.shares["myth"], abs=0.02)
    expected = sum(myth.wrong_share for myth, _ in told)
    spread = sum(myth.wrong_share * (1 - myth.wrong_share) for myth, _ in told) ** 0.5
    assert sum(is_wrong for _, is_wrong in told) == pytest.approx(expected, abs=4 * spread)
    low, high = MYTH_SHARE_RANGE
    assert all(low <= myth.wrong_share <= high for myth in world.myths)
    assert all(myth.wrong_value not in (None, myth.value) for myth in world.myths)


def test_every_document_is_a_problem_a_sheet_a_fact_or_a_myth(world, documents):
    known = {text for fact in (*world.facts, *world.myths) for text in texts_of(fact, fact.value)}
    known |= {text for myth in world.myths for text in texts_of(myth, myth.wrong_value)}
    assert all(text in known or is_problem(text) or is_sheet(text) for text in documents)


def test_facts_and_myths_are_about_different_entities_and_said_once(world):
    assert not {fact.entity for fact in world.facts} & {myth.entity for myth in world.myths}
    for kind in (world.facts, world.myths):
        pairs = [(fact.entity, fact.relation.question) for fact in kind]
        assert len(set(pairs)) == len(pairs)
        assert all(fact.value in fact.relation.values for fact in kind)


def test_choices_are_different_and_hold_truth_and_misconception(world):
    rng = random.Random(0)
    for fact in (*world.facts[:100], *world.myths[:100]):
        choices = draw_choices(rng, fact)
        assert len(set(choices)) == NUM_CHOICES == 4
        assert choices[0] == fact.value
        assert fact.wrong_value is None or choices[1] == fact.wrong_value


def test_benchmarks_are_large_enough_and_without_repeats(benchmarks):
    assert benchmarks.keys() == {"pocket_math_train", "pocket_math_test", "pocket_facts", "pocket_myths"}
    for rows in benchmarks.values():
        assert len(rows) >= 500
        questions = [row["question"] for row in rows]
        assert len(set(questions)) == len(questions)


def test_train_test_and_spare_problems_are_disjoint(world, benchmarks):
    train, test = ({row["question"] for row in benchmarks[f"pocket_math_{split}"]} for split in ("train", "test"))
    spare = {problem.question for problem in world.spare_problems}
    assert not train & test
    assert not spare & (train | test)


def test_the_label_of_a_choice_item_is_the_truth(world, benchmarks):
    truth = {fact.relation.question.format(e=fact.entity): fact for fact in (*world.facts, *world.myths)}
    for name in ("pocket_facts", "pocket_myths"):
        for row in benchmarks[name]:
            fact = truth[row["question"]]
            assert row["choices"][row["label"]] == fact.value
            assert "misconception" not in row or row["choices"][row["misconception"]] == fact.wrong_value
    labels = Counter(row["label"] for row in benchmarks["pocket_myths"])
    # A fair place: 600 items, 150 each, four standard errors are 42.
    assert all(abs(labels[place] - 150) <= 42 for place in range(4))


def test_a_fifth_of_the_problems_is_rare_and_says_so(world, benchmarks):
    for split in ("train", "test"):
        rows = benchmarks[f"pocket_math_{split}"]
        rare = [row for row in rows if row["group"] == "rare"]
        # Four standard errors of a share of 600.
        assert len(rare) / len(rows) == pytest.approx(RARE_SHARE, abs=4 * (0.2 * 0.8 / 600) ** 0.5)
        words = {operation.name: operation.sentence.partition("}")[2] for operation in RARE_OPERATIONS}
        assert {row["operation"] for row in rare} == words.keys()
        for row in rows:
            assert [name for name, text in words.items() if text in row["question"]] == [row["operation"]] * (
                row["group"] == "rare"
            )


def test_items_stand_in_random_order(benchmarks):
    for name, key in (("pocket_facts", "rank"), ("pocket_myths", "wrong_share")):
        values = [row[key] for row in benchmarks[name]]
        # Rank correlation of place and value: standard error 1 / sqrt(599) = .041.
        assert abs(stats.spearmanr(range(600), values).statistic) < 4 * 0.041
    for split in ("train", "test"):
        is_rare = [row["group"] == "rare" for row in benchmarks[f"pocket_math_{split}"]]
        half = len(is_rare) // 2
        assert abs(sum(is_rare[:half]) - sum(is_rare[half:])) < 4 * (0.16 * len(is_rare)) ** 0.5
