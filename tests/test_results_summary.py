"""From the records of a run folder to scores, differences and verdicts: on folders whose answers are known."""

from __future__ import annotations

import json
import math

import pytest
from study_fixture import STUDY, small_plan
from tokenizers import Tokenizer

from statewise.assets import POCKET_MODEL
from statewise.folder.store import Store
from statewise.plan.estimate import plan_budgets
from statewise.report.summary_json import summary_from_json
from statewise.results.summary import summarise, write_summary
from statewise.storage import records

ITEMS = 40
KEY = "pocket_math:greedy:exact_match,flexible-extract"
FACTS, MYTHS = "pocket_facts:choices:acc,none", "pocket_myths:choices:acc,none"
MATH_ROWS = [
    ("greedy", "exact_match,strict-match"),
    ("greedy", "exact_match,flexible-extract"),
    ("sampled", "exact_match,strict-match"),
    ("sampled", "exact_match,flexible-extract"),
]


def hypothesis(measure="forgetting", comparison="more", arms='["sft"]', than="base", margin=0.0):
    return (
        f'\n[[hypotheses]]\nname = "p"\nstatement = "s"\nmeasure = "{measure}"\ncomparison = "{comparison}"\n'
        f'arms = {arms}\nthan = "{than}"\nmargin = {margin}\n'
    )


def first_right(share):
    """Which of the items are right: the first `share` of them."""
    return [1.0 if item < share * ITEMS else 0.0 for item in range(ITEMS)]


class Folder:
    """A run folder that is written by hand."""

    def __init__(self, folder, text=STUDY):
        self.plan = small_plan(folder, text=text)
        self.store = Store(folder / "run")

    def job(self, action, arm, seed):
        return next(n for n in self.plan.jobs if (n.action, n.arm, n.seed) == (action, arm, seed))

    def trained(self, arm, seed, **changes):
        budget = {"num_updates": 4.0, "num_states": 100.0, "num_tokens": 200.0, "num_generated_learner": 50.0}
        result = {"status": "trained", "budget": budget, "num_parameters": 1000, "node_s": 2.0, **changes}
        self.store.finish(self.job("train", arm, seed), result)

    def evaluated(self, arm, seed, math, facts=None, myths=None):
        """Write the evaluation of an arm; every metric of the target has the same scores, sampled ones half of them."""
        folder = self.store.arm_folder(arm, seed)
        rows = [
            row("pocket_math", item, decoding, metric, score if decoding == "greedy" else score / 2 if score else score)
            for decoding, metric in MATH_ROWS
            for item, score in enumerate(math)
        ]
        records.write_table(folder / "evals" / "pocket_math.parquet", rows, records.ITEM_SCHEMA)
        for task, scores in (("pocket_facts", facts), ("pocket_myths", myths)):
            scores = first_right(0.5) if scores is None else scores
            rows = [row(task, item, "choices", "acc,none", score) for item, score in enumerate(scores)]
            records.write_table(folder / "evals" / f"{task}.parquet", rows, records.ITEM_SCHEMA)
        if arm != "base":
            values = {"value": 0.1 * (seed + 1), "floor": 0.05, "p_value": 0.05, "num_rollouts": 8, "num_states": 32}
            records.write_json(folder / "drift.json", {"mmd": values})
        self.store.finish(
            self.job("evaluate", arm, seed), {"status": "evaluated", "protocols": {"pocket_math": "greedy"}}
        )

    def everything(self, **shares):
        """Train and evaluate every arm on both seeds; `shares` of right answers on the target, default a half."""
        for seed in (0, 1):
            self.evaluated("base", seed, first_right(0.5))
            for arm in self.plan.config.arms:
                self.trained(arm, seed)
                self.evaluated(arm, seed, first_right(shares.get(arm, 0.5)))

    def summarise(self):
        summary = summarise(self.plan, self.store, {"python": "3"})
        write_summary(summary, self.store)
        assert summary_from_json(records.read_json(self.store.folder / "summary.json")) == summary
        return summary


def row(task, item, decoding, metric, score):
    return {"task": task, "item": item, "decoding": decoding, "metric": metric, "score": score, "response": ""}


def run_of(summary, arm):
    return next(run for run in summary.runs if run.arm == arm)


