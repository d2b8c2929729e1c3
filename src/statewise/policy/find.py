"""A model by its name: `pocket`, a local folder, or a Hugging Face hub name `org/name[@revision]`.

Needs no torch, so that a plan can use it. What a hub model lacks (safetensors, an end of text, an architecture that
predicts the next token) is found from its small files, before the weights are fetched. A hub model that is whole in the
cache is used as it is and the network is not asked: a branch that has moved since cannot change a study that is
continued. Access tokens are huggingface_hub's affair; none is read or stored here.
"""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statewise.assets import POCKET_MODEL
from statewise.errors import UsageError
from statewise.storage.parsing import parse_json

HUB_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
READ_BY_TRANSFORMERS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
METADATA_SUFFIXES = (".json", ".txt", ".model", ".jinja")
# For the first question to the hub, so that no network means an error within seconds. A slow line can set
# HF_HUB_ETAG_TIMEOUT, as for other tools.
TIMEOUT_S = 2.5
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
MAIN = "main"
WHOLE = "model.safetensors"  # the weights of a model in one piece
POINTER = b"version https://git-lfs"
# Read when huggingface_hub is first imported, which happens below. Its telemetry asks the hub a question of its own.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


@dataclass(frozen=True)
class ModelReference:
    """A model whose small files are on this machine.

    `revision` is the commit of a hub model, None for a folder; `missing_files` are weights yet to be downloaded.
    """

    name: str
    folder: Path
    revision: str | None = None
    missing_files: tuple[str, ...] = ()
    missing_bytes: int = 0


@dataclass(frozen=True)
class Use:
    """What a model is for: how transformers names such architectures, what others do not do, what to give instead."""

    suffixes: tuple[str, ...]
    auto_class: str
    lack: str
    wanted: str


EMBEDDED = "pocket"  # names the embedded model, whatever folder is called so
DECODER = Use(
    ("ForCausalLM", "LMHeadModel"), "AutoModelForCausalLM", "does not predict the next token of a text",
    "a causal language model",
)  # fmt: skip
REWARDER = Use(
    ("ForSequenceClassification",), "AutoModelForSequenceClassification",
    "has no head that scores a text (transformers would give it a random one)", "a sequence-classification model",
)  # fmt: skip


@dataclass(frozen=True)
class _HubName:
    repo: str
    revision: str

    @property
    def text(self) -> str:
        return self.repo if self.revision == MAIN else f"{self.repo}@{self.revision}"


def look_up_model(name: str, use: Use = DECODER) -> ModelReference:
    """Look `name` up and check what its small files tell; downloads those of a hub model, but no weights.

    A folder of that name comes before a hub model.

    Raises:
        UsageError: no such model, no access to it, no way to the hub, or a model that cannot be used.
    """
    folder = POCKET_MODEL if name == EMBEDDED else Path(name).expanduser()
    if folder.is_dir():
        _check_architecture(name, folder, use)
        return ModelReference(name, folder)
    wanted = _parse(name)
    cached = _cached_snapshot(wanted)
    if cached is not None and has_weights(cached):
        _check_small_files(name, cached, use)
        return ModelReference(name, cached, cached.name)
    return _fetch_small_files(wanted, use)


def resolve_model(name: str, use: Use = DECODER) -> Path:
    """The folder of a model with config, tokenizer and weights; downloads what is missing of a hub model.

    Raises:
        UsageError: as `look_up_model`, or the download broke off (the same call continues it).
    """
    reference = look_up_model(name, use)
    if not reference.missing_files:
        return reference.folder
    folder = _download(_parse(name), reference.missing_files)
    if not has_weights(folder):
        raise UsageError(f"model {name!r}: its weights are incomplete in {folder}; the same command continues")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """The files of a model folder that transformers reads weights from; others may hold the same once more."""
    return [folder / file for file in _indexed(folder)] or sorted(folder.glob("*.safetensors"))


