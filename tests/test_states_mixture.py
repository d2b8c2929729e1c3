from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_arm import make_setup, make_source

from statewise.config.refusals import read_kind
from statewise.errors import UsageError
from statewise.signals import SIGNALS
from statewise.states import SOURCES, EncodedExample, RecordedStates, Source, SourceContext
from statewise.states.mixture import Mixture, Part
from statewise.states.ramp import Ramp
from statewise.types import Rollout


def mixture(weight, per="trajectory", count=8):
    return mix(
        (make_source("dataset"), 1 - weight),
        (make_source(by="base", samples_per_prompt=1), weight),
        per=per,
        count=count,
    )


def mix(*parts, per="trajectory", count=32):
    return Mixture(
        parts=tuple(Part(source=one, weight=weight) for one, weight in parts), per=per, num_trajectories=count
    )


def drawn(policy, source, num_updates):
    setup = make_setup(policy, source, SIGNALS["imitate"](), num_updates=num_updates)
    return [source.sample(setup.context, step) for step in range(num_updates)]


def test_trajectories_are_drawn_with_the_weights(toy_policy):
    # 60 updates of 8 trajectories: 480 draws of probability .3; chi-square with one degree of freedom.
    batches = drawn(toy_policy, mixture(0.3), 60)
    counts = [sum(states.sources.count(name) for states in batches) for name in ("dataset", "rollout")]
    assert sum(counts) == 480
    assert scipy.stats.chisquare(counts, [480 * 0.7, 480 * 0.3]).pvalue > 0.01
    # And not by one coin a batch: nearly every update holds both.
    assert sum(len(set(states.sources)) == 2 for states in batches) > 50


def test_states_are_drawn_with_the_weights(toy_policy):
    counts = np.zeros(2)
    for states in drawn(toy_policy, mixture(0.6, per="state"), 60):
        of_row = np.array([name == "rollout" for name in states.sources])
        per_row = states.action_mask.sum(1)
        counts += [per_row[~of_row].sum(), per_row[of_row].sum()]
    assert scipy.stats.chisquare(counts, counts.sum() * np.array([0.4, 0.6])).pvalue > 0.01


def test_every_row_of_a_mixture_by_state_keeps_a_state_and_its_log_probabilities(toy_policy):
    for states in drawn(toy_policy, mixture(0.5, per="state"), 5):
        assert states.action_mask.any(1).all()
        is_written = np.array([writer == "base" for writer in states.writers])[:, None] & states.action_mask
        assert np.isfinite(states.behavior_logprobs[is_written]).all()
        assert np.isnan(states.behavior_logprobs[~is_written]).all()


class Documents:
    """Documents whose prompt is their number, and how often each was written on, by writer."""

    def __init__(self, num_documents, num_updates, key=0):
        self.written = {"learner": Counter(), "teacher": Counter(), "base": Counter()}
        examples = tuple(EncodedExample(i, (i + 1,), (1, 2)) for i in range(num_documents))
        self.context = SourceContext(examples, self.write, key, num_updates)

    def write(self, request):
        self.written[request.writer].update(prompt[0] - 1 for prompt in request.prompts)
        return [Rollout(prompt, (3, 4), (-1.0, -1.0), True) for prompt in request.prompts]


def is_even(seen, num_documents):
    """Whether each of the documents was seen as often as any other, or once more."""
    times = [seen[index] for index in range(num_documents)]
    return max(times) - min(times) <= 1


weights = st.one_of(st.floats(0.05, 1), st.builds(Ramp, start=st.floats(0.05, 1), end=st.floats(0.05, 1)))
from_nothing = st.one_of(weights, st.just(Ramp(start=0.0, end=1.0)))


