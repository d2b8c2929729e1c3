"""What is exported is what was trained, loads elsewhere, and says truly where it comes from."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import peft
import pytest
import torch
import yaml
from run_fixture import FACTS, SUMS, evaluated, seal_plan, trained, write_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from statewise.errors import UsageError
from statewise.models.export import ExportRequest, export_model
from statewise.models.model_folder import read_origin, stored_weights
from statewise.plan.digest import digest_weights
from statewise.policy.load import copy_policy, save_weights
from statewise.report.card import render_card
from statewise.storage import records

PROMPT = torch.tensor([[72, 101, 108, 108, 111]])
TEXT = "Hello"


def logits(model):
    with torch.no_grad():
        return model(input_ids=PROMPT).logits


def token_ids(folder):
    return AutoTokenizer.from_pretrained(folder)(TEXT).input_ids


def shaken(policy, seed):
    """A policy of other weights."""
    changed = copy_policy(policy, "trained")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in changed.model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return changed


def peft_model(folder):
    """A LoRA adapter with random weights, made by peft alone, on the model in `folder`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = AutoModelForCausalLM.from_pretrained(folder)
        model = peft.get_peft_model(base, peft.LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    return model.eval()


@pytest.fixture(scope="module")
def made(toy_policy, tmp_path_factory):
    """A run of two seeds: sft has all weights, slim an adapter, wild diverged, late was never trained."""
    folder = tmp_path_factory.mktemp("export")
    save_weights(toy_policy, folder / "base")
    (folder / "base" / "pickled.bin").write_bytes(b"no")
    run = write_run(folder / "run", folder / "base", "org/base")
    for seed in (0, 1):
        save_weights(shaken(toy_policy, seed), run / "arms" / "sft" / str(seed) / "model")
        trained(run, "sft", seed)
        evaluated(run, "sft", seed, sums=[1, 1, 1, seed], facts=[1, 0, 0, 0])
        evaluated(run, "base", seed, sums=[1, 1, 0, 0], facts=[1, 1, 0, 0])
    adapter = run / "arms" / "slim" / "0" / "adapter"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model(folder / "base").save_pretrained(adapter)
    trained(run, "slim", 0)
    records.write_json(
        run / "arms" / "wild" / "0" / "train.json", {"status": "diverged", "reason": "update 1: loss nan"}
    )
    return run


def export(made, tmp_path, arm, seed=None, is_merged=False):
    out = tmp_path / "exported"
    facts = export_model(ExportRequest(made, arm, seed, is_merged), out, render_card)
    return out, facts


def test_exported_weights_compute_what_was_trained_and_nothing_else_is_copied(made, tmp_path):
    out, facts = export(made, tmp_path, "sft", 1)
    stored = made / "arms" / "sft" / "1" / "model"
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(out)), logits(AutoModelForCausalLM.from_pretrained(stored))
    )
    assert token_ids(out) == token_ids(made.parent / "base")
    assert {path.name for path in out.iterdir()} == {
        "README.md", "statewise.json", "study.toml", *(path.name for path in stored.iterdir())
    }  # fmt: skip
    assert (facts.weights, facts.seed) == ("full", 1)
    assert facts.provenance["weights_sha256"] == records.digest_file(stored / "model.safetensors")


def test_an_adapter_is_exported_as_it_is_and_peft_reads_it(made, tmp_path):
    out, facts = export(made, tmp_path, "slim")
    base = made.parent / "base"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out)
    assert torch.equal(logits(read), logits(peft_model(base)))
    assert not torch.allclose(logits(read), logits(AutoModelForCausalLM.from_pretrained(base)), atol=1e-2)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/base"
    assert not (out / "model.safetensors").exists()
    assert facts.weights == stored_weights(out) == "adapter"


def test_the_revision_of_a_hub_model_is_named_as_peft_and_transformers_read_it(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    study = run / "study.toml"
    study.write_text(study.read_text().replace("org/base", "org/base@v2"))
    seal_plan(run, made.parent / "base")
    out, facts = export(run, tmp_path, "slim")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "v2")
    assert (facts.base_model, facts.base_revision) == ("org/base", "v2")
    assert 'AutoModelForCausalLM.from_pretrained("org/base", revision="v2")' in (out / "README.md").read_text()
    assert read_origin(out).base_name == "org/base@v2"


def test_a_merged_adapter_is_a_plain_model_that_computes_the_same(made, tmp_path):
    out, facts = export(made, tmp_path, "slim", is_merged=True)
    merged = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(merged), logits(peft_model(made.parent / "base")), rtol=1e-4, atol=1e-4)
    assert merged.dtype == torch.float32
    assert token_ids(out) == token_ids(made.parent / "base")
    assert facts.weights == "merged"
    assert facts.provenance["adapter_sha256"] == digest_weights(made / "arms" / "slim" / "0" / "adapter")
    assert facts.provenance["weights_sha256"] == digest_weights(out)


def test_the_base_model_is_exported_without_what_is_no_model(made, tmp_path):
    out, facts = export(made, tmp_path, "base")
    base = made.parent / "base"
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(out)), logits(AutoModelForCausalLM.from_pretrained(base))
    )
    assert not (out / "pickled.bin").exists()
    assert facts.config == {}
    assert "as it was before post-training" in (out / "README.md").read_text()


