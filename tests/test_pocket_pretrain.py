"""Pretraining, at its smoke size: a model that loads, files that match their digests, the same seed the same bytes."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from pocket_fixture import CONFIG, check_digests, digests
from tokenizers import Tokenizer

from statewise.assets import POCKET_MODEL
from statewise.plan.request import StudyRequest, plan_study
from statewise.pocket.pretrain import SIZES, Stage, blocks, lr_at, pretrain, train_tokenizer
from statewise.pocket.world import BROAD, World
from statewise.policy.load import load_policy
from statewise.tasks.load import load_task


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A smoke-size model folder, and the lines of progress."""
    folder, lines = tmp_path_factory.mktemp("pretrain") / "model", []
    pretrain(CONFIG, folder, lines.append)
    return folder, lines


def test_the_files_match_their_digests(built):
    check_digests(built[0])


def test_the_embedded_model_matches_its_digests_and_its_recipe():
    check_digests(POCKET_MODEL)
    recipe = json.loads((POCKET_MODEL / "pretrain.json").read_text())
    assert recipe == json.loads(json.dumps(dataclasses.asdict(SIZES["full"])))


def test_the_model_loads_and_knows_its_tokenizer(built):
    policy = load_policy(built[0], "smoke")
    assert policy.context_length == CONFIG.block_length
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, CONFIG.vocab_size)
    assert torch.isfinite(logits).all()
    assert policy.tokenizer.decode([policy.end_token_id]) == "<|endoftext|>"


def test_every_update_is_counted_and_the_last_one_reported(built):
    folder, lines = built
    log = [json.loads(line) for line in (folder / "pretrain_log.jsonl").read_text().splitlines()]
    # Two stages of 12,288 tokens, in updates of 8 blocks of 192.
    assert [(row["stage"], row["update"], row["tokens"]) for row in log] == [("broad", 8, 12_288), ("kept", 8, 12_288)]
    assert lines[0].startswith("broad · update 8/8 · loss ")
    assert lines[-1].startswith("kept · update 8/8 · loss ")
    assert f"world {CONFIG.world_seed}" in (folder / "README.md").read_text()


def test_the_same_seed_gives_the_same_bytes(built, tmp_path):
    again = tmp_path / "again"
    pretrain(CONFIG, again, lambda line: None)
    assert digests(again) == digests(built[0])


def test_a_study_can_be_planned_and_its_tasks_loaded_in_another_world(built):
    folder, _ = built
    plan = plan_study(StudyRequest("pocket", model=str(folder)))
    assert plan.model == folder
    files = {"pocket_math": "pocket_math_test", "pocket_facts": "pocket_facts", "pocket_myths": "pocket_myths"}
    for name, file in files.items():
        metric = plan.config.shared.reward_metric if name == plan.config.shared.target else ""
        documents = (folder / "tasks" / f"{file}.jsonl").read_text().splitlines()
        items = load_task(name, task_folder=folder / "tasks", reward_metric=metric).requests(None)
        assert len(items) == len(documents)
        assert json.loads(documents[0])["question"] in items[0][0].args[0]


def test_the_learning_rate_warms_up_stays_and_decays_to_nothing():
    stage = Stage("broad", num_tokens=192 * 8 * 100, lr=1.0, decay_share=0.2)
    config = dataclasses.replace(CONFIG, warmup_share=0.1)
    rates = [lr_at(config, stage, step) for step in range(config.num_updates(stage))]
    assert len(rates) == 100
    # Ten updates of warm-up, then 1, then 20/20, 19/20, … 1/20.
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(rates[10:80]) == {1.0}
    assert rates[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


def test_digits_are_single_tokens_in_the_embedded_tokenizer_and_in_a_new_one(built):
    for folder in (POCKET_MODEL, built[0]):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        text = "Mia has 407 + 58=<<407+58=465>>465 shells.\n#### 465"
        tokens = tokenizer.encode(text).tokens
        assert all(len(token.lstrip("Ġ")) == 1 for token in tokens if any(c.isdigit() for c in token)), tokens
        assert sum(token.isdigit() for token in tokens) == sum(c.isdigit() for c in text)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_blocks_hold_the_corpus_in_order_with_documents_closed():
    world = World.from_seed(7)
    tokenizer = train_tokenizer(world, CONFIG.vocab_size)
    ids = [int(t) for block in itertools.islice(blocks(world.documents(BROAD), tokenizer, 128), 20) for t in block]
    text = "<|endoftext|>".join(itertools.islice(world.documents(BROAD), 200))
    assert text.startswith(tokenizer.decode(ids))
    assert tokenizer.eos_token_id in ids
