"""Files of `lm_eval --log_samples` as sides of a comparison: paired item by item, or refused in one line."""

from __future__ import annotations

import json
import math

import pytest
from run_fixture import PROTOCOL, write_evaluation

from statewise.errors import UsageError
from statewise.models.compare import compare
from statewise.models.sides import read_side

DATE, LATER = "2026-01-02T03-04-05.678901", "2026-01-03T03-04-05.678901"
NUM_CHOICES = 4


def row(
    item, score, *, metric="acc", filter_="none", prompt="Q: {}", doc="document {}", num_choices=NUM_CHOICES, **more
):
    """A row of a task of `num_choices` choices; of none, of written answers."""
    asked = prompt.format(item)
    choices = [[asked, f" {letter}"] for letter in "abcdef"[:num_choices]] or [
        [asked, {"until": ["\n"], "max_gen_toks": 9}]
    ]
    arguments = {f"gen_args_{n}": {f"arg_{i}": part for i, part in enumerate(one)} for n, one in enumerate(choices)}
    resps = [[["-1.5", "False"]] for _ in range(num_choices)] or [["an answer"]]
    values = {metric: score} if metric else {}
    return {
        "doc_id": item, "doc": {"text": doc.format(item)}, "target": "0", "arguments": arguments, "resps": resps,
        "filter": filter_, "metrics": list(values), **values, **more,
    }  # fmt: skip


def results_of(task="quiz", **changes):
    config = {
        "test_split": "test",
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc", "aggregation": "mean"}],
    }
    return {
        "configs": {task: config}, "versions": {task: 1.0}, "n-shot": {task: 0}, "lm_eval_version": "0.4.13",
        "n-samples": {task: {"original": 4, "effective": 4}}, "config": {"limit": None}, "chat_template": None,
        **changes,
    }  # fmt: skip


