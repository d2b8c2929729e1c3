import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed import KilledError, kill_at
from toy_arm import make_setup, make_source, stop_before, written

from statewise.errors import DivergedError, InterruptedTrainingError
from statewise.locality.adapter import Lora
from statewise.loop.build import Material
from statewise.loop.train import Observer, mismatch_problem, train
from statewise.policy.load import copy_policy
from statewise.policy.sampler import OwnEngine
from statewise.signals import SIGNALS
from statewise.storage import records

ALWAYS = {
    "step", "loop/loss_nats", "loop/grad_norm", "loop/lr", "loop/num_micro_batches", "loop/padding_rate",
    "states/num_states", "states/num_loss_tokens", "states/num_trajectories", "states/num_tokens",
    "states/response_tokens_mean", "states/finished_rate", "states/hash", "loop/flops_forward", "loop/flops_backward",
}  # fmt: skip
OF_OWN_STATES = {"states/num_generated_learner", "states/writer_update_mean", "policy/sampler_mismatch_nats"}
OF_LOCALITIES = {
    "locality/kl_to_base_nats", "locality/kl_coefficient", "locality/ewc_penalty_nats", "locality/gem_projected_rate",
    "locality/a_gem_projected_rate",
}  # fmt: skip
OF_SUMS = {"signals/loss_nats_"}
WRITTEN_AS = {  # in the documentation, for the keys of several kinds
    "signals/loss_nats_<place>_<kind>": ["signals/loss_nats_"],
    "locality/<kind>_projected_rate": ["locality/gem_projected_rate", "locality/a_gem_projected_rate"],
}
GRADED = {
    "signals/num_unscored", "signals/advantage_zero_rate", "signals/reward_mean", "signals/num_rewarded",
    "signals/num_rewarded_unfinished",
}  # fmt: skip


def small_arm(policy, signal="imitate", source=None, **options):
    return make_setup(
        policy, source or make_source("dataset", num_trajectories=2), SIGNALS[signal](),
        adapter=Lora(rank=1), **options,
    )  # fmt: skip


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_of_fixed_states_have_these_keys(toy_policy, tmp_path):
    train(small_arm(toy_policy), tmp_path, Observer())
    assert all(set(line) == ALWAYS for line in metrics_of(tmp_path))
    times = [json.loads(line) for line in (tmp_path / "timing.jsonl").read_text().splitlines()]
    assert all(set(line) == {"step", "states/sample_s", "signals/supervise_s", "loop/update_s"} for line in times)


def test_metrics_of_graded_rollouts_also_have_these_keys(toy_policy, tmp_path):
    train(small_arm(toy_policy, "reward", make_source()), tmp_path, Observer())
    assert all(set(line) == ALWAYS | GRADED | OF_OWN_STATES for line in metrics_of(tmp_path))


def test_rewarded_answers_are_counted_and_those_among_them_that_had_not_ended(toy_policy, tmp_path):
    train(small_arm(toy_policy, "reward", make_source(max_new_tokens=12, samples_per_prompt=8)), tmp_path, Observer())
    rows = [row for path in sorted((tmp_path / "states").iterdir()) for row in records.read_table(path)]
    rewarded = [row for row in rows if (row["reward"] or 0) > 0]
    unfinished = [row for row in rewarded if not row["is_finished"]]
    lines = metrics_of(tmp_path)
    assert sum(line["signals/num_rewarded"] for line in lines) == len(rewarded)
    assert sum(line["signals/num_rewarded_unfinished"] for line in lines) == len(unfinished)
    assert 0 < len(unfinished) < len(rewarded) <= len(rows)


@pytest.mark.parametrize(("off", "warned"), [(0.0, 0), (5e-4, 0), (5e-3, 1)])
def test_a_sampler_that_is_off_is_told_once_while_it_runs(toy_policy, tmp_path, off, warned):
    setup, told = small_arm(toy_policy, "reward", make_source()), []

    class Off(OwnEngine):
        def sample(self, *asked):
            return [replace(one, logprobs=tuple(p + off for p in one.logprobs)) for one in super().sample(*asked)]

    setup.writers.engine = Off()
    train(setup, tmp_path, Observer(warn=told.append))
    assert len(told) == warned
    assert all("0.005 nats from those that the policy is trained with" in one for one in told)
    assert all(str(tmp_path) in one for one in told)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-3), ("float16", 1e-2), ("bfloat16", 5e-2)])