def count_parameters(folder: Path) -> dict[str, int]:
    """Numbers in the weights of a model folder by data type ("BF16", "F32", ...), read from the files' headers.

    Raises:
        UsageError: a file that is none of weights, or not whole.
    """
    counts: dict[str, int] = {}
    for path in weight_files(folder):
        for tensor in read_header(path).values():
            counts[tensor["dtype"]] = counts.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    return counts


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """What a safetensors file says of its tensors, by name: `dtype`, `shape`, `data_offsets`.

    Raises:
        UsageError: the file is missing, or no such file, or not whole.
    """
    again = "get the file again (hf download; git lfs pull in a git clone)"
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            # The format: length of the header (8 bytes, little-endian), header in JSON, data.
            start = stream.read(len(POINTER))
            length = int.from_bytes(start[:8], "little")
            if start == POINTER:
                raise UsageError(f"{path}: a pointer of Git LFS ({size} bytes), not the weights themselves; {again}")
            if len(start) < 8 or 8 + length > size:
                raise UsageError(f"{path}: {size} bytes are no safetensors file, or its beginning alone; {again}")
            stream.seek(8)
            header: dict[str, dict[str, Any]] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); {again}") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: its header is not that of a safetensors file ({error}); {again}") from None
    if end != size:
        raise UsageError(f"{path}: {size} of {end} bytes, so it is not whole; {again}")
    return header


def _parse(name: str) -> _HubName:
    match = HUB_NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"model {name!r}: no such folder; use 'pocket', a folder with config.json and *.safetensors, or a hub name "
            "org/name[@revision]"
        )
    return _HubName(match["repo"], match["revision"] or MAIN)


def _cached_snapshot(wanted: _HubName) -> Path | None:
    """The snapshot folder of the hub's cache on this machine, whole or not."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(wanted.repo, "config.json", revision=wanted.revision)
    return Path(found).parent if isinstance(found, str) else None


def _indexed(folder: Path) -> list[str]:
    """The weight files that a sharded checkpoint names, or the one file of a checkpoint in one piece, or []."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return sorted(set(_read_json(index).get("weight_map", {}).values()))
    return [WHOLE] if (folder / WHOLE).is_file() else []


def has_weights(folder: Path) -> bool:
    """Whether all weight files of a model folder are there."""
    files = _indexed(folder)
    return all((folder / file).is_file() for file in files) if files else any(folder.glob("*.safetensors"))


def _fetch_small_files(wanted: _HubName, use: Use) -> ModelReference:
    """Ask the hub what the model consists of, fetch all but the weights, and check it."""
    import huggingface_hub
    from huggingface_hub import errors

    name = wanted.text
    timeout = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or TIMEOUT_S)
    try:
        info = huggingface_hub.HfApi().model_info(
            wanted.repo, revision=wanted.revision, timeout=timeout, files_metadata=True
        )
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # of whichever client the hub's library has
        raise _hub_error(wanted, error) from error
    sizes = {file.rfilename: int(file.size or 0) for file in info.siblings or [] if "/" not in file.rfilename}
    _check_files(name, list(sizes), use)
    folder = _download(wanted, [file for file in sizes if file.endswith(METADATA_SUFFIXES)])
    _check_small_files(name, folder, use)
    whole = [WHOLE] if WHOLE in sizes else [file for file in sizes if file.endswith(".safetensors")]
    weights = _indexed(folder) or whole
    missing = tuple(file for file in weights if not (folder / file).is_file())
    return ModelReference(name, folder, folder.name, missing, sum(sizes.get(file, 0) for file in missing))