def test_answers_that_did_not_end_are_counted_over_seeds_for_the_reward_metric_alone(tmp_path):
    folder = Folder(tmp_path)
    folder.everything()
    rewarded = folder.plan.config.shared.reward_metric
    path = folder.store.arm_folder("sft", 1) / "evals" / "pocket_math.parquet"
    rows = records.read_table(path)
    for one in rows:
        # The greedy answers to the first item, a right one, and to the last, a wrong one, were cut.
        one["is_finished"] = one["decoding"] != "greedy" or one["item"] not in (0, ITEMS - 1)
    records.write_table(path, rows, records.ITEM_SCHEMA)
    folder.store.finish(folder.job("evaluate", "sft", 1), {"status": "evaluated", "protocols": {}})
    own = [one for one in rows if one["metric"] == rewarded]
    num_rewarded = sum(one["score"] > 0 for one in own)
    summary = folder.summarise()
    assert run_of(summary, "sft").evaluated_answers == {
        "num_answers": len(own), "num_unfinished": 2, "num_rewarded": num_rewarded, "num_rewarded_unfinished": 1,
    }  # fmt: skip
    assert run_of(summary, "base").evaluated_answers == {}  # written by an earlier version, which did not record it


def verdict_of(summary):
    (only,) = summary.hypotheses
    return only.verdict


def test_scores_and_differences_are_means_over_items_and_seeds(tmp_path):
    folder = Folder(tmp_path)
    folder.everything(sft=0.75)
    folder.evaluated("sft", 1, first_right(0.85))
    sft = run_of(folder.summarise(), "sft")
    # Seeds .75 and .85 against .5 and .5.
    assert sft.scores[KEY].value == pytest.approx(0.8)
    assert sft.against_base[KEY].value == pytest.approx(0.3)
    assert (sft.scores[KEY].num_items, sft.scores[KEY].num_seeds, sft.num_seeds) == (ITEMS, 2, 2)
    assert sft.against_base[FACTS].value == 0.0


def test_columns_are_the_target_first_then_one_a_retention_task(tmp_path):
    folder = Folder(tmp_path)
    folder.everything()
    summary = folder.summarise()
    assert list(summary.columns) == [
        KEY,
        "pocket_math:sampled:exact_match,flexible-extract",
        "pocket_math:greedy:exact_match,strict-match",
        FACTS,
        MYTHS,
    ]
    assert list(summary.columns.values()) == [
        "pocket_math greedy", "pocket_math sampled", "pocket_math strict-match", "pocket_facts", "pocket_myths",
    ]  # fmt: skip
    assert summary.protocols == {"pocket_math": "greedy"}
    assert summary.problems == ()


def test_forgetting_retention_and_the_teacher_are_paired(tmp_path):
    folder = Folder(tmp_path)
    folder.everything(sft=0.6, opd=0.7)
    for seed in (0, 1):
        folder.evaluated("sft", seed, first_right(0.6), facts=first_right(0.4), myths=first_right(0.3))
    summary = folder.summarise()
    # F = ((.5 - .4) + (.5 - .3)) / 2 = .15; retention (.4 / .5 + .3 / .5) / 2 = .7.
    assert run_of(summary, "sft").forgetting.value == pytest.approx(0.15)
    assert run_of(summary, "sft").retention_ratio.value == pytest.approx(0.7)
    assert run_of(summary, "opd").against_teacher[KEY].value == pytest.approx(0.1)
    assert run_of(summary, "opd").teacher == "sft"
    base = run_of(summary, "base")
    assert (base.forgetting, base.retention_ratio, base.against_base, base.recipe) == (None, None, {}, "not trained")


def test_a_distance_that_a_seed_did_not_measure_is_summarised_over_the_others(tmp_path):
    folder = Folder(tmp_path)
    folder.everything()
    path = folder.store.arm_folder("sft", 1) / "drift.json"
    one = records.read_json(path)["mmd"]
    records.write_json(path, {"mmd": one, "within_prompt_mmd": one})
    folder.store.finish(folder.job("evaluate", "sft", 1), {"status": "evaluated", "protocols": {}})
    drift = run_of(folder.summarise(), "sft").drift
    assert {name: estimate.num_seeds for name, estimate in drift.items()} == {"mmd": 2, "within_prompt_mmd": 1}