def test_the_facts_are_those_of_the_records(made, tmp_path):
    out, facts = export(made, tmp_path, "sft", 0)
    assert json.loads((out / "statewise.json").read_text()) == json.loads(json.dumps(dataclasses.asdict(facts)))
    sums, of_facts = facts.scores
    # Items 1 1 1 0 against 1 1 0 0: .75 and .5; the difference 0 0 1 0 has mean .25.
    assert (sums.column, sums.score.value, sums.base.value, sums.difference.value) == (SUMS, 0.75, 0.5, 0.25)
    # 1 0 0 0 against 1 1 0 0: the model forgot one of four.
    assert (of_facts.column, of_facts.difference.value, facts.forgetting.value) == (FACTS, -0.25, 0.25)
    # t with 3 degrees of freedom, standard error sqrt(.25 / 4) = .25: .25 + 3.1824 * .25 is above 1, F's largest value.
    assert facts.forgetting.high == 1.0
    assert facts.config["source"] == {"kind": "dataset", "num_trajectories": 8}
    assert facts.config["adapter"] == {"kind": "full"}
    assert facts.budget == {"num_updates": 4.0, "num_generated_learner": 90.0, "train_s": 2.5}
    assert facts.provenance == {
        "study_fingerprint": "plan-print", "train_fingerprint": "train-sft-0", "state_hash": "cafe",
        "evaluate_fingerprint": "evaluate-sft-0", "base_weights_sha256": digest_weights(made.parent / "base"),
        "weights_sha256": digest_weights(made / "arms" / "sft" / "0" / "model"),
    }  # fmt: skip


def test_the_card_says_what_it_is_how_it_was_made_and_how_it_scores(made, tmp_path):
    out, _ = export(made, tmp_path, "sft", 0)
    card = (out / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "base_model": "org/base", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["statewise", "dataset", "imitate"],
    }  # fmt: skip
    assert "# license: the base model's card names none" in front
    for words in (
        "arm `sft` (mild SFT) of the study `by-hand`, seed 0",
        "a study \\| that nobody ran",
        "| states: source | `dataset`, num_trajectories = 8 |",
        "90 tokens written by the learner, 2.5 s of training",
        "| sums greedy | .750",
        "+.250 [",
        "* sums: 0-shot; split test, n = 4",
        "| sums greedy | +.125 [+.050, +.200] |",
        "| forgetting F | +.010 [−.020, +.040] n.r. |",
        "| torch | 2.9 |",
        "statewise export run sft --seed 0 --out exported",
    ):
        assert words in body, words
    assert str(made.parent) not in card


def test_the_licence_of_the_base_models_card_is_taken_over(made, tmp_path):
    card = made.parent / "base" / "README.md"
    card.write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# Base\n")
    try:
        out, facts = export(made, tmp_path, "sft")
    finally:
        card.unlink()
    assert facts.license == "apache-2.0"
    assert yaml.safe_load((out / "README.md").read_text().split("---\n")[1])["license"] == "apache-2.0"


@pytest.mark.parametrize(
    ("arm", "seed", "words"),
    [
        ("sff", None, "unknown arm 'sff'. Did you mean 'sft'?"),
        ("wild", None, r"'wild': it diverged in seed 0 \(update 1: loss nan\)"),
        ("late", None, "'late' is not trained yet in seed 0"),
        ("slim", 1, "'slim' is not trained yet in seed 1"),
        ("sft", 7, "has no seed 7; its seeds are 0, 1"),
    ],
)
def test_what_has_no_model_is_refused_and_leaves_nothing(made, tmp_path, arm, seed, words):
    with pytest.raises(UsageError, match=words):
        export(made, tmp_path, arm, seed)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_written_to(made, tmp_path):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "thesis.tex").write_text("words")
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        export(made, tmp_path, "sft")
    assert (tmp_path / "exported" / "thesis.tex").read_text() == "words"


def test_the_folder_one_stands_in_is_not_replaced(made):
    with pytest.raises(UsageError, match="give the name of a new folder"):
        export_model(ExportRequest(made, "sft"), Path(), render_card)


def test_a_trained_model_that_was_deleted_is_said_to_be_gone(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    shutil.rmtree(run / "arms" / "sft" / "0" / "model")
    with pytest.raises(UsageError, match=r"model/config\.json is missing, and 4 more"):
        export(run, tmp_path, "sft", 0)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        export_model(ExportRequest(tmp_path, "sft"), tmp_path / "out", render_card)


def test_weights_that_are_not_those_of_the_record_are_refused(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    with (run / "arms" / "sft" / "0" / "model" / "model.safetensors").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(UsageError, match=r"model\.safetensors is not what was recorded"):
        export(run, tmp_path, "sft", 0)


def test_an_export_that_fails_leaves_no_folder(made, tmp_path):
    def fail(_):
        raise RuntimeError("no card")

    with pytest.raises(RuntimeError, match="no card"):
        export_model(ExportRequest(made, "sft"), tmp_path / "out", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_same_export_twice_is_the_same_bytes(made, tmp_path):
    for name in ("one", "two"):
        export_model(ExportRequest(made, "sft"), tmp_path / name / "out", render_card)
    for path in (tmp_path / "one" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "out" / path.name).read_bytes()


def test_text_of_a_study_cannot_leave_its_place_in_the_card(made, tmp_path):
    _, facts = export(made, tmp_path, "sft")
    nasty = dataclasses.replace(
        facts, label="a`b|c\n# d <script>", base_model='x"\nlicense: mit', description="\x1b[2J"
    )
    card = render_card(nasty)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == 'x"\nlicense: mit'
    assert "license" not in front
    assert "\x1b" not in card and "<script>" not in card and "\n# d" not in card


def test_a_score_whose_items_are_unscored_counts_them_as_wrong(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made, run)
    evaluated(run, "sft", 0, sums=[1, None, None, 1], facts=[1, 1, 1, 1])
    _, facts = export(run, tmp_path, "sft", 0)
    assert facts.scores[0].score.value == np.mean([1, 0, 0, 1])


def test_a_folder_with_neither_weights_nor_adapter_is_no_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(UsageError, match="neither a model"):
        stored_weights(tmp_path)