def write_log(folder, rows, task="quiz", date=DATE, results=None):
    place = folder / "org__model"
    place.mkdir(parents=True, exist_ok=True)
    (place / f"samples_{task}_{date}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    if results is not False:
        (place / f"results_{date}.json").write_text(json.dumps(results or results_of(task)))
    return folder


def of_scores(*scores, **more):
    return [row(item, score, **more) for item, score in enumerate(scores)]


@pytest.fixture
def two(tmp_path):
    """Compare two logs: lists of rows, or folders."""

    def compare_logs(a, b, **of_b):
        return compare(
            read_side(str(write_log(tmp_path / "a", a))), read_side(str(write_log(tmp_path / "b", b, **of_b)))
        )

    return compare_logs


def test_two_logs_are_compared_item_by_item(two):
    comparison = two(of_scores(1.0, 1.0, 0.0, 0.0), of_scores(0.0, 1.0, 1.0, 0.0))
    (score,) = comparison.scores
    assert (score.task, score.decoding, score.metric) == ("quiz", "choices", "acc,none")
    assert (score.lost.value, score.gained.value, score.mcnemar_p) == (0.25, 0.25, 1.0)
    # k = 4: 4/3 for the one lost, -4/9 for the one wrong twice.
    assert score.lost_adjusted.value == pytest.approx((4 / 3 - 4 / 9) / 4)
    assert comparison.protocols == {"quiz": PROTOCOL}
    assert comparison.notes == ()


def test_a_log_and_an_evaluation_of_other_items_are_refused(tmp_path):
    rows = of_scores(1.0, 0.0, metric="exact_match", num_choices=0)
    log = write_log(
        tmp_path / "log", rows, task="sums", results=results_of("sums", configs={"sums": {"test_split": "test"}})
    )
    ours = write_evaluation(
        tmp_path / "ours", {"sums": [1, 1]}, protocol=f"{PROTOCOL}; greedy and sampled, at most 9 new tokens"
    )
    with pytest.raises(UsageError, match=r"2 of the same number are other documents or prompts"):
        compare(read_side(str(log)), read_side(str(ours)))


def test_items_of_one_side_alone_are_counted(two):
    comparison = two(of_scores(1, 1, 0, 0), of_scores(0, 1, 1))
    assert comparison.scores[0].difference.num_items == 3
    assert "compared on the 3 items in common, of 4 of" in comparison.notes[0]


def test_equal_rows_that_stand_twice_count_once_and_are_told(two):
    comparison = two([*of_scores(1, 0, 0), row(2, 0)], of_scores(0, 1, 1))
    assert comparison.scores[0].difference.num_items == 3
    assert any(note.endswith("quiz: equal rows that stand there twice, and count once: 1") for note in comparison.notes)


@pytest.mark.parametrize(("first", "again"), [(0, 1), (math.nan, 0.5), (0.5, math.nan)])
def test_rows_that_contradict_each_other_are_refused_with_their_place(two, first, again):
    with pytest.raises(UsageError, match=r"jsonl:3: item 1 of task 'quiz' stands here twice, with different scores"):
        two([*of_scores(1, first), row(1, again)], of_scores(0, 1))


def test_a_score_of_one_side_alone_takes_no_items_from_the_others(two):
    ours = [*of_scores(1, 0, 1), row(0, 1, metric="style")]
    comparison = two([ours[3] | {"acc": 1, "metrics": ["acc", "style"]}, *ours[1:3]], of_scores(1, 1, 1))
    assert [(score.metric, score.difference.num_items) for score in comparison.scores] == [("acc,none", 3)]
    assert comparison.notes == ("quiz: on one side only: choices style,none",)


@pytest.mark.parametrize(
    "bad",
    [{"arguments": None}, {"arguments": {}}, {"resps": 3}, {"doc_id": [1]}, {"doc_id": None}, {"metrics": 5}],
    ids=str,
)
def test_a_row_with_another_thing_in_a_key_is_one_line(two, bad):
    with pytest.raises(UsageError, match=f"jsonl:2: '{next(iter(bad))}' is "):
        two([row(0, 1), row(1, 1) | bad], of_scores(1, 1))


@pytest.mark.parametrize(
    "bad",
    [
        {"configs": {"quiz": None}}, {"configs": {"quiz": []}}, {"n-samples": []}, {"config": None},
        {"configs": {"quiz": {"metric_list": ["acc"]}}},
    ],
    ids=str,
)  # fmt: skip
def test_results_with_another_thing_in_a_key_are_one_line(tmp_path, bad):
    with pytest.raises(UsageError, match="not the results of lm-eval: "):
        read_side(str(write_log(tmp_path, of_scores(1, 0), results=results_of(**bad))))


@pytest.mark.parametrize(
    ("of_b", "words"),
    [
        ({"prompt": "Question: {}"}, "4 of the same number are other documents or prompts"),
        ({"doc": "another {}"}, "4 of the same number are other documents or prompts"),
        ({"metric": "acc_norm"}, "no score in common: A choices acc,none, B choices acc_norm,none"),
        ({"filter_": "strict"}, "no score in common: A choices acc,none, B choices acc,strict"),
    ],
)
def test_other_prompts_documents_metrics_and_filters_are_refused(two, of_b, words):
    with pytest.raises(UsageError, match=f"quiz cannot be compared: .*{words}"):
        two(of_scores(1, 1, 0, 0), of_scores(1, 1, 0, 0, **of_b))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n-shot": {"quiz": 5}}, "A 0-shot, B 5-shot"),
        ({"versions": {"quiz": 2.0}}, "A task version 1.0, B task version 2.0"),
        ({"lm_eval_version": "0.4.9"}, "A lm-eval 0.4.13, B lm-eval 0.4.9"),
        ({"chat_template": "{{ messages }}", "fewshot_as_multiturn": True}, "A without that, B chat template"),
        ({"system_instruction": "Be brief.", "system_instruction_sha": "abcdef0123"}, "system instruction abcdef01"),
    ],
)
def test_what_was_asked_in_another_way_is_refused_and_the_difference_named(two, changes, words):
    with pytest.raises(UsageError, match=f"its protocol differs: .*{words}"):
        two(of_scores(1, 0, 0, 0), of_scores(1, 1, 0, 0), results=results_of(**changes))


