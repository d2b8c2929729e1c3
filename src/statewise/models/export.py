"""`statewise export`: an arm of a run as a model folder that transformers (or peft) loads, with its facts beside it.

What is copied is what the run stored, byte for byte, and its digest is checked against the run's record. Only
`is_merged` computes something: an adapter is added to the base model's weights in float32, since bfloat16 would round
most of it away.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from statewise.errors import DamagedError, UsageError
from statewise.folder.run_folder import RunFolder, is_older, open_run, read_object
from statewise.folder.store import RESULT_NAMES
from statewise.models.model_folder import split_revision, stored_weights
from statewise.plan.dag import BASE
from statewise.plan.digest import FACTS, digest_model, digest_weights, model_files
from statewise.policy.find import resolve_model
from statewise.storage import records
from statewise.storage.integrity import NOT_VERIFIED
from statewise.storage.model_records import ModelFacts
from statewise.storage.output_folder import check_empty
from statewise.storage.records import ADAPTER_CONFIG

CARD, STUDY = "README.md", "study.toml"
WITHOUT_MODEL = {
    "diverged": "it diverged in seed {seed} ({reason}), so there is no model",
    "skipped": "it was skipped in seed {seed} ({reason}), so there is no model",
}


@dataclass(frozen=True)
class ExportRequest:
    """Which model to export; `seed` None: the first of the study. `is_merged`: add an adapter to the base's weights."""

    run: Path
    arm: str
    seed: int | None = None
    is_merged: bool = False


def export_model(request: ExportRequest, out: Path, render: Callable[[ModelFacts], str]) -> ModelFacts:
    """Write the model that `request` names to `out`, as a whole or not at all.

    Args:
        request: run, arm and seed.
        out: folder to write; it must not exist, or be empty.
        render: the text of the model card.

    Returns:
        What the folder says of itself.

    Raises:
        UsageError: no such run, arm or seed, no trained model there, weights that are not those of the record, or `out`
            holds something.
    """
    if not out.name:
        raise UsageError(f"--out {out}: give the name of a new folder")
    check_empty(out)
    run = open_run(request.run)
    run.check_arm(request.arm)
    seed = run.config.study.seeds[0] if request.seed is None else request.seed
    run.check_seed(seed)
    source = _find_weights(run, request.arm, seed)
    kind = stored_weights(source)

    from statewise.models.facts import read_facts  # scipy: after what a mistyped word is answered by

    facts = read_facts(run, request.arm, seed, out.name)
    read = [run.record(one, seed, action) for one in (request.arm, BASE) for action in RESULT_NAMES]
    if any(is_older(record) for record in read):
        facts = replace(facts, provenance={**facts.provenance, "not_verified": NOT_VERIFIED})
    weights = "merged" if kind == "adapter" and request.is_merged else kind
    with records.replacing_folder(out) as folder:
        provenance = dict(facts.provenance)
        if weights == "merged":
            _merge(_base_folder(run), source, folder, run.config.shared.end_of_text)
            provenance["adapter_sha256"] = digest_weights(source)
        else:
            _copy(source, folder)
            if kind == "adapter":
                _name_base(folder / ADAPTER_CONFIG, run.config.shared.model)
        provenance["weights_sha256"] = digest_weights(folder)
        commands = (*facts.commands, _command(request, seed, out))
        facts = replace(facts, weights=weights, provenance=provenance, commands=commands)
        shutil.copyfile(run.folder / STUDY, folder / STUDY)
        records.write_json(folder / FACTS, asdict(facts))
        (folder / CARD).write_text(render(facts), encoding="utf-8")
    return facts


def _command(request: ExportRequest, seed: int, out: Path) -> str:
    """The command that makes the folder, without the user's own paths."""
    words = ["statewise", "export", request.run.resolve().name, request.arm, "--seed", str(seed), "--out", out.name]
    return shlex.join([*words, *(["--merge"] if request.is_merged else [])])


def _find_weights(run: RunFolder, arm: str, seed: int) -> Path:
    """The folder of what an arm trained, checked against its record; of the base model, its own folder."""
    if arm == BASE:
        return _base_folder(run)
    trained = run.record(arm, seed, "train")
    status = str(trained.get("status", ""))
    if not status:
        raise UsageError(
            f"{run.folder}: arm {arm!r} is not trained yet in seed {seed}; continue the run with the command that "
            "began it"
        )
    if status in WITHOUT_MODEL:
        why = WITHOUT_MODEL[status].format(seed=seed, reason=trained.get("reason", ""))
        raise UsageError(f"{run.folder}: arm {arm!r}: {why}; choose another arm or seed")
    folder = run.arm_folder(arm, seed)
    source = folder / "model" if (folder / "model").is_dir() else folder / "adapter"
    if not source.is_dir():
        raise UsageError(f"{folder}: arm {arm!r} was trained in seed {seed}, but its model is gone; train it anew")
    if digest_weights(source) != trained.get("weights_sha256"):
        raise UsageError(
            f"{source}: its weights are not those that the run recorded (train.json, weights_sha256): the folder was "
            "changed or damaged; copy the run again, or train the arm anew"
        )
    return source


def _base_folder(run: RunFolder) -> Path:
    """The base model's folder, if it still holds the files that the run was planned with."""
    folder = run.model if run.model.is_dir() else resolve_model(run.config.shared.model)
    now = digest_model(folder)
    changed = [name for name, digest in run.model_files.items() if now.get(name) != digest]
    if changed:
        raise DamagedError(
            f"{folder / changed[0]}: the base model is not the one that the run began with (SHA-256 differs); put that "
            "one back, or run the study again in another folder"
        )
    return folder


def _copy(source: Path, folder: Path) -> None:
    for path in model_files(source):
        shutil.copyfile(path, folder / path.name)


def _name_base(path: Path, base: str) -> None:
    """Name the base model in an adapter's configuration as peft reads it; its bytes are kept if they say so already."""
    config = read_object(path)
    name, revision = split_revision(base)
    named = {"base_model_name_or_path": name, "revision": revision}
    if any(config.get(key) != value for key, value in named.items()):
        path.write_text(json.dumps({**config, **named}, indent=2) + "\n", encoding="utf-8")


def _merge(base: Path, adapter: Path, folder: Path, end_of_text: str | None) -> None:
    """Write base + adapter as plain float32 weights, which stop where the run's policies stop."""
    from transformers.utils import logging as transformers_logging

    from statewise.policy.load import load_policy, save_weights
    from statewise.policy.lora import load_adapter, merge_adapters

    transformers_logging.disable_progress_bar()
    policy = load_policy(base, name="merged", end_of_text=end_of_text)
    load_adapter(policy.model, adapter, policy.name)
    merge_adapters(policy.model)
    save_weights(policy, folder)