def test_a_sampler_may_be_off_by_the_rounding_of_the_models_precision(toy_policy, dtype, bound):
    # The adapter is float32 in any case; the worst update counts, however many there are.
    setup = small_arm(copy_policy(toy_policy, "learner"))
    for name, parameter in setup.learner.model.named_parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)) if "lora" not in name else parameter.data
    assert mismatch_problem(setup.learner, [0.0] * 99 + [bound]) is None
    assert mismatch_problem(setup.learner, []) is None
    assert f"rounding in {dtype}" in mismatch_problem(setup.learner, [0.0] * 99 + [1.01 * bound])


def test_the_metrics_are_those_that_the_documentation_explains():
    section = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text(encoding="utf-8").split("\n## ")[1]
    documented = set(re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE))
    documented = {name for key in documented for name in WRITTEN_AS.get(key, [key])}
    assert documented == ALWAYS | GRADED | OF_OWN_STATES | OF_LOCALITIES | OF_SUMS | {
        f"states/num_generated_{name}" for name in ("learner", "teacher", "base")
    }


def test_metrics_count_what_the_recorded_states_hold(toy_policy, tmp_path):
    setup = small_arm(toy_policy, "continuation", make_source(by="base"))
    train(setup, tmp_path, Observer())
    visited_rows, rows = (
        [row for path in sorted((tmp_path / kind).iterdir()) for row in records.read_table(path)]
        for kind in ("states", "supervised")
    )
    for line in metrics_of(tmp_path):
        of_step = [row for row in rows if row["step"] == line["step"]]
        yielded = [row for row in visited_rows if row["step"] == line["step"]]
        assert line["states/num_trajectories"] == len(yielded) == len(of_step) == 4
        assert line["states/num_states"] == sum(sum(row["action_mask"]) for row in yielded)
        assert line["states/num_loss_tokens"] == sum(sum(row["action_mask"]) for row in of_step)
        assert line["states/num_tokens"] == sum(len(row["token_ids"]) for row in of_step)
        # Lengths are those of what the source visited, not of what the signal made of it.
        visited = setup.recipe.source.sample(setup.context, line["step"])
        assert line["states/response_tokens_mean"] == (visited.lengths - visited.prompt_lengths).mean()
        assert line["states/finished_rate"] == visited.is_finished.mean()
    last = metrics_of(tmp_path)[-1]
    assert last["states/num_generated_teacher"] == sum(sum(row["action_mask"]) for row in rows)
    assert last["states/num_generated_base"] > 0


def test_answers_that_cannot_be_scored_are_counted_and_no_mean_is_made_of_them(toy_policy, tmp_path):
    setup = small_arm(toy_policy, "reward", make_source())
    object.__setattr__(setup, "material", Material(UngradedTask()))
    train(setup, tmp_path, Observer())
    for line in metrics_of(tmp_path):
        assert line["signals/num_unscored"] == 4
        assert line["signals/advantage_zero_rate"] == 1
        assert "signals/reward_mean" not in line
        assert line["loop/loss_nats"] == 0
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


class UngradedTask:
    """A task that no answer can be graded by."""

    def rewards(self, indices, texts):
        return [math.nan] * len(texts), 0.0


def test_progress_is_told_after_each_update_and_on_resuming(toy_policy, tmp_path):
    told = []
    train(small_arm(toy_policy), tmp_path, Observer(progress=told.append))
    assert told == [1, 2, 3, 4]
    train(small_arm(toy_policy), tmp_path, Observer(progress=told.append))
    assert told == [1, 2, 3, 4, 4]


def test_a_finished_run_is_left_as_it_is(toy_policy, tmp_path):
    first = small_arm(toy_policy)
    recorder = train(first, tmp_path, Observer())
    before = written(tmp_path, first)
    again = small_arm(toy_policy)
    assert train(again, tmp_path, Observer()).state_hash == recorder.state_hash
    assert written(tmp_path, again) == before