def test_chats_are_paired_by_document_with_a_note(tmp_path):
    chat = results_of(chat_template="{{ messages }}", fewshot_as_multiturn=True)
    a = write_log(tmp_path / "a", of_scores(1, 0, prompt="<user> {}"), results=chat)
    b = write_log(tmp_path / "b", of_scores(1, 1, prompt="[INST] {}"), results=chat)
    comparison = compare(read_side(str(a)), read_side(str(b)))
    assert comparison.scores[0].gained.value == 0.5
    assert any("chat template; items are the same by document" in note for note in comparison.notes)


def test_a_limit_is_no_other_protocol(two):
    few = results_of(config={"limit": 2.0}, **{"n-samples": {"quiz": {"original": 4, "effective": 2}}})
    comparison = two(of_scores(1, 1, 0, 0), of_scores(0, 1), results=few)
    assert comparison.scores[0].difference.num_items == 2


def test_single_files_are_compared_without_results_and_say_so(tmp_path):
    files = [next(write_log(tmp_path / name, of_scores(*scores), results=False).rglob("*.jsonl"))
             for name, scores in (("a", (1, 0)), ("b", (1, 1)))]  # fmt: skip
    comparison = compare(*(read_side(str(path)) for path in files))
    assert comparison.scores[0].gained.value == 0.5
    assert comparison.scores[0].chance == 1 / NUM_CHOICES
    assert sum("no results of its date beside it" in note for note in comparison.notes) == 2


def test_nan_is_an_answer_that_could_not_be_scored(two):
    comparison = two(of_scores(1, 0), of_scores(math.nan, 1))
    assert any("1 unscored answers count as not correct" in note for note in comparison.notes)


def test_several_right_choices_make_a_likelier_guess(two):
    (score,) = two(of_scores(1, 0, target="[0, 2]"), of_scores(0, 1, target="[0, 2]")).scores
    assert score.chance == 2 / NUM_CHOICES


def test_choices_asked_about_twice_are_counted_once(two):
    rows = [
        [one | {"metrics": ["acc", "acc_mutual_info"], "acc_mutual_info": one["acc"]} for one in of_scores(*scores)]
        for scores in ((1, 0), (0, 1))
    ]
    assert {score.chance for score in two(*rows).scores} == {1 / 2}


def test_written_answers_have_no_chance(two):
    rows = [of_scores(*scores, metric="exact_match", num_choices=0) for scores in ((1, 0), (0, 1))]
    (score,) = two(*rows).scores
    assert (score.decoding, score.chance, score.gained_adjusted) == ("greedy", None, None)
    assert "no guess is taken off" in score.unadjusted


def test_scores_of_a_corpus_are_refused_by_name_and_the_others_compared(two):
    rows = [
        [one | {"metrics": ["acc", "f1", "words"], "f1": [0, 1], "words": "x"} for one in of_scores(*scores)]
        for scores in ((1, 0), (0, 1))
    ]
    comparison = two(*rows)
    assert [score.metric for score in comparison.scores] == ["acc,none"]
    assert comparison.refused["quiz f1,none"].startswith("its score is of all items together")
    assert comparison.refused["quiz words,none"].startswith("an item has str, not a number")


def test_a_score_that_one_item_lacks_is_refused_and_not_shown_of_the_others(two):
    rows = [
        [one | {"metrics": ["acc", "m"], "m": None if n == 2 else 1.0} for n, one in enumerate(of_scores(1, 0, 1))]
        for _ in range(2)
    ]
    comparison = two(*rows)
    assert [(score.metric, score.difference.num_items) for score in comparison.scores] == [("acc,none", 3)]
    assert comparison.refused["quiz m,none"].startswith("an item has NoneType")


def test_a_metric_of_which_less_is_better_is_told(tmp_path):
    metric = {"metric": "acc", "aggregation": "mean", "higher_is_better": False}
    results = results_of(configs={"quiz": {"metric_list": [metric], "output_type": "multiple_choice"}})
    side = read_side(str(write_log(tmp_path, of_scores(1, 0), results=results)))
    told = "quiz: less is better in acc; there an item that is gained (0 → 1) is one that got worse"
    assert side.notes == (told,)


