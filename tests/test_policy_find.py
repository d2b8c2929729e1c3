"""Models by name, with the hub replaced by a folder; the offline tests run the real client against no network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from conftest import byte_tokenizer
from huggingface_hub import constants, errors
from safetensors.torch import save_file

from statewise.assets import POCKET_MODEL
from statewise.errors import UsageError
from statewise.policy.find import count_parameters, look_up_model, resolve_model
from statewise.policy.load import load_policy, save_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "some-org/Toy-1.0"


class FakeHub:
    """A hub that holds one model; remembers what was asked of it."""

    def __init__(self, files: Path, cache: Path):
        self.files, self.cache = files, cache / f"models--{NAME.replace('/', '--')}"
        self.asked, self.fetched = 0, []
        self.error = None

    def model_info(self, api, repo, *, revision, timeout, files_metadata):
        self.asked += 1
        assert timeout <= 3
        if self.error:
            raise self.error
        files = sorted(self.files.iterdir())
        return SimpleNamespace(
            sha=COMMIT, siblings=[SimpleNamespace(rfilename=p.name, size=p.stat().st_size) for p in files]
        )

    def snapshot_download(self, repo, *, revision, allow_patterns):
        """As the real one lays out its cache: a commit for each name of a revision, links to blobs."""
        snapshot, reference = self.cache / "snapshots" / COMMIT, self.cache / "refs" / revision
        for folder in (snapshot, reference.parent, self.cache / "blobs"):
            folder.mkdir(parents=True, exist_ok=True)
        reference.write_text(COMMIT)
        for name in allow_patterns:
            self.fetched.append(name)
            blob = self.cache / "blobs" / name
            blob.write_bytes((self.files / name).read_bytes())
            (snapshot / name).unlink(missing_ok=True)
            (snapshot / name).symlink_to(blob)
        return str(snapshot)


@pytest.fixture
def hub(toy_policy, tmp_path, monkeypatch):
    save_weights(toy_policy, tmp_path / "hub")
    (tmp_path / "hub" / "README.md").write_text("words")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    fake = FakeHub(tmp_path / "hub", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: fake.model_info(*args, **kwargs))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def http_error(kind, status):
    request = SimpleNamespace(method="GET", url="https://hub/api")
    return kind("the hub's words", response=SimpleNamespace(headers={}, status_code=status, request=request))


def test_pocket_is_the_embedded_model():
    assert look_up_model("pocket").folder == POCKET_MODEL
    assert resolve_model("pocket") == POCKET_MODEL


def test_a_folder_is_itself_even_if_it_reads_like_a_hub_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert resolve_model("org/model") == Path("org/model")
    assert hub.asked == 0


@pytest.mark.parametrize("name", ["Qwen3", "/nowhere", "./a/b", "a/b/c", "org/name@", "../x"])
def test_a_name_that_is_neither_says_what_could_be_given(name):
    with pytest.raises(UsageError, match=r"no such folder; use 'pocket', a folder .* or a hub name org/name"):
        resolve_model(name)


def test_looking_a_model_up_downloads_everything_but_its_weights(hub):
    reference = look_up_model(NAME)
    assert "config.json" in hub.fetched
    assert "tokenizer.json" in hub.fetched
    assert not {"model.safetensors", "README.md"} & set(hub.fetched)
    assert reference.missing_files == ("model.safetensors",)
    assert reference.missing_bytes == (hub.files / "model.safetensors").stat().st_size
    assert reference.revision == COMMIT


def test_a_hub_model_is_downloaded_once_and_loads(hub):
    folder = resolve_model(NAME)
    assert load_policy(folder, "learner").vocab_size == 257
    asked = hub.asked
    assert resolve_model(NAME) == folder
    assert look_up_model(NAME).missing_files == ()
    assert hub.asked == asked  # a whole model in the cache needs no network


def test_a_download_that_broke_off_is_continued(hub):
    look_up_model(NAME)
    assert hub.fetched.count("model.safetensors") == 0
    resolve_model(NAME)
    assert hub.fetched.count("model.safetensors") == 1


def test_all_shards_of_a_model_are_wanted_and_no_other_weights(hub):
    weights = hub.files / "model.safetensors"
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "consolidated.safetensors"):
        (hub.files / name).write_bytes(weights.read_bytes())
    weights.unlink()
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (hub.files / "model.safetensors.index.json").write_text(index)
    missing = look_up_model(NAME).missing_files
    assert missing == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    folder = resolve_model(NAME)
    assert not (folder / "consolidated.safetensors").exists()
    (folder / missing[1]).unlink()
    (hub.cache / "blobs" / missing[1]).unlink()
    assert look_up_model(NAME).missing_files == missing[1:]


def test_a_revision_is_asked_for_and_has_its_own_place(hub):
    assert look_up_model(f"{NAME}@v1.1").revision == COMMIT
    assert (hub.cache / "refs" / "v1.1").exists()
    assert not (hub.cache / "refs" / "main").exists()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (http_error(errors.RepositoryNotFoundError, 404), "neither a folder nor a model on .*private, log in"),
        (http_error(errors.GatedRepoError, 403), "is gated: accept its licence at .* `hf auth login` or set HF_TOKEN"),
        (http_error(errors.RevisionNotFoundError, 404), "has no revision 'v9'; give a branch"),
        (http_error(errors.HfHubHTTPError, 503), "the hub answered 503"),
        (errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE is set. Download it while online with `hf download"),
        (errors.LocalEntryNotFoundError("no snapshot"), "or give a model folder instead"),
        (errors.HTTPError("[Errno -2] Name or service not known"), "is not whole in the cache"),
        (OSError(28, "No space left on device"), "cannot write the cache .*: No space left on device"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_answers_becomes_what_to_do(hub, error, words):
    hub.error = error
    with pytest.raises(UsageError, match=words) as raised:
        resolve_model(f"{NAME}@v9")
    assert "hub's words" not in str(raised.value)


def test_a_licence_that_is_asked_for_at_the_first_file_is_explained_too(hub, monkeypatch):
    def refuse(*args, **kwargs):
        raise http_error(errors.GatedRepoError, 403)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UsageError, match="is gated"):
        look_up_model(NAME)


def test_a_mistyped_name_is_answered_with_the_nearest_model_in_the_cache(hub):
    resolve_model(NAME)
    hub.error = http_error(errors.RepositoryNotFoundError, 404)
    with pytest.raises(UsageError, match=r"Did you mean 'some-org/Toy-1\.0'"):
        look_up_model("some-org/Toi-1.0")


def test_pickled_weights_are_refused_before_anything_is_downloaded(hub):
    (hub.files / "model.safetensors").rename(hub.files / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"no \*\.safetensors: only pytorch_model\.bin, which are not read"):
        resolve_model(NAME)
    assert hub.fetched == []


def test_an_adapter_is_refused_before_anything_is_downloaded(hub):
    (hub.files / "config.json").rename(hub.files / "adapter_config.json")
    with pytest.raises(UsageError, match="an adapter, not a whole model"):
        resolve_model(NAME)
    assert hub.fetched == []


def test_an_architecture_that_writes_no_text_is_refused_before_its_weights(hub):
    config = (hub.files / "config.json").read_text().replace("Qwen3ForCausalLM", "BertForMaskedLM")
    (hub.files / "config.json").write_text(config)
    with pytest.raises(UsageError, match="is a BertForMaskedLM, which does not predict the next token"):
        resolve_model(NAME)
    assert "model.safetensors" not in hub.fetched


def test_a_tokenizer_without_end_of_text_is_refused_before_the_weights(hub):
    byte_tokenizer().save_pretrained(hub.files)
    path = hub.files / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"eos_token"', '"cls_token"'))
    with pytest.raises(UsageError, match="no end-of-text token"):
        resolve_model(NAME)
    assert "model.safetensors" not in hub.fetched


def test_a_configuration_that_is_no_json_is_named(hub):
    (hub.files / "config.json").write_text("<html>")
    with pytest.raises(UsageError, match=r"config\.json: not JSON"):
        resolve_model(NAME)


def test_parameters_are_counted_by_data_type_from_the_headers(tmp_path):
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5, dtype=torch.bfloat16)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(())}, tmp_path / "two.safetensors", metadata={"format": "pt"})
    # 3 · 4 + 1 (a scalar) float32, 5 bfloat16.
    assert count_parameters(tmp_path) == {"F32": 13, "BF16": 5}


@contextmanager
def silent_hub():
    """An address that takes calls and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def closed_hub():
    """An address that takes no calls."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"


@contextmanager
def no_hub():
    yield ""


@pytest.mark.parametrize(
    ("address", "words"),
    [(no_hub, "HF_HUB_OFFLINE is set"), (closed_hub, "cannot be reached"), (silent_hub, "cannot be reached")],
)
def test_without_a_network_the_command_ends_within_seconds(address, words, tmp_path):
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "statewise", "run", "pocket", "--model", "org/model", "--dry-run"]
    with address() as endpoint:
        if endpoint:
            environment |= {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0"}
        began = time.monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert words in done.stderr
    assert "hf download org/model" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 15  # 1 to 4 s on a quiet machine
