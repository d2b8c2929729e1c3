"""Reward models: what they read, that nothing in a batch or a tokenizer changes a score, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from classifier_fixture import FAMILIES, build_classifier
from conftest import END_OF_TEXT, byte_tokenizer
from families_fixture import LLAMA, build_model
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, pipeline
from trl.data_utils import apply_chat_template

from statewise.errors import UsageError
from statewise.policy import reward_model
from statewise.policy.find import REWARDER, look_up_model
from statewise.policy.reward_model import Reading, RewardModel

# The third ends with what most checkpoints pad with; their head then looks one token further back, beside others too.
ASKED = [("Q: 1+1\nA:", " 2"), ("Q: the longest of all these questions?\nA:", " 42"), ("Q:", f" x{END_OF_TEXT}")]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}" + END_OF_TEXT + "{% endfor %}"


def reward(folder, label=None, span=None, **how):
    return RewardModel("rm", folder, Reading(label, span, **how))


def chatting():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def beginning():
    """Begins a text with the letter `^`, as others do with [CLS]."""
    tokenizer = byte_tokenizer()
    begin = tokenizer.convert_tokens_to_ids("^")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="^ $A", special_tokens=[("^", begin)])
    return tokenizer


def change(path, **keys):
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_has_the_score_beside_others_that_it_has_alone(tmp_path, family):
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "left"  # as many are saved
    model = reward(build_classifier(tmp_path, family, tokenizer=tokenizer))
    together, flops = model.score_all(ASKED)
    assert together == pytest.approx([model.score_all([one])[0][0] for one in ASKED], abs=1e-5)
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    rows = [list(f"{prompt}{answer}".replace(END_OF_TEXT, "\0").encode()) for prompt, answer in ASKED]
    ids = [model.tokenizer(prompt + answer)["input_ids"] for prompt, answer in ASKED]
    with torch.no_grad():
        logits = [own(input_ids=torch.tensor([row])).logits[0, 0] for row in ids]
    assert together == pytest.approx([logit.sigmoid().item() for logit in logits], abs=1e-5)
    assert max(together) - min(together) > 1e-3
    # 2 FLOPs a weight and token, and a token a byte here.
    assert flops == 2 * sum(p.numel() for p in own.parameters()) * sum(map(len, rows))


@pytest.mark.parametrize(
    ("num_labels", "options", "label", "function"),
    [
        (1, {}, None, "sigmoid"),
        (3, {}, "LABEL_1", "softmax"),
        (3, {"problem_type": "multi_label_classification"}, "LABEL_2", "sigmoid"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_text_and_probability_are_those_of_the_pipeline_of_transformers(tmp_path, num_labels, options, label, function):
    folder = build_classifier(tmp_path, "bert", num_labels, beginning(), **options)
    classify = pipeline("text-classification", model=str(folder), top_k=None)
    model = reward(folder, label)
    for prompt, answer in ASKED:
        scores = {one["label"]: one["score"] for one in classify([prompt + answer])[0]}
        assert model.score_all([(prompt, answer)])[0] == pytest.approx([scores[label or "LABEL_0"]], abs=1e-6)
    assert model.told.startswith(f"{function} of the logit of ")
    assert model.encode([("a", "b")]) == [byte_tokenizer()("^ab")["input_ids"]]


def test_a_chat_is_read_as_trl_lets_a_reward_model_read_it(tmp_path):
    model = reward(build_classifier(tmp_path, "llama", tokenizer=chatting()), is_chat=True)
    earlier = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for asked, answer in [*ASKED, (earlier, "Yes?")]:
        before = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        turns = [*before, {"role": "assistant", "content": answer}]
        text = apply_chat_template({"messages": turns}, model.tokenizer)["text"]
        assert model.encode([(asked, answer)]) == [model.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert "through its own template" in model.check()


def test_a_template_that_leaves_out_a_turn_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[-1].content }}"
    model = reward(build_classifier(tmp_path, tokenizer=tokenizer), is_chat=True)
    with pytest.raises(UsageError, match="reward model rm: its chat template leaves out or changes the user's 'abc'"):
        model.lengths([("abc", "x")])


def test_what_text_it_reads_is_told(tmp_path):
    folder = build_classifier(tmp_path, tokenizer=chatting())
    plain, chat = byte_tokenizer()("a b")["input_ids"], reward(folder, is_chat=True)
    assert (reward(folder).encode([("a", " b")])[0], chat.encode([("a", "b")])[0] == plain) == (plain, False)
    assert "as plain text; its chat template is not used, since the study is no chat" in reward(folder).check()
    byte_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").unlink()
    chat = reward(folder, is_chat=True)
    assert chat.encode([("a", "b")])[0] == plain
    assert "prompt, delimiter and answer as plain text, since it has no chat template" in chat.check()


def test_a_text_that_is_too_long_has_no_score_and_is_never_cut(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(8)  # as some checkpoints are saved
    model = reward(build_classifier(tmp_path, tokenizer=tokenizer))
    fits, too_long = ("a" * 50, "b" * 46), ("a" * 50, "b" * 47)
    scores, _ = model.score_all([too_long, fits, ("a", "b")])
    assert [math.isnan(score) for score in scores] == [True, False, False]
    assert model.lengths([fits, too_long]) == [96, 97]


def test_positions_that_count_from_behind_the_padding_leave_a_shorter_context(tmp_path):
    model = reward(build_classifier(tmp_path, "roberta"))
    assert model.context == 94  # of 96: 0 and 1, the padding, are no positions
    assert math.isfinite(model.score_all([("a" * 90, "b" * 4)])[0][0])


def test_a_range_is_a_straight_line_between_two_logits(tmp_path):
    model = reward(build_classifier(tmp_path), span=(-2.0, 6.0))
    logits = torch.tensor([[-3.0], [-2.0], [0.0], [6.0], [9.0]])
    assert model.reward_of(logits).tolist() == [0, 0, 0.25, 1, 1]  # (0 + 2) / 8
    assert model.told == "the logit of rm, -2 being 0 and 6 being 1, cut to 0..1"


def test_no_token_is_left_to_pad_with(tmp_path):
    model = reward(build_classifier(tmp_path, "llama"))
    # All tokens of the vocabulary: the second text must not end where the padding begins.
    rows = [list(range(start, start + 86)) for start in (0, 86)] + [list(range(172, 257)), [3]]
    together = reward_model.score_rows(model.model, None, rows)
    alone = torch.cat([reward_model.score_rows(model.model, None, [row]) for row in rows])
    torch.testing.assert_close(together, alone)


def test_batches_hold_so_many_tokens_with_their_padding(monkeypatch):
    monkeypatch.setattr(reward_model, "BATCH_TOKENS", 12)
    rows = [[0] * length for length in (2, 3, 4, 5, 30)]
    assert list(reward_model._batches(range(5), rows)) == [[0, 1, 2], [3], [4]]


@pytest.mark.parametrize(
    ("num_labels", "label", "told"),
    [
        (2, None, r"\[models\.rm\]: the model has 2 labels \(bad, good\); say which is rewarded: label = "),
        (2, "goood", r"\[models\.rm\]: unknown label 'goood'\. Did you mean 'good'\?"),
        (1, "good", r"\[models\.rm\]: unknown label 'good'\. Known: bad"),
    ],
)
def test_no_label_is_chosen_silently(tmp_path, num_labels, label, told):
    names = dict(enumerate(["bad", "good"][:num_labels]))
    folder = build_classifier(tmp_path, num_labels=num_labels, id2label=names)
    with pytest.raises(UsageError, match=told):
        reward(folder, label).check()


def test_a_label_that_two_outputs_share_is_refused(tmp_path):
    folder = build_classifier(tmp_path, num_labels=2)
    change(folder / "config.json", id2label={"0": "good", "1": "good"})
    with pytest.raises(UsageError, match=r"has 2 labels 'good'; name them in its config\.json"):
        reward(folder, "good").check()


def test_outputs_of_a_regression_are_no_probabilities(tmp_path):
    folder = build_classifier(tmp_path, num_labels=2, problem_type="regression")
    with pytest.raises(UsageError, match="its labels are those of a regression; say range = "):
        reward(folder, "LABEL_1").check()
    assert reward(folder, "LABEL_1", (0.0, 4.0)).told.startswith("the logit of label 'LABEL_1' of rm, 0 being 0")


def test_a_language_model_is_no_reward_model(tmp_path):
    folder = build_model(tmp_path, "llama", LLAMA)
    told = "is a LlamaForCausalLM, which has no head that scores a text .* random one.*; use a sequence-classification"
    with pytest.raises(UsageError, match=told):
        look_up_model(str(folder), REWARDER)
    # Its config.json says otherwise, and its weights tell.
    change(folder / "config.json", architectures=["LlamaForSequenceClassification"])
    with pytest.raises(UsageError, match=r"the weights lack score\.weight, which would be random"):
        reward(folder).check()


def test_a_classifier_teaches_nobody(tmp_path):
    with pytest.raises(UsageError, match="Qwen3ForSequenceClassification, which does not predict the next token"):
        look_up_model(str(build_classifier(tmp_path)))


@pytest.mark.parametrize(
    ("architectures", "told"),
    [
        (None, "names no architecture in its config.json, so it is not known to score texts"),
        (["LlamaForRewardModel"], "is a LlamaForRewardModel, which has no head that scores a text"),
    ],
)
def test_only_an_architecture_that_scores_texts_is_taken(tmp_path, architectures, told):
    change(build_classifier(tmp_path) / "config.json", architectures=architectures)
    with pytest.raises(UsageError, match=told):
        look_up_model(str(tmp_path), REWARDER)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"architectures": ["MyForSequenceClassification"]}, "is a MyForSequenceClassification of its own code, which"),
        ({"auto_map": {"AutoModelForSequenceClassification": "m.Q"}}, "of its own code, which is never run"),
        (
            {"num_labels": 2, "id2label": None},
            r"score\.weight has the shape \[1, 32\], config\.json asks for \[2, 32\]",
        ),
    ],
)
def test_code_of_its_own_and_other_shapes_are_refused(tmp_path, keys, told):
    change(build_classifier(tmp_path) / "config.json", **keys)
    with pytest.raises(UsageError, match=told):
        reward(tmp_path, "LABEL_1" if "num_labels" in keys else None).check()


def test_an_adapter_beside_it_is_refused(tmp_path):
    (build_classifier(tmp_path) / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="has an adapter beside it; merge it into the model first"):
        reward(tmp_path).check()


def test_weights_that_are_not_whole_are_refused_when_they_are_loaded(tmp_path):
    path = build_classifier(tmp_path) / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(
        UsageError, match=r"the weights lack model\.layers\.1\.mlp\.up_proj\.weight, which would be ran"
    ):
        reward(tmp_path).score_all(ASKED)
    save_file({**weights, "model.layers.1.mlp.up_proj.weight": torch.full((64, 32), math.nan)}, path, {"format": "pt"})
    with pytest.raises(UsageError, match="its logits are not numbers; the weights are damaged"):
        reward(tmp_path).score_all(ASKED)


def test_a_model_whose_scores_depend_on_their_neighbours_is_refused(tmp_path, monkeypatch):
    model, score = reward(build_classifier(tmp_path)), reward_model.score_rows
    monkeypatch.setattr(
        reward_model, "score_rows", lambda model, pad, rows: score(model, pad, rows) + 9 * (len(rows) > 1)
    )
    with pytest.raises(UsageError, match="Qwen3ForSequenceClassification scores a text otherwise beside others"):
        model.score_all(ASKED)