def test_a_mean_that_leaves_items_out_is_no_mean_of_all(tmp_path):
    metric = {"metric": "acc", "aggregation": "nanmean"}
    results = results_of(configs={"quiz": {"metric_list": [metric], "output_type": "multiple_choice"}})
    with pytest.raises(UsageError, match="'nanmean' of all items"):
        read_side(str(write_log(tmp_path, of_scores(1, 0), results=results)))


def test_an_aggregation_that_the_results_name_is_no_mean(tmp_path):
    config = {"metric_list": [{"metric": "acc", "aggregation": "perplexity"}], "output_type": "loglikelihood"}
    log = write_log(tmp_path, of_scores(1, 0), results=results_of(configs={"quiz": config}))
    with pytest.raises(UsageError, match=r"quiz acc,none: its score is 'perplexity' of all items"):
        read_side(str(log))


def test_several_runs_of_a_task_are_listed_and_one_can_be_named(tmp_path):
    write_log(tmp_path, of_scores(1, 0))
    write_log(tmp_path, of_scores(1, 1), date=LATER)
    with pytest.raises(
        UsageError, match=f"holds 2 runs of task 'quiz'; name one: .*results_{DATE}.json, .*results_{LATER}"
    ):
        read_side(str(tmp_path))
    side = read_side(str(tmp_path / "org__model" / f"results_{LATER}.json"))
    assert next(iter(side.scores[-1].values())).values.tolist() == [1, 1]


def test_tasks_of_several_dates_are_one_side(tmp_path):
    write_log(tmp_path, of_scores(1, 0))
    write_log(tmp_path, of_scores(1, 1), task="other", date=LATER)
    assert read_side(str(tmp_path)).tasks == ["other", "quiz"]


def test_several_models_in_a_folder_are_listed(tmp_path):
    for name in ("one", "two"):
        write_log(tmp_path, of_scores(1, 0))
        (tmp_path / "org__model").rename(tmp_path / name)
    with pytest.raises(UsageError, match=r"holds the samples of several models; name one: .*/one, .*/two"):
        read_side(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no samples"),
        (json.dumps(row(0, 1)) + "\n" + json.dumps(row(1, 1))[:40], r"jsonl:2: not valid JSON .*cut off\?"),
        ('{"doc_id": 0, "doc": {}}\n', "jsonl:1: no 'arguments'; expected a row of `lm_eval --log_samples`"),
        ("[1, 2]\n", "jsonl:1: no 'doc_id'"),
    ],
)
def test_a_file_that_is_no_log_of_samples_is_one_line(tmp_path, text, words):
    path = tmp_path / f"samples_quiz_{DATE}.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read_side(str(path))


def test_results_without_samples_and_folders_of_other_tools_are_one_line(tmp_path):
    write_log(tmp_path, [])
    next(tmp_path.rglob("*.jsonl")).unlink()
    place = tmp_path / "org__model"
    with pytest.raises(UsageError, match=r"has results of lm-eval, but no samples; run lm_eval with --log_samples"):
        read_side(str(place))
    with pytest.raises(UsageError, match=f"no samples_.*{DATE}.jsonl beside it"):
        read_side(str(place / f"results_{DATE}.json"))
    (place / f"results_{DATE}.json").unlink()
    with pytest.raises(UsageError, match=r"no eval.json, samples_\*.jsonl or \*.eval there"):
        read_side(str(place))
    with pytest.raises(UsageError, match=r"gone.jsonl: no such file"):
        read_side(str(tmp_path / "gone.jsonl"))


def test_results_that_are_none_are_one_line(tmp_path):
    log = write_log(tmp_path, of_scores(1, 0), results={"accuracy": 1})
    with pytest.raises(UsageError, match=r"not the results of lm-eval: no 'configs' in it"):
        read_side(str(log))