def test_unfinished_answers_are_summed_over_seeds_and_a_note_is_a_problem(tmp_path):
    folder = Folder(tmp_path)
    folder.everything()
    answers = {"num_trajectories": 8, "num_unfinished": 3, "num_rewarded": 4, "num_rewarded_unfinished": 1}
    note = "the sampler's log-probabilities are 0.1 nats from those that the policy is trained with"
    folder.trained("rl", 0, answers=answers, notes=[note])
    folder.trained("rl", 1, answers=answers)
    summary = folder.summarise()
    assert run_of(summary, "rl").answers == {key: 2 * count for key, count in answers.items()}
    assert run_of(summary, "sft").answers == {}
    folder.trained("rl", 1, answers={**dict.fromkeys(answers, 0), "num_trajectories": 8, "num_rewarded": 4})
    one_ended = {"num_trajectories": 16, "num_unfinished": 3, "num_rewarded": 8, "num_rewarded_unfinished": 1}
    assert run_of(folder.summarise(), "rl").answers == one_ended
    assert f"train:rl:0: {note}" in summary.problems


def test_drift_and_budget_are_means_over_seeds(tmp_path):
    folder = Folder(tmp_path)
    folder.everything()
    folder.trained("sft", 1, node_s=4.0)
    sft = run_of(folder.summarise(), "sft")
    drift = sft.drift["mmd"]
    # Values .1 and .2: standard error .05, t of 1 degree of freedom at .975: 12.706. p: q (1 - ln q), q = .05 * .05.
    assert (drift.value, drift.low, drift.high) == pytest.approx((0.15, 0.15 - 0.6353, 0.15 + 0.6353), abs=1e-4)
    assert (drift.floor, drift.p_values, drift.num_seeds) == (0.05, (0.05, 0.05), 2)
    assert drift.p_value == pytest.approx(0.0025 * (1 - math.log(0.0025)))
    assert sft.budget["train_s"] == 3.0
    assert sft.budget["num_tokens"] == 200.0


@pytest.mark.parametrize(
    ("comparison", "margin", "verdict"),
    [
        # The difference is .5 with an interval of about .5 ± .16.
        ("more", 0.0, "holds"),
        ("more", 0.3, "holds"),
        ("more", 0.5, "not resolved"),
        ("more", 0.8, "does not hold"),
        ("less", 0.8, "holds"),
        ("less", 0.5, "not resolved"),
        ("less", 0.3, "does not hold"),
        ("less", 0.0, "does not hold"),
    ],
)
def test_a_hypothesis_is_judged_by_its_interval_and_margin(tmp_path, comparison, margin, verdict):
    folder = Folder(tmp_path, STUDY + hypothesis("pocket_math", comparison, margin=margin))
    folder.everything(sft=1.0)
    summary = folder.summarise()
    assert verdict_of(summary) == verdict
    contrast = summary.hypotheses[0].contrasts["sft - base"]
    assert contrast.value == pytest.approx(0.5)
    side = "above" if comparison == "more" else "below"
    assert summary.hypotheses[0].test == f"paired difference of pocket_math {side} {margin:g}, two-sided"
    assert (summary.hypotheses[0].p_adjusted < 0.05) == (verdict != "not resolved")


def test_every_contrast_of_a_hypothesis_must_hold_and_one_may_refute_it(tmp_path):
    def judge(name, **shares):
        (tmp_path / name).mkdir()
        folder = Folder(tmp_path / name, STUDY + hypothesis("pocket_math", arms='["sft", "rl"]'))
        folder.everything(**shares)
        return verdict_of(folder.summarise())

    assert judge("both", sft=1.0, rl=1.0) == "holds"
    assert judge("one", sft=1.0, rl=0.5) == "not resolved"
    assert judge("against", sft=1.0, rl=0.1) == "does not hold"


def test_forgetting_can_be_claimed_against_another_arm(tmp_path):
    folder = Folder(tmp_path, STUDY + hypothesis("forgetting", than="rl"))
    folder.everything()
    for seed in (0, 1):
        folder.evaluated("sft", seed, first_right(0.5), facts=first_right(0.0), myths=first_right(0.1))
    (found,) = folder.summarise().hypotheses
    # F(sft) - F(rl) = ((.5 - 0) + (.5 - .1)) / 2 - 0 = .45.
    assert found.contrasts["sft - rl"].value == pytest.approx(0.45)
    assert found.verdict == "holds"


def test_sampled_answers_can_be_claimed(tmp_path):
    folder = Folder(tmp_path, STUDY + hypothesis("pocket_math:sampled"))
    folder.everything(sft=1.0)
    assert folder.summarise().hypotheses[0].contrasts["sft - base"].value == pytest.approx(0.25)