def _download(wanted: _HubName, files: Sequence[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(wanted.repo, revision=wanted.revision, allow_patterns=list(files))
        )
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise _hub_error(wanted, error) from error


def _hub_error(wanted: _HubName, error: Exception) -> UsageError:
    """What the user can do about an answer of the hub, or about none."""
    from huggingface_hub import constants, errors

    name = wanted.text
    if isinstance(error, errors.GatedRepoError):
        return UsageError(
            f"model {name!r} is gated: accept its licence at {constants.ENDPOINT}/{wanted.repo}, then log in with "
            "`hf auth login` or set HF_TOKEN (statewise stores no token)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(
            f"model {name!r}: {wanted.repo} has no revision {wanted.revision!r}; give a branch, a tag or a commit, or "
            "leave it out"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        near = difflib.get_close_matches(wanted.repo, _cached_names(), n=1, cutoff=0.6)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        return UsageError(
            f"model {name!r}: neither a folder nor a model on {constants.ENDPOINT}. {hint}Check the spelling; if the "
            "model is private, log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return UsageError(f"model {name!r}: cannot write the cache {constants.HF_HUB_CACHE}: {error.strerror}")
    response = getattr(error, "response", None)
    if response is not None:
        reason = f"the hub answered {response.status_code} (401 and 403: log in with `hf auth login` or set HF_TOKEN)"
    elif constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE is set"
    else:
        reason = f"{constants.ENDPOINT} cannot be reached"
    revision = "" if wanted.revision == MAIN else f" --revision {wanted.revision}"
    return UsageError(
        f"model {name!r} is not whole in the cache {constants.HF_HUB_CACHE}, and {reason}. Download it while online "
        f"with `hf download {wanted.repo}{revision}`, or give a model folder instead"
    )


def _cached_names() -> list[str]:
    """Names of the hub models on this machine."""
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE).glob("models--*--*")
    return ["/".join(folder.name.split("--", 2)[1:]) for folder in folders]


def _check_files(name: str, files: list[str], use: Use) -> None:
    """Refuse a hub model by the names of its files."""
    if "config.json" not in files:
        what = "an adapter, not a whole model" if "adapter_config.json" in files else "not a transformers model"
        raise UsageError(f"model {name!r} has no config.json, so it is {what}; name the model itself")
    if not any(file.endswith(".safetensors") for file in files):
        others = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack"))]
        found = f"only {', '.join(others[:3])}, which are not read. " if others else ""
        raise UsageError(
            f"model {name!r} has no *.safetensors: {found}Use a copy that has them, or convert it where you trust it: "
            f"{use.auto_class}.from_pretrained(name).save_pretrained(new_folder)"
        )


def _check_small_files(name: str, folder: Path, use: Use) -> None:
    """Refuse a model by its configuration and tokenizer."""
    _check_architecture(name, folder, use)
    if use is DECODER and not _has_end_of_text(folder):
        raise UsageError(
            f"model {name!r}: its tokenizer has no end-of-text token, so a rollout could never stop by itself; use "
            "another model, or a local copy whose tokenizer_config.json names an eos_token"
        )


def _check_architecture(name: str, folder: Path, use: Use) -> None:
    for path in (folder / file for file in READ_BY_TRANSFORMERS):
        if path.is_file():
            _read_json(path)  # says what is wrong in one line
    path = folder / "config.json"
    architectures = _read_json(path).get("architectures") if path.is_file() else None
    if use is REWARDER and not architectures:
        has = "has no config.json" if not path.is_file() else "names no architecture in its config.json"
        raise UsageError(f"model {name!r} {has}, so it is not known to score texts; use {use.wanted}")
    if architectures and not any(str(architecture).endswith(use.suffixes) for architecture in architectures):
        raise UsageError(
            f"model {name!r} is a {', '.join(map(str, architectures))}, which {use.lack} (config.json, architectures); "
            f"use {use.wanted}"
        )


def _has_end_of_text(folder: Path) -> bool:
    """Whether the tokenizer names its end of text; asked of the tokenizer itself where the files leave it open."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / file
        if path.is_file() and _read_json(path).get("eos_token"):
            return True
    from transformers import AutoTokenizer  # slow, and needed for old tokenizers alone, whose code knows the token

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"model folder {folder}: transformers cannot load its tokenizer: {error}") from error
    return tokenizer.eos_token_id is not None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error}); get the model again") from None
    return value if isinstance(value, dict) else {}
