from types import SimpleNamespace

import numpy as np
import pytest
from toy_arm import ToyTask, make_setup, make_source

from statewise.errors import UsageError
from statewise.loop.train import Observer, train
from statewise.plan.replay import digest_record, open_record
from statewise.signals import SIGNALS
from statewise.states import SOURCES
from statewise.storage import integrity, records
from statewise.storage.state_records import chain_hash

STUDY = SimpleNamespace(
    shared=SimpleNamespace(**{"target": "toy", "reward_metric": "exact"}), data=None
)  # of it, what a log looks at


def record_arm(policy, folder, signal="imitate", **options):
    """Train a toy arm and leave its record as the study does."""
    setup = make_setup(policy, make_source(), SIGNALS[signal](), **options)
    write_trained(folder, train(setup, folder, Observer()))
    return setup, integrity.read_sealed(folder / "train.json")["state_hash"]


def write_trained(folder, recorder):
    hashes = {"state_hash": recorder.state_hash, "reward_hash": recorder.reward_hash}
    integrity.write_sealed(folder / "train.json", {**hashes, "files": recorder.table})


def replay(policy, folder, signal, order="recorded", key=1, **options):
    source = SOURCES["log"](path=str(folder), order=order)
    recorded = {str(folder): open_record(folder, policy.vocab_size)}
    return make_setup(policy, source, signal, recorded=recorded, key=key, **options)


@pytest.mark.parametrize("recorded_by", ["imitate", "continuation", "reward"])
@pytest.mark.parametrize("signal", ["imitate", "continuation", "reverse_kl", "forward_kl", "expert"])
def test_a_replay_has_the_recorded_hash_under_any_signal(toy_policy, tmp_path, recorded_by, signal):
    _, expected = record_arm(toy_policy, tmp_path / "one", recorded_by)
    again = train(replay(toy_policy, tmp_path / "one", SIGNALS[signal]()), tmp_path / "two", Observer())
    assert again.state_hash == expected


def test_the_recorded_signal_on_the_recorded_states_gives_the_recorded_weights(toy_policy, tmp_path):
    first, _ = record_arm(toy_policy, tmp_path / "one", "reward")
    second = replay(toy_policy, tmp_path / "one", SIGNALS["reward"](), key=99)
    train(second, tmp_path / "two", Observer())
    for name, parameter in first.trainable.items():
        assert parameter.detach().numpy().tobytes() == second.trainable[name].detach().numpy().tobytes()


def test_a_replay_of_a_replay_has_the_same_hash(toy_policy, tmp_path):
    _, expected = record_arm(toy_policy, tmp_path / "one")
    recorder = train(replay(toy_policy, tmp_path / "one", SIGNALS["expert"]()), tmp_path / "two", Observer())
    write_trained(tmp_path / "two", recorder)
    third = train(replay(toy_policy, tmp_path / "two", SIGNALS["imitate"]()), tmp_path / "three", Observer())
    assert third.state_hash == expected


def test_states_are_the_recorded_ones_but_for_the_name_of_their_writer(toy_policy, tmp_path):
    record_arm(toy_policy, tmp_path / "one", "reward")
    recorded = open_record(tmp_path / "one", toy_policy.vocab_size)
    assert recorded.num_updates == 4
    states = SOURCES["log"](path=str(tmp_path / "one")).sample(
        replay(toy_policy, tmp_path / "one", SIGNALS["imitate"]()).context, 2
    )
    assert chain_hash("", states) == chain_hash("", recorded.at(2))
    assert set(states.writers) == {f"{tmp_path / 'one'}:learner"}
    assert set(states.sources) == {"rollout"}
    assert np.isfinite(states.behavior_logprobs[states.action_mask]).all()
    assert np.isnan(states.advantages).all()


