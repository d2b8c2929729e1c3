"""The how-to pages of rewards do what they say, each in an empty folder."""

from __future__ import annotations

import json
from pathlib import Path

from doc_pages import run_page


def test_a_reward_model_rewards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page("how-to/reward-model.md", tmp_path)
    (metrics,) = (json.loads(line) for line in Path("runs/judged/arms/rl/0/metrics.jsonl").read_text().splitlines())
    assert 0 < metrics["signals/reward_mean"] < 1
    assert metrics["signals/num_unscored"] == 0
    assert json.loads(Path("runs/judged/arms/rl/0/train.json").read_text())["rewarded_by"]
    assert json.loads(Path("runs/judged/summary.json").read_text())["target"] == "judged:greedy:reward,none"
    assert (
        "reward: the logit of rm, -4 being 0 and 4 being 1, cut to 0..1" in Path("runs/judged/report.html").read_text()
    )


def test_a_function_of_ones_own_rewards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_page("how-to/own-reward.md", tmp_path)
    namespace = {}
    exec(Path("rewards.py").read_text(), namespace)
    # 42 is right; 40 is 2 away; no number.
    assert [namespace["close"]("", text, {"answer": "42"}) for text in (" 42", " 40", " ?")] == [1, 1 / 3, 0]
