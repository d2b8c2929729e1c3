import errno
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from killed import KilledError, kill_at

from statewise.loop.checkpoint import KEPT_CHECKPOINTS, Memory, Progress, load_last, save

FILES = ["weights.safetensors", "optimizer.safetensors", "progress.json"]


def fresh():
    """A tiny model and its optimiser."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (3, 2), "b.bias": (4,)}
    trainable = {n: torch.nn.Parameter(torch.randn(shape, generator=generator)) for n, shape in shapes.items()}
    return trainable, torch.optim.AdamW(list(trainable.values()), lr=0.1)


def advance(trainable, optimizer, step):
    for parameter in trainable.values():
        parameter.grad = torch.full_like(parameter, 1.0 + step)
    optimizer.step()


def progress_at(step):
    return Progress(step, f"hash-{step}", {"num_states": 10 * step, "num_generated": {"learner": 3}}, 0.5)


def write_steps(folder, steps):
    """Save a checkpoint after each of `steps` updates; returns what the model was then."""
    trainable, optimizer = fresh()
    kept = {}
    for step in range(1, max(steps) + 1):
        advance(trainable, optimizer, step)
        if step in steps:
            save(folder, progress_at(step), trainable, optimizer)
            kept[step] = snapshot(trainable, optimizer)
    return kept


def snapshot(trainable, optimizer):
    weights = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    moments = {(n, key): v.clone() for n, p in trainable.items() for key, v in optimizer.state[p].items()}
    return weights | moments


def assert_restored(folder, kept, step, damaged=()):
    trainable, optimizer = fresh()
    assert load_last(folder, trainable, optimizer) == (progress_at(step), Memory(), list(damaged))
    restored = snapshot(trainable, optimizer)
    assert restored.keys() == kept[step].keys()
    assert all(torch.equal(restored[name], value) for name, value in kept[step].items())


def damage(path, how):
    data = path.read_bytes()
    if how == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if path.suffix != ".json" else data.replace(b"-4", b"-5"))
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "emptied":
        path.write_bytes(b"")
    else:
        path.unlink()


def test_a_checkpoint_restores_weights_moments_and_progress(tmp_path):
    kept = write_steps(tmp_path, [3])
    assert_restored(tmp_path, kept, 3)
    trainable, optimizer = fresh()
    load_last(tmp_path, trainable, optimizer)
    advance(trainable, optimizer, 4)
    whole, its_optimizer = fresh()
    for step in range(1, 5):
        advance(whole, its_optimizer, step)
    assert all(torch.equal(trainable[name], whole[name]) for name in whole)


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
    trainable, optimizer = fresh()
    before = snapshot(trainable, optimizer)
    assert load_last(tmp_path / "none", trainable, optimizer) == (None, Memory(), [])
    assert all(torch.equal(value, before[name]) for name, value in snapshot(trainable, optimizer).items())


def test_the_same_training_writes_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_steps(tmp_path / name, [2])
    for file in FILES:
        assert (tmp_path / "one/000002" / file).read_bytes() == (tmp_path / "two/000002" / file).read_bytes()


def test_only_the_newest_checkpoints_remain(tmp_path):
    kept = write_steps(tmp_path, [1, 2, 3, 4])
    assert KEPT_CHECKPOINTS == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000003", "000004"]
    assert sorted(path.name for path in (tmp_path / "000004").iterdir()) == sorted(FILES)
    assert_restored(tmp_path, kept, 4)


@pytest.mark.parametrize("how", ["flipped", "truncated", "emptied", "removed"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, file, how):
    kept = write_steps(tmp_path, [2, 4])
    damage(tmp_path / "000004" / file, how)
    assert_restored(tmp_path, kept, 2, damaged=["000004"])


def test_no_flipped_bit_of_the_progress_goes_unnoticed(tmp_path):
    write_steps(tmp_path, [4])
    path = tmp_path / "000004" / "progress.json"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        # A flip in white space between tokens changes nothing.
        assert load_last(tmp_path, *fresh()) in [(None, Memory(), ["000004"]), (progress_at(4), Memory(), [])], place


def test_where_all_checkpoints_are_damaged_training_starts_again(tmp_path):
    write_steps(tmp_path, [2, 4])
    for name in ("000002", "000004"):
        damage(tmp_path / name / "weights.safetensors", "truncated")
    trainable, optimizer = fresh()
    before = snapshot(trainable, optimizer)
    assert load_last(tmp_path, trainable, optimizer) == (None, Memory(), ["000004", "000002"])
    assert all(torch.equal(value, before[name]) for name, value in snapshot(trainable, optimizer).items())


def test_a_damaged_checkpoint_is_replaced_when_its_update_comes_again(tmp_path):
    write_steps(tmp_path, [2, 4])
    damage(tmp_path / "000004" / "weights.safetensors", "flipped")
    trainable, optimizer = fresh()
    load_last(tmp_path, trainable, optimizer)
    for step in (3, 4):
        advance(trainable, optimizer, step)
    save(tmp_path, progress_at(4), trainable, optimizer)
    assert_restored(tmp_path, {4: snapshot(trainable, optimizer)}, 4)


def test_half_written_folders_are_not_checkpoints(tmp_path):
    kept = write_steps(tmp_path, [2])
    shutil.copytree(tmp_path / "000002", tmp_path / ".000004.tmp")
    (tmp_path / ".000004.tmp" / "progress.json").unlink()
    assert_restored(tmp_path, kept, 2)
    trainable, optimizer = fresh()
    load_last(tmp_path, trainable, optimizer)
    save(tmp_path, progress_at(4), trainable, optimizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000004"]


def test_a_kill_between_any_two_writes_leaves_a_sound_checkpoint(tmp_path, monkeypatch):
    num_kills = 0
    while True:
        folder = tmp_path / f"{num_kills}"
        kept = write_steps(folder, [1, 2])
        trainable, optimizer = fresh()
        load_last(folder, trainable, optimizer)
        advance(trainable, optimizer, 3)
        kept[3] = snapshot(trainable, optimizer)
        try:
            with monkeypatch.context() as patch:
                kill_at(patch, num_kills)
                save(folder, progress_at(3), trainable, optimizer)
        except KilledError:
            num_kills += 1
        else:
            break
        is_written = (folder / "000003").exists()
        assert_restored(folder, kept, 3 if is_written else 2)
        # The resumed run writes it again, over whatever was left.
        if not is_written:
            save(folder, progress_at(3), trainable, optimizer)
            assert_restored(folder, kept, 3)
    assert num_kills > 8


@pytest.mark.parametrize("place", [(os, "fsync"), (Path, "open"), (Path, "replace")])
def test_a_full_disk_raises_and_keeps_the_old_checkpoint(tmp_path, monkeypatch, place):
    kept = write_steps(tmp_path, [2])
    trainable, optimizer = fresh()
    load_last(tmp_path, trainable, optimizer)

    def disk_full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(*place, disk_full)
        save(tmp_path, progress_at(4), trainable, optimizer)
    assert_restored(tmp_path, kept, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]  # what was begun gives its space back


def test_a_disk_that_fills_up_while_tensors_are_written_is_an_os_error(tmp_path):
    # safetensors reports it by an exception of its own, which nobody above knows as a full disk.
    kept = write_steps(tmp_path, [2])
    trainable, optimizer = fresh()
    load_last(tmp_path, trainable, optimizer)
    large = {"large": torch.nn.Parameter(torch.zeros(2**18))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*weights\.safetensors"):
            save(tmp_path, progress_at(4), trainable | large, optimizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_restored(tmp_path, kept, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]


def test_moments_are_restored_to_the_device_of_their_weights(tmp_path):
    write_steps(tmp_path, [2])
    trainable = {name: torch.nn.Parameter(p.detach().to("meta")) for name, p in fresh()[0].items()}
    optimizer = torch.optim.AdamW(list(trainable.values()))
    load_last(tmp_path, trainable, optimizer)
    for parameter in trainable.values():
        state = optimizer.state[parameter]
        assert state["exp_avg"].device.type == state["exp_avg_sq"].device.type == "meta"
        assert state["step"].device.type == "cpu"  # where AdamW keeps it
