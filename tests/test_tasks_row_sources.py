"""Rows in folders that datasets saved, and in data sets of the hub, read from a cache as datasets keeps it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from datasets.arrow_writer import ArrowWriter
from study_fixture import fake_model

from statewise.config.read import read_study_and_place, to_toml
from statewise.errors import UsageError
from statewise.plan.dag import make_plan
from statewise.tasks.own_data import DataSection, read_own_data
from statewise.tasks.row_sources import digest_source, locate_rows, read_source

ROWS = [{"question": f"{i} + 1 =", "answer": str(i + 1), "level": i % 2} for i in range(20)]
OTHER = [{**row, "answer": "0"} for row in ROWS]
SPOKEN = [
    {"messages": [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]}
    for row in ROWS
]
FIRST, SECOND, THIRD = "a" * 40, "b" * 40, "c" * 40
STUDY = """
[study]
name = "sums"
factors = ["source", "signal"]
[data]
train = "{train}"
test_share = 0.3
prompt = "question"
completion = "answer"
[shared]
retention = []
update = {{ num_updates = 1, lr = 1e-3 }}
[arms.sft]
source = {{ kind = "dataset" }}
signal = {{ kind = "imitate" }}
[arms.rl]
source = {{ kind = "rollout", samples_per_prompt = 2 }}
signal = {{ kind = "reward" }}
"""


def values(name, folder, split="train"):
    return [row.values for row in read_source(locate_rows(name, folder, split))]


@pytest.fixture
def saved(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(OTHER))
    both.save_to_disk(tmp_path / "both")
    return tmp_path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Empty caches of datasets and of the hub, and what puts a set into the former."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def put(rows, commit, config="default"):
        folder = tmp_path / "cache/org___my_rows" / config / "0.0.0" / commit
        folder.mkdir(parents=True)
        table = datasets.Dataset.from_list(rows)
        with ArrowWriter(features=table.features, path=str(folder / "my_rows-train.arrow")) as writer:
            writer.write_table(table.data.table)
            num_examples, num_bytes = writer.finalize()
        split = {"name": "train", "num_bytes": num_bytes, "num_examples": num_examples, "dataset_name": "my_rows"}
        datasets.DatasetInfo(
            features=table.features, builder_name="parquet", dataset_name="my_rows", config_name=config,
            version="0.0.0", splits=[split],
        ).write_to_directory(str(folder))  # fmt: skip

    return put


def know(tmp_path, branch, commit):
    """The hub's own cache says which commit a branch is."""
    folder = tmp_path / "hub/datasets--org--my_rows"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "README.md").write_text("")


def test_a_saved_folder_gives_the_rows_that_datasets_reads(saved):
    assert values("one", saved) == datasets.load_from_disk(str(saved / "one")).to_list() == ROWS
    assert values("both", saved) == values("both:train", saved) == values("both/train", saved) == ROWS
    assert values("both", saved, "test") == values("both:test", saved) == OTHER
    assert read_source(locate_rows("both", saved, "train"))[2].place == f"{saved}/both:train, row 3"


def test_rows_that_were_chosen_are_those_that_are_read(saved):
    chosen = datasets.Dataset.from_list(ROWS).shuffle(seed=1).select(range(5)).with_format("numpy", columns=["level"])
    chosen.save_to_disk(saved / "chosen")
    assert values("chosen", saved) == chosen.with_format(None).to_list()


def test_the_digest_of_a_folder_is_that_of_its_rows(saved):
    before = digest_source(locate_rows("one", saved, "train"))
    assert before == digest_source(locate_rows("both:train", saved, "train"))
    datasets.Dataset.from_list(ROWS).save_to_disk(saved / "parts", num_shards=4)
    assert digest_source(locate_rows("parts", saved, "train")) == before
    datasets.Dataset.from_list(OTHER).save_to_disk(saved / "parts")
    assert digest_source(locate_rows("parts", saved, "train")) != before


def test_a_study_on_a_folder_is_that_on_a_file_of_the_same_rows(saved):
    (saved / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    table = {"test_share": 0.3, "prompt": "question", "completion": "answer"}
    read = [
        read_own_data(DataSection.model_validate({"train": name, **table}).located(saved, "sums"))
        for name in ("train.jsonl", "both:train")
    ]
    texts = [{key: [(row.prompt, row.completion) for row in rows] for key, rows in one.items()} for one in read]
    assert texts[0] == texts[1]


def test_a_folder_that_changed_since_the_study_was_read_is_refused(saved):
    table = {"train": "one", "test_share": 0.3, "prompt": "question", "completion": "answer"}
    data = DataSection.model_validate(table).located(saved, "sums")
    datasets.Dataset.from_list(OTHER).save_to_disk(saved / "one")
    with pytest.raises(UsageError, match=r"data\.train: .*one changed since the study was read"):
        read_own_data(data)


def test_conversations_of_a_folder_are_read(saved):
    datasets.Dataset.from_list(SPOKEN).save_to_disk(saved / "spoken")
    table = {"train": "spoken", "test_share": 0.3, "messages": "messages"}
    splits = read_own_data(DataSection.model_validate(table).located(saved, "talk"))
    assert {row.prompt for rows in splits.values() for row in rows} == {row["question"] for row in ROWS}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("both:valid", r"both: unknown split 'valid'\. Known: test, train"),
        ("one:valid", "one: is one set without a split 'valid'; leave ':valid' out"),
        ("empty", r"empty: is a folder, but none that save_to_disk of datasets wrote \(no state\.json or dataset_dict"),
        ("nothing:train", r"nothing:train: of no known format; expected \.jsonl, .*, a folder .*, or hub:org/name"),
        ("org/name", r"org/name: of no known format; expected .* hub:org/name"),
        ("rows.jsonl", r"there is no file .*rows\.jsonl"),
        ("broken", r"broken.state\.json: cannot be read .*; save the data set again"),
        ("cut", r"cut: datasets cannot read it: "),
        ("none", "none: datasets cannot read it: "),
    ],
)
def test_a_folder_that_cannot_be_read_is_told(saved, name, told):
    (saved / "empty").mkdir()
    (saved / "broken").mkdir()
    (saved / "broken/state.json").write_text("{")
    datasets.Dataset.from_list(ROWS).save_to_disk(saved / "cut")
    (saved / "cut/data-00000-of-00001.arrow").unlink()
    datasets.Dataset.from_dict({"a": []}).save_to_disk(saved / "none")
    with pytest.raises(UsageError, match=told):
        values(name, saved)


