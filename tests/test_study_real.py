"""The study `paper` from its file to its report: a random model of its family, the real GSM8K, TruthfulQA and MMLU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from forked import CONTEXT, command, start_server

from statewise.report.summary_json import summary_from_json
from statewise.storage import records

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}"
)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmark files are not at hand (../shared/data)")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    spec = importlib.util.spec_from_file_location("random_model", ROOT / "tools" / "random_model.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    folder = tmp_path_factory.mktemp("model") / "random"
    tool.write_random_model("qwen3-tiny", folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT_TEMPLATE}))
    return folder


def run(tmp_path, *arguments) -> tuple[int, str]:
    start_server()
    log = tmp_path / "log.txt"
    process = CONTEXT.Process(target=command, args=(["run", *arguments], log))
    process.start()
    process.join(600)
    return process.exitcode, log.read_text()


def test_the_paper_s_study_runs_to_its_report_on_real_benchmarks(model, tmp_path):
    out = tmp_path / "run"
    code, output = run(
        tmp_path, "paper", "--quick", "--chat", "--model", model, "--data", DATA, "--limit", 4, "--out", out
    )
    assert code == 0, output
    summary = summary_from_json(records.read_json(out / "summary.json"))
    assert [run.arm for run in summary.runs] == [
        "base", "mild-sft", "stress-sft", "opd-from-mild", "opd-from-stress", "rl",
    ]  # fmt: skip
    assert all(len(run.scores) == 6 for run in summary.runs)  # GSM8K greedy, sampled and strict, TruthfulQA ×2, MMLU
    assert summary.protocols["gsm8k"].startswith("0-shot; split test, n = 1319; filters strict-match")
    assert "chat template" in summary.protocols["gsm8k"]
    assert "n = 14042 of 57 tasks" in summary.protocols["mmlu"]
    assert all("4 items only" in line for line in summary.protocols.values())
    for arm in ("mild-sft", "opd-from-mild", "rl"):
        assert (out / "arms" / arm / "0" / "adapter" / "adapter_model.safetensors").is_file()
    states = records.read_table(next((out / "arms" / "mild-sft" / "0" / "states").glob("*.parquet")))
    assert len(states) == 2 * 2
    assert "OPD from stress SFT" in output
    assert "arXiv:2605.22731, Table 2" in (out / "report.html").read_text()


TARGET = "shared.target=truthfulqa_mc1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["paper"], "study 'paper' cannot run here: it needs a GPU, and torch sees none"),
        (["paper", "--quick", "--data", "nowhere"], "--data nowhere: no such folder"),
        (["paper", "--quick", "--limit", 1], "--limit 1: expected a number >= 2"),
        (["smollm2", "--set", TARGET, "--set", "shared.protocol={}"], "it has no prompts to continue"),
    ],
)
def test_what_cannot_run_is_refused_before_a_model_is_loaded(model, tmp_path, options, words):
    data = [] if "--data" in options else ["--data", DATA]
    code, output = run(tmp_path, *options, "--model", model, *data, "--out", tmp_path / "run")
    assert code == 2
    assert words in output
    assert not (tmp_path / "run").exists()