def test_a_hypothesis_about_answers_that_a_task_does_not_have_is_not_resolved(tmp_path):
    # A target that scores given choices has no sampled answers.
    folder = Folder(tmp_path, STUDY + hypothesis("pocket_math:sampled"))
    folder.everything()
    for path in folder.store.folder.rglob("pocket_math.parquet"):
        rows = [one for one in records.read_table(path) if one["decoding"] == "greedy"]
        records.write_table(path, rows, records.ITEM_SCHEMA)
    (found,) = folder.summarise().hypotheses
    assert found.verdict == "not resolved"
    assert "no scores" in found.note


def test_a_diverged_arm_and_its_student_have_no_scores_and_are_named(tmp_path):
    folder = Folder(tmp_path, STUDY + hypothesis("pocket_math", arms='["sft", "rl"]'))
    folder.everything(sft=1.0, rl=1.0)
    for seed in (0, 1):
        folder.trained("sft", seed, status="diverged", reason="update 1: loss nan")
        skipped = {"status": "skipped", "reason": "there is no trained model", "node_s": 0.0}
        folder.store.finish(folder.job("evaluate", "sft", seed), skipped)
    summary = folder.summarise()
    sft = run_of(summary, "sft")
    assert (sft.num_seeds, sft.num_diverged, sft.scores, sft.forgetting, sft.drift) == (0, 2, {}, None, {})
    assert run_of(summary, "opd").against_teacher == {}
    assert "train:sft:0 diverged: update 1: loss nan" in summary.problems
    assert "evaluate:sft:1 skipped: there is no trained model" in summary.problems
    assert verdict_of(summary) == "not resolved"
    assert "an arm of this hypothesis has no scores of this measure" in summary.hypotheses[0].note


def test_one_diverged_seed_leaves_the_other_and_differences_use_common_seeds(tmp_path):
    folder = Folder(tmp_path)
    folder.everything(sft=0.75)
    folder.trained("sft", 0, status="diverged", reason="update 1: loss nan")
    folder.store.finish(folder.job("evaluate", "sft", 0), {"status": "skipped", "reason": "x", "node_s": 0.0})
    folder.evaluated("opd", 0, first_right(0.0))
    folder.evaluated("opd", 1, first_right(0.85))
    summary = folder.summarise()
    sft, opd = run_of(summary, "sft"), run_of(summary, "opd")
    assert (sft.num_seeds, sft.num_diverged) == (1, 1)
    assert opd.num_seeds == 2
    # Only seed 1 has both student and teacher: .85 - .75.
    assert opd.against_teacher[KEY].value == pytest.approx(0.1)
    assert opd.against_teacher[KEY].num_seeds == 1


def test_what_is_not_done_is_named_and_the_rest_is_summarised(tmp_path):
    folder = Folder(tmp_path, STUDY + hypothesis("pocket_math", arms='["rl"]'))
    folder.evaluated("base", 0, first_right(0.5))
    folder.trained("sft", 0)
    folder.evaluated("sft", 0, first_right(0.75))
    summary = folder.summarise()
    assert run_of(summary, "sft").scores[KEY].value == 0.75
    assert run_of(summary, "rl").scores == {}
    assert summary.problems[0].startswith("not done yet: train:rl:0, evaluate:rl:0, train:opd:0")
    assert verdict_of(summary) == "not resolved"


def test_a_folder_in_which_nothing_is_done_is_summarised(tmp_path):
    folder = Folder(tmp_path, STUDY + hypothesis("pocket_math"))
    summary = folder.summarise()
    assert summary.columns == {}
    assert [run.num_seeds for run in summary.runs] == [0, 0, 0, 0]
    assert records.read_table(folder.store.folder / "results.parquet") == []


def test_an_answer_that_could_not_be_scored_is_not_correct_and_is_reported(tmp_path):
    folder = Folder(tmp_path)
    folder.everything(sft=1.0)
    folder.evaluated("sft", 0, [None, None, *first_right(1.0)[2:]])
    summary = folder.summarise()
    # 38 of 40 and 40 of 40.
    assert run_of(summary, "sft").scores[KEY].value == pytest.approx(78 / 80)
    assert "sft seed 0: 2 answers of pocket_math greedy could not be scored" in summary.problems


def test_a_base_model_that_fails_a_retention_task_has_no_retention_ratio(tmp_path):
    folder = Folder(tmp_path)
    folder.everything()
    for seed in (0, 1):
        folder.evaluated("base", seed, first_right(0.5), facts=first_right(0.0))
        folder.evaluated("sft", seed, first_right(0.5))  # its drift was measured against another base
    sft = run_of(folder.summarise(), "sft")
    assert sft.retention_ratio is None
    assert sft.forgetting.value == pytest.approx(-0.25)