@settings(max_examples=25, deadline=None)
@given(
    of_parts=st.tuples(weights, weights, from_nothing), num_documents=st.integers(1, 40), count=st.integers(1, 24),
    num_updates=st.integers(1, 30), key=st.integers(0, 99),
)  # fmt: skip
@pytest.mark.parametrize("per", ["trajectory", "state"])
def test_each_part_goes_through_its_documents_in_epochs_without_a_gap(
    per, of_parts, num_documents, count, num_updates, key
):
    # A mixture within a mixture; a part that writes groups moves on by prompts, and its share may end within a group.
    one, other, grouped = (
        make_source(by=by, samples_per_prompt=size) for by, size in (("learner", 1), ("base", 1), ("teacher", 3))
    )
    inner = mix((other, of_parts[0]), (grouped, of_parts[1]), per=per)
    source = mix((one, 0.5), (inner, of_parts[2]), per=per, count=count)
    there = Documents(num_documents, num_updates, key)
    for step in range(num_updates):
        source.sample(there.context, step)
    for writer, size in (("learner", 1), ("base", 1), ("teacher", 3)):
        seen = Counter({index: times // size for index, times in there.written[writer].items()})
        assert is_even(seen, num_documents), (writer, seen)


def test_every_document_of_the_dataset_is_seen_before_any_comes_again():
    # 25 updates of 8 at a share of one half: about 100 trajectories of each part, and 40 documents.
    source = mix((make_source("dataset"), 0.5), (make_source(samples_per_prompt=1), 0.5), count=8)
    there, seen = Documents(40, 25), Counter()
    for step in range(25):
        states = source.sample(there.context, step)
        is_data = [writer == "data" for writer in states.writers]
        seen.update(states.prompt_indices[is_data].tolist())
        assert is_even(seen, 40)
    assert 70 < seen.total() < 130


def test_an_update_of_a_mixture_does_not_depend_on_the_updates_that_were_drawn_before():
    parts = (
        (make_source("dataset"), Ramp(start=1.0, end=0.2)),
        (make_source(samples_per_prompt=1), Ramp(start=0.0, end=0.8)),
    )
    source = mix(*parts, count=8)
    whole, resumed = Documents(11, 20), Documents(11, 20)
    drawn_before = [source.sample(whole.context, step).prompt_indices.tolist() for step in range(20)]
    assert [source.sample(resumed.context, step).prompt_indices.tolist() for step in (13, 4, 19)] == [
        drawn_before[step] for step in (13, 4, 19)
    ]


@pytest.mark.parametrize(("weight", "asked"), [(0.0, {}), (1.0, {"base"})])
def test_a_part_of_weight_zero_is_not_asked(toy_policy, weight, asked):
    source = mixture(weight)
    setup = make_setup(toy_policy, source, SIGNALS["imitate"]())
    source.sample(setup.context, 0)
    assert set(setup.writers.account.num_generated) == set(asked)


def test_weights_follow_their_ramps():
    # Over 5 updates, linear: 1, .75, .5, .25, 0 of the first part, 0 to 1 of the second.
    source = mix((make_source("dataset"), Ramp(start=1.0, end=0.0)), (make_source(), Ramp(start=0.0, end=1.0)))
    assert [source.weights_at(step, 5)[1] for step in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_a_ramp_ends_where_it_says_and_stays_there():
    ramp = Ramp(start=0.2, end=1.0, over=0.5)
    assert [ramp.at(step, 9) for step in range(9)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1])
    # DAgger's β^i: 1, 1/2, 1/4 with end 1/4 after two of three updates.
    assert [Ramp(start=1.0, end=0.25, shape="exponential").at(step, 3) for step in range(3)] == pytest.approx(
        [1, 0.5, 0.25]
    )
    assert Ramp(start=0.3, end=0.7).at(0, 1) == 0.3


def test_weights_need_not_sum_to_one():
    source = mix((make_source("dataset"), 0.2), (make_source(), 0.6))
    assert source.weights_at(0, 1) == pytest.approx([0.25, 0.75])


def test_parts_of_different_temperature_are_refused(toy_policy):
    source = mix((make_source("dataset"), 0.5), (make_source(temperature=0.5), 0.5), count=20)
    setup = make_setup(toy_policy, source, SIGNALS["imitate"]())
    with pytest.raises(UsageError, match=r"states of temperature 0\.5 and 1 cannot share an update"):
        source.sample(setup.context, 0)


def test_a_mixture_is_read_with_its_parts():
    table = {
        "kind": "mixture",
        "parts": [{"kind": "dataset", "weight": 0.5}, {"kind": "rollout", "weight": {"start": 0.0, "end": 1.0}}],
    }
    source = read_kind(Source, table, "here")
    assert [part.source.kind for part in source.parts] == ["dataset", "rollout"]
    assert source.parts[1].weight == Ramp(start=0.0, end=1.0)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([{"kind": "dataset", "weight": 1.0}], "here: parts: Tuple should have at least 2 items"),
        ([{"kind": "dataset"}, {"kind": "rollout", "weight": 1.0}], r"here: \[parts\.0\] needs the key \'weight\'"),
        (
            [{"kind": "dataset", "weight": 2.0}, {"kind": "rollout", "weight": 1.0}],
            r"here: parts\.0\.weight: .*less than or equal to 1",
        ),
        (
            [{"kind": "dataset", "weight": 1.0}, {"kind": "rolout", "weight": 1.0}],
            r"here: parts\.1: .*Did you mean 'rollout'",
        ),
        (
            [{"kind": "dataset", "weight": 0}, {"kind": "rollout", "weight": 0.0}],
            "a mixture are all 0 in the first",
        ),
        (
            [{"kind": "dataset", "weight": 0}, {"kind": "rollout", "weight": {"start": 1, "end": 0}}],
            "0 in the last",
        ),
        ([{"kind": "dataset", "weight": 0}, {"kind": "rollout", "weight": {"start": 0, "end": 0}}], "are all 0"),
        (
            [{"kind": "dataset", "num_trajectories": 9, "weight": 1.0}, {"kind": "rollout", "weight": 1.0}],
            r"here: parts\.0: num_trajectories of a part of a mixture is not used",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(parts, told):
    with pytest.raises(UsageError, match=told):
        read_kind(Source, {"kind": "mixture", "parts": parts}, "here")


def record_of(states):
    return RecordedStates(len(states), lambda update: states[update])


def num_written(batches, writer):
    """Training states that `writer` wrote."""
    return sum(int(s.action_mask[np.array([w == writer for w in s.writers])].sum()) for s in batches)


@pytest.mark.parametrize("per", ["trajectory", "state"])
def test_a_log_in_a_mixture_gives_all_of_its_states_alike(toy_policy, per):
    # The record: mixtures, which write their parts one after the other, data first and then base.
    by_base = make_source(by="base", samples_per_prompt=1)
    batches = drawn(toy_policy, mix((make_source("dataset"), 0.5), (by_base, 0.5), per=per, count=8), 12)
    share = num_written(batches, "base") / sum(states.num_states for states in batches)
    source = mix((SOURCES["log"](arm="first"), 0.5), (make_source("dataset"), 0.5), per=per, count=8)
    setup = make_setup(toy_policy, source, SIGNALS["imitate"](), num_updates=60, recorded={"first": record_of(batches)})
    found = [source.sample(setup.context, step) for step in range(60)]
    counts = [num_written(found, f"first:{writer}") for writer in ("base", "data")]
    # About 240 trajectories of up to 10 states: a share of .4 to .5 is known to about ± .03.
    assert counts[0] / sum(counts) == pytest.approx(share, abs=0.1)
    if per == "trajectory":
        assert {len(states.lengths) for states in found} == {8}


def test_a_record_that_is_shorter_than_its_share_is_drawn_from_other_updates_too(toy_policy):
    record = record_of(drawn(toy_policy, make_source(num_prompts=1, max_new_tokens=12), 4))
    log = SOURCES["log"](arm="short", num_trajectories=8)
    setup = make_setup(toy_policy, log, SIGNALS["imitate"](), recorded={"short": record})
    texts = {record.at(update).response_ids(row) for update in range(4) for row in range(2)}
    for step in range(4):
        states = log.sample(setup.context, step)
        rows = [states.response_ids(row) for row in range(8)]
        # All eight rows of the record, each once: its own update first, no group of one update in another.
        assert set(rows) == texts and len(texts) == 8
        assert rows[:2] == [record.at(step).response_ids(row) for row in range(2)]
        assert sorted(states.group_ids.tolist().count(group) for group in set(states.group_ids.tolist())) == [2] * 4
    more = SOURCES["log"](arm="short", num_trajectories=10).sample(setup.context, 0)
    assert len(more.lengths) == 10
    assert len(set(more.group_ids.tolist())) == 5  # what comes again is a group of its own


def test_no_group_of_a_record_is_left_out_where_a_share_ends_within_one(toy_policy):
    record = record_of(drawn(toy_policy, make_source(num_prompts=4, samples_per_prompt=4, max_new_tokens=12), 1))
    source = mix((SOURCES["log"](arm="r"), 1.0), (make_source("dataset"), 0.0), count=6)
    setup = make_setup(toy_policy, source, SIGNALS["imitate"](), num_updates=200, recorded={"r": record})
    places = {record.at(0).response_ids(row): row for row in range(16)}
    counts = np.zeros(16)
    for step in range(200):
        states = source.sample(setup.context, step)
        for row in range(6):
            counts[places[states.response_ids(row)]] += 1
    # Of each group of four on average 200 · 6 / 4 = 300, standard deviation about 26 (whole, half or none of it).
    assert counts.reshape(4, 4).sum(1) == pytest.approx([300] * 4, abs=100)


def test_a_log_keeps_the_groups_of_its_record_whole(toy_policy):
    record = record_of(drawn(toy_policy, make_source(num_prompts=5, samples_per_prompt=2), 3))
    log = SOURCES["log"](arm="r", num_trajectories=4)
    setup = make_setup(toy_policy, log, SIGNALS["reward"](), recorded={"r": record})
    for step in range(3):
        groups = log.sample(setup.context, step).group_ids.tolist()
        assert sorted(groups.count(group) for group in set(groups)) == [2, 2]


def test_sources_are_those_of_the_registry():
    assert set(SOURCES) == {"dataset", "rollout", "prefix", "log", "mixture"}