def test_a_set_of_the_hub_gives_the_rows_that_datasets_has_cached(cache, tmp_path):
    cache(ROWS, FIRST)
    assert datasets.load_dataset("org/my_rows", split="train").to_list() == ROWS
    located = locate_rows("hub:org/my_rows", tmp_path, "train")
    assert located == f"hub:org/my_rows/default@{FIRST}:train"
    assert locate_rows(located, tmp_path, "test") == located
    assert read_source(located)[0].place == f"{located}, row 1"
    assert [row.values for row in read_source(located)] == ROWS
    assert digest_source(located)["commit"] == FIRST


def test_the_commit_that_is_asked_for_is_read_and_not_the_one_that_was_cached_last(cache, tmp_path):
    cache(ROWS, FIRST)
    cache(OTHER, SECOND)
    assert values(f"hub:org/my_rows@{FIRST}", tmp_path) == ROWS
    assert values(f"hub:org/my_rows@{SECOND}", tmp_path) == OTHER
    know(tmp_path, "main", FIRST)
    know(tmp_path, "v1", SECOND)
    assert values("hub:org/my_rows", tmp_path) == ROWS
    assert values("hub:org/my_rows@v1", tmp_path) == OTHER


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (f"hub:org/my_rows@{THIRD}:train", f"is not in the cache .*cached are only others, such as .* {FIRST}"),
        ("hub:org/my_rows@v2", "the hub cannot be asked .*cached are only others"),
        (
            "hub:org/my_rows/other",
            r"the hub cannot be asked \(HF_HUB_OFFLINE, or no network; .*run the same command once",
        ),
        ("hub:org/nothing", "is not in the cache .*run the same command once while online"),
        ("hub:org/my_rows:test", r"hub:org/my_rows:test: unknown split 'test'\. Known: train"),
        ("hub:my_rows", r"hub:my_rows: is no name of a data set; expected hub:org/name\[/config\]"),
        ("hub:org/my_rows:train[:10]", "is no name of a data set"),
    ],
)
def test_what_the_cache_does_not_hold_is_refused_in_one_line(cache, tmp_path, name, told):
    cache(ROWS, FIRST)
    with pytest.raises(UsageError, match=told) as error:
        locate_rows(name, tmp_path, "train")
    assert "\n" not in str(error.value)


def test_another_configuration_is_not_taken_for_the_usual_one(cache, tmp_path):
    cache(ROWS, FIRST, "socratic")
    assert values("hub:org/my_rows/socratic", tmp_path) == ROWS
    with pytest.raises(UsageError, match="cached are only others, such as configuration 'socratic' of commit a"):
        locate_rows("hub:org/my_rows", tmp_path, "train")


def test_a_folder_of_the_name_is_not_read_for_the_hub_s(cache, tmp_path):
    (tmp_path / "org/my_rows").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"org/my_rows is there too, which datasets would read; name a saved folder"):
        locate_rows("hub:org/my_rows", tmp_path, "train")


def test_what_is_not_cached_is_downloaded_at_the_commit_that_the_hub_has(cache, tmp_path, monkeypatch):
    asked = []

    class Builder:
        hash, config = SECOND, SimpleNamespace(name="default")
        info = SimpleNamespace(splits={"train": None})

        def download_and_prepare(self):
            cache(OTHER, SECOND)

    def load(repo, config, revision):
        asked.append((repo, config, revision))
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    assert values("hub:org/my_rows", tmp_path) == OTHER
    assert asked == [("org/my_rows", None, "main")]
    Builder.hash = FIRST  # the hub has not what is asked for
    with pytest.raises(UsageError, match=f"cached are only others, such as configuration 'default' of commit {FIRST}"):
        locate_rows(f"hub:org/my_rows@{THIRD}", tmp_path, "train")


def plan_of(folder, train):
    (folder / "own.toml").write_text(STUDY.format(train=train))
    config, place = read_study_and_place(folder / "own.toml")
    model = folder / "fake-model"
    return make_plan(config, model if model.exists() else fake_model(folder), place)


def test_another_commit_is_another_study_and_a_resolved_one_is_pinned(cache, tmp_path):
    cache(ROWS, FIRST)
    know(tmp_path, "main", FIRST)
    plan = plan_of(tmp_path, "hub:org/my_rows")
    assert plan.config.data.digests["train_commit"] == FIRST
    cache(ROWS, SECOND)
    assert plan_of(tmp_path, f"hub:org/my_rows@{FIRST}").fingerprint == plan.fingerprint
    assert plan_of(tmp_path, f"hub:org/my_rows@{SECOND}").fingerprint != plan.fingerprint
    again = tmp_path / "again.toml"
    again.write_text(to_toml(plan.config))
    know(tmp_path, "main", SECOND)  # the branch has moved
    assert read_study_and_place(again)[0] == plan.config
    with pytest.raises(UsageError, match=r"own\.toml:6: data\.train: hub:org/nothing/.*is not in the cache"):
        plan_of(tmp_path, "hub:org/nothing/main:train")
