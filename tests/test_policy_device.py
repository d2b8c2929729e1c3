import pytest
import torch
from safetensors.torch import save_file
from study_fixture import small_plan

from statewise.errors import UsageError
from statewise.policy import device
from statewise.policy.device import choose_device, choose_dtype
from statewise.run.run import run_study

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose torch says that there is a GPU; nothing is computed on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def checkpoint(folder, dtype):
    """100 parameters, 9 of them in float32 in any case."""
    save_file({"a": torch.zeros(91, dtype=dtype), "b": torch.zeros(9)}, folder / "model.safetensors")
    return folder


def test_auto_takes_a_gpu_where_there_is_one(gpu):
    assert [choose_device(setting) for setting in ("auto", "cuda", "cpu")] == [GPU, GPU, CPU]


def test_auto_takes_the_cpu_where_there_is_no_gpu(no_gpu):
    assert choose_device("auto") == choose_device("cpu") == CPU


def test_a_gpu_that_is_not_there_is_refused_and_not_replaced(no_gpu):
    with pytest.raises(UsageError, match='device "cuda": torch sees no GPU'):
        choose_device("cuda")


def test_a_run_on_a_gpu_that_is_not_there_is_refused_before_its_folder_is_made(no_gpu, tmp_path):
    plan = small_plan(tmp_path, "shared.device='cuda'")
    with pytest.raises(UsageError, match='device "cuda": torch sees no GPU'):
        run_study(plan, tmp_path / "run", print)
    assert not (tmp_path / "run").exists()


def test_mistyped_settings_are_answered_with_the_nearest_one(tmp_path):
    with pytest.raises(UsageError, match="Did you mean 'cuda'"):
        choose_device("cude")
    with pytest.raises(UsageError, match="Did you mean 'bfloat16'"):
        choose_dtype("bfloat", CPU, tmp_path)


@pytest.mark.parametrize("setting", ["float32", "bfloat16"])
def test_a_named_precision_is_taken_whatever_the_checkpoint_has(setting, tmp_path, gpu):
    for where in (CPU, GPU):
        assert choose_dtype(setting, where, checkpoint(tmp_path, torch.float32)) is getattr(torch, setting)


def test_auto_keeps_the_precision_of_the_checkpoint_on_a_gpu(tmp_path, gpu):
    assert choose_dtype("auto", GPU, checkpoint(tmp_path, torch.bfloat16)) is torch.bfloat16
    assert choose_dtype("auto", GPU, checkpoint(tmp_path, torch.float32)) is torch.float32


def test_auto_computes_in_bfloat16_on_a_cpu_for_large_models_alone(tmp_path, monkeypatch):
    folder = checkpoint(tmp_path, torch.bfloat16)
    assert choose_dtype("auto", CPU, folder) is torch.float32
    monkeypatch.setattr(device, "LARGE_PARAMETERS", 100)
    assert choose_dtype("auto", CPU, folder) is torch.bfloat16
    assert choose_dtype("auto", CPU, checkpoint(tmp_path, torch.float32)) is torch.float32


def test_a_gpu_without_bfloat16_gets_float32_only_if_nothing_else_was_asked(tmp_path, gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    folder = checkpoint(tmp_path, torch.bfloat16)
    assert choose_dtype("auto", GPU, folder) is torch.float32
    with pytest.raises(UsageError, match="this GPU does not compute in it"):
        choose_dtype("bfloat16", GPU, folder)
