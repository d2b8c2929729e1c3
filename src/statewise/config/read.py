"""A study file into a checked study: TOML, overrides, grid, defaults, schema; errors name file, line and nearest word.

A study file is TOML (YAML reads `1e-4` as a string and keeps duplicate keys silently).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from pydantic import ValidationError

from statewise.config.grid import NAME_PATTERN, check_levels, expand_grid
from statewise.config.locations import COMMAND, OLD_NAMES, Location
from statewise.config.overrides import DATA, ROOTS, apply_override
from statewise.config.paths import place_models, place_tasks
from statewise.config.refusals import first_of, keys_of, refusal
from statewise.config.study import ArmSection, SharedSection, StudyConfig
from statewise.errors import UsageError, unknown
from statewise.kind import Kind, Strict
from statewise.storage.parsing import check_depth, parse_toml
from statewise.tasks.own_data import REWARD_METRIC

Table = dict[str, Any]
RESERVED = ("base", *ROOTS)


def read_study(path: Path, overrides: Iterable[str] = (), *, is_quick: bool = False) -> StudyConfig:
    """Read, override and check a study file, as `read_study_and_place` does."""
    return read_study_and_place(path, overrides, is_quick=is_quick)[0]


def read_study_and_place(
    path: Path, overrides: Iterable[str] = (), *, is_quick: bool = False
) -> tuple[StudyConfig, Location]:
    """Read, override and check a study file; also says where each of its keys stands.

    Args:
        path: the file.
        overrides: `arm.key=value`, `shared.key=value`, … (`overrides`), values in TOML syntax or bare text.
        is_quick: apply the study's own `quick` overrides first.

    Raises:
        UsageError: no such file, not TOML, an unknown key or arm, or a value out of range; with file, line and the
            nearest right word.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        raw = parse_toml(text)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot read the study file ({error.strerror}); give a path or a built-in name"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text; a study file is TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    return _resolve(raw, path, text, overrides, is_quick)


def read_resolved(path: Path) -> StudyConfig:
    """The study that a run wrote, as it was: its own data need not lie where they did, and are not looked at.

    Raises:
        UsageError: as `read_study_and_place`.
    """
    try:
        return StudyConfig.model_validate(_renamed(parse_toml(path.read_text(encoding="utf-8")), path))
    except (ValueError, OSError):
        return read_study(path)  # which says what is wrong, and where


def resolve_tables(
    tables: Mapping[str, Any], called: str, overrides: Iterable[str] = (), *, is_quick: bool = False
) -> tuple[StudyConfig, Location]:
    """As `read_study_and_place`, of the tables of a study file given in Python; `called`: their name in errors.

    Paths, sources and other kinds, and NumPy's numbers may stand in the place of text, tables and numbers.
    """
    try:
        raw = json.loads(json.dumps(tables, default=_plain))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{called}: {error}") from None
    return _resolve(raw, Path(called), "", overrides, is_quick)


def _plain(value: Any) -> Any:
    """What JSON does not know, as a study file has it.

    Raises:
        TypeError, ValueError: it cannot stand there.
    """
    if isinstance(value, Kind):
        value.registry.build(value)  # refuses one that is not registered
    if isinstance(value, Strict):
        return value.model_dump(mode="json", exclude_none=True)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r}: a study has no value of type {type(value).__name__}")


def _resolve(
    raw: Table, path: Path, text: str, overrides: Iterable[str], is_quick: bool
) -> tuple[StudyConfig, Location]:
    """The study of the tables `raw`, which overrides change in place; `text`: the file that holds them, or ""."""
    raw = _renamed(raw, path)
    quick = _quick_of(raw, path) if is_quick else []
    by_quick = f"{Location(path, text).of(['study', 'quick'])}: study.quick"
    called = [(override, by_quick) for override in quick] + [(override, COMMAND) for override in overrides]
    applied = [(apply_override(raw, one), f"{by} {one.partition('=')[0].strip()}") for one, by in called]
    try:
        check_depth(raw)  # overrides have keys of as many parts as they like
    except ValueError as error:
        raise UsageError(f"{path}: an override is {error}") from None
    location = Location(path, text, raw, tuple(applied))
    config = _validate(_with_defaults(expand_grid(raw, location.of), location), location)
    config = place_models(_with_data(place_tasks(config, location), raw, location), location)
    _check_names(config, location)
    return config, location


def _with_data(config: StudyConfig, raw: Table, location: Location) -> StudyConfig:
    """The study whose target is its own data, where it has some; their files are read for their digests."""
    if config.data is None:
        return config
    with location.naming("data"):
        data = config.data.located(location.path.parent, config.study.name)
    own, given = {"target": data.name, "reward_metric": REWARD_METRIC}, raw.get("shared", {})
    for key, value in own.items():
        if given.get(key, value) != value:
            raise UsageError(
                f"{location.of(['shared', key])}: shared.{key} is {given[key]!r}, but the study has [data], which is "
                f"its target and says its reward; leave shared.{key} out"
            )
    if data.name in config.shared.retention:
        raise UsageError(
            f"{location.of(['shared', 'retention'])}: the study's own data are called {data.name!r}, as this task; "
            "give data.name"
        )
    return config.model_copy(update={"data": data, "shared": config.shared.model_copy(update=own)})


def _renamed(raw: Table, path: Path) -> Table:
    """The sections under the names that they have now."""
    for old, name in OLD_NAMES.items():
        if old in raw and name in raw:
            raise UsageError(f"{path}: has {old!r} and {name!r}, which are the same section; keep the latter")
    return {OLD_NAMES.get(key, key): value for key, value in raw.items()}