@pytest.mark.parametrize("damaged_file", ["weights.safetensors", "progress.json"])
def test_a_damaged_checkpoint_costs_time_but_no_byte(toy_policy, tmp_path, damaged_file):
    whole = small_arm(toy_policy)
    train(whole, tmp_path / "whole", Observer())
    train(small_arm(toy_policy), tmp_path / "hurt", Observer())
    path = tmp_path / "hurt" / "checkpoints" / "000004" / damaged_file
    path.write_bytes(path.read_bytes()[:-20])
    warnings = []
    again = small_arm(toy_policy)
    train(again, tmp_path / "hurt", Observer(warn=warnings.append))
    assert written(tmp_path / "hurt", again) == written(tmp_path / "whole", whole)
    assert len(warnings) == 1
    assert "checkpoint 000004" in warnings[0]


@pytest.mark.parametrize("how", ["removed", "changed"])
@pytest.mark.parametrize("name", ["states/000002.parquet", "metrics.jsonl"])
def test_a_checkpoint_whose_records_are_damaged_is_passed_over(toy_policy, tmp_path, name, how):
    whole, again = small_arm(toy_policy), small_arm(toy_policy)
    train(whole, tmp_path / "whole", Observer())
    train(small_arm(toy_policy), tmp_path / "hurt", Observer())
    path, warnings = tmp_path / "hurt" / name, []
    path.unlink() if how == "removed" else path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    train(again, tmp_path / "hurt", Observer(warn=warnings.append))
    assert written(tmp_path / "hurt", again) == written(tmp_path / "whole", whole)
    assert ["checkpoint 000004" in warnings[0], "checkpoint 000002" in warnings[1]] == [True, True]
    assert "or a record that it stands on" in warnings[0]


def test_a_run_interrupted_before_its_first_checkpoint_starts_again(toy_policy, tmp_path):
    whole, again = small_arm(toy_policy), small_arm(toy_policy)
    train(whole, tmp_path / "whole", Observer())
    with pytest.raises(InterruptedTrainingError, match="stopped before update 1"):
        train(small_arm(toy_policy), tmp_path / "parts", stop_before(1))
    train(again, tmp_path / "parts", Observer())
    assert written(tmp_path / "parts", again) == written(tmp_path / "whole", whole)


def test_a_kill_between_any_two_writes_and_a_second_start_give_the_same_bytes(toy_policy, tmp_path, monkeypatch):
    options = {"num_updates": 2, "checkpoint_every": 1, "source": make_source("dataset", num_trajectories=1)}
    whole = small_arm(toy_policy, **options)
    train(whole, tmp_path / "whole", Observer())
    expected = written(tmp_path / "whole", whole)
    num_kills, stride = 0, 5  # every fifth write; the checkpoint's own writes are all tried in test_loop_checkpoint
    while True:
        folder = tmp_path / f"{num_kills}"
        try:
            with monkeypatch.context() as patch:
                kill_at(patch, num_kills)
                train(small_arm(toy_policy, **options), folder, Observer())
        except KilledError:
            num_kills += stride
        else:
            break
        again = small_arm(toy_policy, **options)
        train(again, folder, Observer())
        # What a killed write left beside its target is hidden and is no record.
        assert {k: v for k, v in written(folder, again).items() if not k.endswith(".tmp")} == expected, num_kills
    assert num_kills > 25


def break_loss(monkeypatch, at_update):
    """`imitate` becomes nan at one update."""
    plain, calls = SIGNALS["imitate"].loss, [0]

    def loss(self, inputs):
        calls[0] += 1
        return plain(self, inputs) * (math.nan if calls[0] == at_update + 1 else 1.0)

    monkeypatch.setattr(SIGNALS["imitate"], "loss", loss)


def test_a_diverged_arm_keeps_the_metrics_and_states_up_to_its_end(toy_policy, tmp_path, monkeypatch):
    break_loss(monkeypatch, at_update=3)
    setup = small_arm(toy_policy)
    with pytest.raises(DivergedError, match="update 3: loss nan"):
        train(setup, tmp_path, Observer())
    assert [line["step"] for line in metrics_of(tmp_path)] == [0, 1, 2]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    rows = [row for path in sorted((tmp_path / "states").iterdir()) for row in records.read_table(path)]
    assert sorted({row["step"] for row in rows}) == [0, 1, 2]
    assert all(torch.isfinite(parameter).all() for parameter in setup.trainable.values())


def test_another_key_gives_other_bytes(toy_policy, tmp_path):
    hashes = {train(small_arm(toy_policy, key=key), tmp_path / str(key), Observer()).state_hash for key in (1, 2)}
    assert len(hashes) == 2