def test_results_are_one_row_a_run_and_column(tmp_path):
    folder = Folder(tmp_path)
    folder.everything(sft=0.75)
    summary = folder.summarise()
    rows = records.read_table(folder.store.folder / "results.parquet")
    assert len(rows) == 4 * len(summary.columns)
    (found,) = [one for one in rows if (one["arm"], one["column"]) == ("sft", KEY)]
    estimate = run_of(summary, "sft").scores[KEY]
    assert (found["value"], found["low"], found["high"]) == (estimate.value, estimate.low, estimate.high)


def test_a_recipe_says_where_what_and_how_far(tmp_path):
    folder = Folder(tmp_path)
    recipes = {run.arm: run.recipe for run in folder.summarise().runs}
    assert recipes["sft"] == "imitate on dataset states · 4 updates of 8 · lr 0.0003 constant · full weights"
    assert recipes["opd"].startswith("continuation of sft on learner rollout states · 4 updates of 8 · lr 0.0003")
    assert recipes["rl"].startswith("reward on learner rollout states · 4 updates of 8 · lr 0.0001")


def test_a_summary_is_json_without_nan(tmp_path):
    folder = Folder(tmp_path)
    folder.everything()
    folder.summarise()
    text = (folder.store.folder / "summary.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize(
    ("moved", "words"),
    [
        ({"protocols": {"pocket_math": "5-shot"}}, "pocket_math: evaluated under different protocols"),
        ({"items_sha256": {"pocket_facts": "b"}}, "pocket_facts: evaluated under different items"),
        ({"device": "cuda, bfloat16"}, "different devices or in different precisions: cpu, float32; cuda, bfloat16"),
    ],
)
def test_evaluations_of_different_kinds_in_one_folder_are_a_problem(tmp_path, moved, words):
    folder = Folder(tmp_path)
    for arm in ("base", "sft"):
        folder.evaluated(arm, 0, first_right(0.5))
        job = folder.job("evaluate", arm, 0)
        asked = {
            "protocols": {"pocket_math": "0-shot"},
            "items_sha256": {"pocket_facts": "a"},
            "device": "cpu, float32",
        }
        stored = {"status": "evaluated", **asked, **(moved if arm == "sft" else {})}
        folder.store.finish(job, stored)
    problems = summarise(folder.plan, folder.store, {}).problems
    assert sum(words in problem for problem in problems) == 1
    assert sum("evaluated" in problem for problem in problems) == 1


DESIGN = """\
[study]
name = "small"
seeds = [0, 1]
factors = ["source", "update"]

[shared]
signal = { kind = "imitate" }
[shared.update]
num_updates = 4
lr = 3e-4

[arms.other]
source = { kind = "dataset", num_trajectories = 8 }

[grid.axes.source]
data = { source = { kind = "dataset", num_trajectories = 8 } }
own = { source = { kind = "rollout", num_prompts = 8 } }
[grid.axes.lr]
low = { update = { lr = 1e-4 } }
high = { update = { lr = 1e-3 } }
"""


def test_a_design_is_summarised_with_levels_hashes_and_effects(tmp_path):
    folder = Folder(tmp_path, DESIGN)
    folder.everything(**{"data.high": 0.7, "own.low": 0.6, "own.high": 0.8})
    folder.trained("own.low", 1, state_hash="ab" * 32)
    summary = folder.summarise()
    assert run_of(summary, "own.low").levels == {"source": "own", "lr": "low"}
    assert run_of(summary, "own.low").state_hashes == {"1": "ab" * 32}
    assert (run_of(summary, "other").levels, run_of(summary, "base").levels) == ({}, {})
    gain, forgetting = summary.effects
    # Gains 0 .2 / .1 .3, equal in both seeds: source ± .05, lr ± .1, so SS are as 1 to 4.
    assert {effect.name: round(effect.eta_squared, 6) for effect in gain.effects} == {
        "source": 0.2, "lr": 0.8, "source × lr": 0.0, "between seeds": 0.0,
    }  # fmt: skip
    assert (gain.response, gain.num_cells, gain.num_seeds) == ("gain", 4, 2)
    assert (forgetting.response, forgetting.effects, forgetting.note) == (
        "forgetting", (), "all cells have the same value",
    )  # fmt: skip