def test_a_shuffled_replay_takes_every_update_once_an_epoch_in_a_new_order(toy_policy, tmp_path):
    record_arm(toy_policy, tmp_path / "one")
    recorded = open_record(tmp_path / "one", toy_policy.vocab_size)
    known = {chain_hash("", recorded.at(update)): update for update in range(4)}
    setup = replay(toy_policy, tmp_path / "one", SIGNALS["imitate"](), order="shuffled", num_updates=24)
    order = [known[chain_hash("", setup.recipe.source.sample(setup.context, step))] for step in range(24)]
    epochs = [tuple(order[start : start + 4]) for start in range(0, 24, 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs)
    assert len(set(epochs)) > 1


CHANGES = {
    "token": lambda row: row["token_ids"].__setitem__(-1, row["token_ids"][-1] ^ 1),
    "mask": lambda row: row["action_mask"].__setitem__(-1, not row["action_mask"][-1]),
    "reward": lambda row: row.update(reward=0.75),
    "log-probability": lambda row: row["behavior_logprobs"].__setitem__(-1, -0.125),
    "group": lambda row: row.update(group_id=row["group_id"] + 1),
    "prompt": lambda row: row.update(prompt_index=row["prompt_index"] + 1),
    "end": lambda row: row.update(is_finished=not row["is_finished"]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_one_changed_value_is_noticed(toy_policy, tmp_path, what):
    change = CHANGES[what]
    record_arm(toy_policy, tmp_path / "one", "reward")
    path = tmp_path / "one" / "states" / "000002.parquet"
    rows = records.read_table(path)
    change(rows[3])
    changed = records.write_table(path, rows, records.STATE_SCHEMA)
    told = r"states/000002\.parquet is not what was recorded .*so train its arm again"
    with pytest.raises(UsageError, match=told):
        open_record(tmp_path / "one", toy_policy.vocab_size)
    # Even where the file's own digest was changed with it.
    trained = integrity.read_sealed(tmp_path / "one" / "train.json")
    trained["files"]["states/000002.parquet"] = changed
    integrity.write_sealed(tmp_path / "one" / "train.json", trained)
    with pytest.raises(UsageError, match="the record was changed, so train its arm again"):
        open_record(tmp_path / "one", toy_policy.vocab_size)


def test_a_record_of_another_vocabulary_is_refused(toy_policy, tmp_path):
    record_arm(toy_policy, tmp_path / "one")
    with pytest.raises(UsageError, match="was recorded with another tokenizer"):
        open_record(tmp_path / "one", 50)


def test_a_record_of_other_documents_is_refused(toy_policy, tmp_path):
    record_arm(toy_policy, tmp_path / "one")
    other = ToyTask(documents=tuple(reversed(ToyTask().documents)))
    setup = replay(toy_policy, tmp_path / "one", SIGNALS["imitate"](), task=other)
    with pytest.raises(UsageError, match=r"training document \d has another prompt than here"):
        setup.recipe.source.sample(setup.context, 0)


def test_a_part_that_is_missing_or_cut_off_is_told(toy_policy, tmp_path):
    record_arm(toy_policy, tmp_path / "one")
    (tmp_path / "one" / "states" / "notes.parquet").write_bytes(b"")  # not a part
    open_record(tmp_path / "one", toy_policy.vocab_size)
    part = tmp_path / "one" / "states" / "000002.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"000002\.parquet is not what was recorded"):
        open_record(tmp_path / "one", toy_policy.vocab_size)
    part.unlink()
    with pytest.raises(UsageError, match=r"000002\.parquet is missing; .*train its arm again"):
        open_record(tmp_path / "one", toy_policy.vocab_size)


def test_a_record_that_was_deleted_is_refused(toy_policy, tmp_path):
    integrity.write_sealed(tmp_path / "train.json", {"state_hash": "x", "reward_hash": "y", "files": {}})
    with pytest.raises(UsageError, match="holds no states"):
        open_record(tmp_path, toy_policy.vocab_size)


def test_an_arm_of_another_run_is_named_by_its_folder_and_seed(tmp_path):
    run = tmp_path / "run"
    path = str(run / "arms" / "rl" / "{seed}")
    records.write_json(run / "arms" / "rl" / "3" / "train.json", {"state_hash": "cafe"})
    with pytest.raises(UsageError, match="was recorded by an older version, without digests of its files"):
        digest_record(path, 3, STUDY)
    result = {"state_hash": "cafe", "reward_hash": "beef", "files": {"states/000001.parquet": "0" * 64}}
    integrity.write_sealed(run / "arms" / "rl" / "3" / "train.json", result)
    records.write_bytes(run / "arms" / "rl" / "3" / "states" / "000001.parquet", b"")
    assert digest_record(path, 3, STUDY) == records.digest_json(["cafe", "beef"])
    with pytest.raises(UsageError, match=r"holds no trained arm: .*rl has 3; this study asks for seed 4"):
        digest_record(path, 4, STUDY)
    with pytest.raises(UsageError, match="holds no trained arm: there is no such folder"):
        digest_record(str(run / "arms" / "lr" / "{seed}"), 3, STUDY)
    records.write_json(run / "arms" / "rl" / "5" / "started.json", {})
    with pytest.raises(UsageError, match="holds no trained arm: its training has not ended"):
        digest_record(path, 5, STUDY)
    records.write_json(run / "arms" / "rl" / "5" / "train.json", {"status": "diverged", "reason": "loss nan"})
    with pytest.raises(UsageError, match="holds no trained arm: its arm is 'diverged': loss nan"):
        digest_record(path, 5, STUDY)
    records.write_bytes(run / "arms" / "rl" / "5" / "train.json", b"{")
    with pytest.raises(UsageError, match=r"train\.json is damaged"):
        digest_record(path, 5, STUDY)
    records.write_bytes(run / "study.toml", b"[shared")
    with pytest.raises(UsageError, match=r"study\.toml is damaged"):
        digest_record(path, 3, STUDY)
    records.write_bytes(run / "study.toml", b'[shared]\ntarget = "other"\nreward_metric = "exact"\n')
    with pytest.raises(UsageError, match="target 'other', but this study has 'toy'"):
        digest_record(path, 3, STUDY)