def to_toml(config: StudyConfig) -> str:
    """The resolved study as TOML, with the defaults of every part; reading it again gives the same study."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _quick_of(raw: Table, path: Path) -> list[str]:
    study = raw.get("study", {})
    quick = study.get("quick") if isinstance(study, dict) else None
    if not isinstance(quick, list) or not quick:
        raise UsageError(f"{path}: has no quick size; give study.quick a list of overrides, or use --set and --limit")
    return [str(override) for override in quick]


def _with_defaults(raw: Table, location: Location) -> Table:
    """Copy `[shared.adapter]`, `[shared.update]`, … into every arm, and leave `[shared]` what only the study has."""
    shared = raw.get("shared", {})
    arms = raw.get("arms", {})
    if (
        not isinstance(shared, dict)
        or not isinstance(arms, dict)
        or not all(isinstance(a, dict) for a in arms.values())
    ):
        raise UsageError(f"{location.path}: 'shared', 'arms' and every arm must be tables")
    defaults = {key: value for key, value in shared.items() if key in ArmSection.model_fields}
    common = {key: value for key, value in shared.items() if key not in defaults}
    return {**raw, "shared": common, "arms": {name: _merge(defaults, arm) for name, arm in arms.items()}}


def _merge(defaults: Table, arm: Table) -> Table:
    merged = dict(defaults)
    for key, value in arm.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        # A source or signal of another kind starts afresh: the defaults' fields belong to the other class.
        same_kind = both_tables and value.get("kind", merged[key].get("kind")) == merged[key].get("kind")
        merged[key] = _merge(merged[key], value) if both_tables and same_kind else value
    return merged


def _validate(raw: Table, location: Location) -> StudyConfig:
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        errors = error.errors()
    first = first_of(errors, raw)
    keys = keys_of(first, raw)
    where, key, got = location.of(keys), str(keys[-1]), first["input"]
    if first["type"] == "extra_forbidden" and len(keys) == 1:
        what = "section:" if isinstance(got, (dict, list)) else "key before [study]:"
        raise unknown(what, key, [*StudyConfig.model_fields, "grid"], where)
    if first["type"] == "extra_forbidden" and keys[:-1] == ["shared"]:
        raise unknown("key in [shared]:", key, [*SharedSection.model_fields, *ArmSection.model_fields], where)
    if first["type"] == "missing" and len(keys) == 1:
        raise UsageError(f"{where}: needs a section [{key}]")
    if keys == ["arms"] and not got:
        raise UsageError(f"{where}: has no arms; add [arms.<name>] with a source and a signal, or a [grid]")
    raise refusal(errors, StudyConfig, raw, location.of)


def _check_names(config: StudyConfig, location: Location) -> None:
    """Seeds are different, arms have safe names; teachers and the arms of hypotheses exist."""
    seeds = config.study.seeds
    if twice := [seed for index, seed in enumerate(seeds) if seed in seeds[:index]]:
        raise UsageError(f"{location.of(['study', 'seeds'])}: seeds: {twice[0]} occurs twice; a seed is run once")
    reserved = (*RESERVED, DATA) if config.data else RESERVED
    for name, arm in config.arms.items():
        if not re.fullmatch(NAME_PATTERN, name) or name in reserved:
            raise UsageError(
                f"{location.of(['arms', name])}: arm name {name!r} must match {NAME_PATTERN} and not be "
                f"{', '.join(reserved[:-1])} or {reserved[-1]}, which name something else in --set and in hypotheses"
            )
        known = ["base", *config.models, *(other for other in config.arms if other != name)]
        if arm.teacher is not None and arm.teacher not in known:
            raise unknown("teacher", arm.teacher, known, location.of(["arms", name, "teacher"]))
    _check_models(config, reserved, location)
    check_levels({name: arm.levels for name, arm in config.arms.items() if arm.levels}, location.of)
    for index, hypothesis in enumerate(config.hypotheses):
        for key, arm_name in [*(("arms", arm) for arm in hypothesis.arms), ("than", hypothesis.than)]:
            if arm_name not in config.arms and arm_name != "base":
                raise unknown("arm", arm_name, [*config.arms, "base"], location.of(["hypotheses", index, key]))


def _check_models(config: StudyConfig, reserved: tuple[str, ...], location: Location) -> None:
    """Models from elsewhere have names of their own, and teach or reward."""
    reward, teachers = config.reward_model, {arm.teacher for arm in config.arms.values()}
    if reward is not None and reward not in config.models:
        known = f"; its models are {', '.join(config.models)}" if config.models else ""
        raise UsageError(
            f"{location.of(['data', 'reward'])}: data.reward 'model:{reward}': the study has no "
            f"[models.{reward or '<name>'}]{known}; add it, with model = a folder or a hub name"
        )
    for name in config.models:
        if not re.fullmatch(NAME_PATTERN, name) or name in (*reserved, *config.arms):
            raise UsageError(
                f"{location.of(['models', name])}: model name {name!r} must match {NAME_PATTERN} and not be that of an "
                f"arm, {', '.join(reserved[:-1])} or {reserved[-1]}"
            )
        if name == reward and name in teachers:
            raise UsageError(f"{location.of(['data', 'reward'])}: model {name!r} is a teacher, which rewards nothing")
        if name not in (*teachers, reward):
            made = f', or make it the reward (data.reward = "model:{name}")' if config.data else ""
            raise UsageError(f"{location.of(['models', name])}: model {name!r} is no arm's teacher; remove it{made}")
        for key in ("label", "range"):
            if name != reward and getattr(config.models[name], key) is not None:
                raise UsageError(
                    f"{location.of(['models', name, key])}: {key} is of a reward model, and {name!r} teaches"
                )