def test_a_diverged_cell_is_left_out_of_the_effects_with_a_note(tmp_path):
    folder = Folder(tmp_path, DESIGN.replace("low = {", "mid = { update = { lr = 2e-4 } }\nlow = {"))
    for seed in (0, 1):
        folder.evaluated("base", seed, first_right(0.5))
        for arm in folder.plan.config.arms:
            if arm != "own.high":
                folder.trained(arm, seed)
                folder.evaluated(arm, seed, first_right(0.6 + 0.1 * (arm.startswith("own") + seed)))
    gain, _ = folder.summarise().effects
    assert gain.factors == {"source": ("data", "own"), "lr": ("mid", "low")}
    assert gain.note == "left out, since cells of them are missing: lr high"


def test_a_study_without_a_design_has_no_effects(tmp_path):
    folder = Folder(tmp_path)
    folder.everything()
    assert folder.summarise().effects == ()


def test_the_plan_stands_beside_what_was_used(tmp_path):
    folder = Folder(tmp_path)
    folder.everything()
    # 4 updates of 8 rows; the fake model's folder has no training documents, so no length is known.
    assert run_of(folder.summarise(), "sft").planned == {"num_updates": 4.0, "num_trajectories": 32.0}
    assert run_of(folder.summarise(), "base").planned == {}


def test_tokens_are_planned_where_the_lengths_of_texts_are_known(tmp_path):
    folder = Folder(tmp_path)
    (folder.plan.model / "tokenizer.json").write_bytes((POCKET_MODEL / "tokenizer.json").read_bytes())
    documents = '{"question": "1 + 1", "answer": "2"}\n'
    (folder.plan.model / "tasks" / "pocket_math_train.jsonl").write_text(documents)
    tokenizer = Tokenizer.from_file(str(POCKET_MODEL / "tokenizer.json"))
    prompt, gold = len(tokenizer.encode("1 + 1").ids), len(tokenizer.encode("2").ids)
    planned = plan_budgets(folder.plan)
    num_tokens = 32.0 * (prompt + gold)
    assert planned["sft"].pop("train_s") > 0
    assert planned["sft"] == {
        "num_updates": 4.0, "num_trajectories": 32.0,
        "num_states": 32.0 * gold, "num_loss_tokens": 32.0 * gold, "num_tokens": num_tokens,
        # 2 N forward and 4 N backward a token; the fake model counts as the reference of 0.92 M parameters.
        "flops_forward": 2 * 0.92e6 * num_tokens, "flops_backward": 4 * 0.92e6 * num_tokens,
    }  # fmt: skip
    # 32 rollouts that fill half of 128 tokens; the teacher continues each by 8.
    opd = planned["opd"]
    assert (opd["num_states"], opd["num_loss_tokens"]) == (32.0 * 64, 32.0 * 8)
    assert (opd["num_generated_learner"], opd["num_generated_teacher"]) == (32.0 * 64, 32.0 * 8)


def test_parts_of_the_target_s_items_and_pass_at_k_are_columns_of_their_own(tmp_path):
    folder = Folder(tmp_path, STUDY.replace("seeds = [0, 1]", "seeds = [0]"))
    reward = "exact_match,flexible-extract"
    for arm, right in (("base", 0.5), ("sft", 0.8)):
        folder.evaluated(arm, 0, first_right(right))
        path = folder.store.arm_folder(arm, 0) / "evals" / "pocket_math.parquet"
        rows = [
            {**row("pocket_math", item, decoding, metric, score), "member": "rare" if item >= 30 else "familiar"}
            for decoding, metric in [
                ("greedy", reward),
                ("sampled", reward),
                ("pass@8", reward),
                ("greedy", "style,bare"),
            ]
            for item, score in enumerate(first_right(right))
        ]
        records.write_table(path, rows, records.ITEM_SCHEMA)
        folder.store.finish(folder.job("evaluate", arm, 0), {"status": "evaluated", "protocols": {}})
    summary = folder.summarise()
    headings = list(summary.columns.values())
    assert headings[:6] == [
        "pocket_math greedy", "pocket_math sampled", "pocket_math pass@8",
        "pocket_math familiar", "pocket_math rare", "pocket_math bare",
    ]  # fmt: skip
    scores = {summary.columns[key]: value for key, value in run_of(summary, "sft").scores.items()}
    # 32 of 40 are right, the first ones: all 30 familiar ones, 2 of the 10 rare.
    assert scores["pocket_math familiar"].value == 1.0
    assert scores["pocket_math rare"].value == pytest.approx(0.2)
    assert (scores["pocket_math familiar"].num_items, scores["pocket_math rare"].num_items) == (30, 10)
