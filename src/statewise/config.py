"""Study files: strict schema, overrides, errors that name file and line, and the resolved study.

A study file is TOML (YAML reads `1e-4` as a string and keeps duplicate keys silently). `[shared]` holds what all arms
have in common, `[arms.<name>]` what makes each arm, `[grid]` what makes many at once (`grid`); `study.factors` lists
the keys in which arms may differ. What a source or signal accepts is known by its own dataclass, so those tables stay
open here and are closed by `component`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from statewise.errors import UsageError, unknown
from statewise.grid import NAME_PATTERN, check_levels, expand_grid, origin
from statewise.overrides import apply_override, split_key

Table = dict[str, Any]


class Strict(BaseModel):
    """A table of a study file: unknown keys and values of another type are refused, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class StudySection(Strict):
    """`[study]`: what the study is called and which seeds and factors it has.

    `quick`: overrides, as for `--set`, that make the study small enough to try out (`--quick`). `requires`: what the
    machine must have, or the study is refused.
    """

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    description: str = ""
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    factors: list[str] = []
    quick: list[str] = []
    requires: list[Literal["gpu"]] = []


class ProtocolSection(Strict):
    """`[shared.protocol.<task>]`: what the study changes in a task's own protocol; left out: the task's own."""

    num_fewshot: Annotated[int, Field(ge=0)] | None = None


class EvaluationSection(Strict):
    """`[shared.evaluation]`: `limit` items a task (None: all), `max_new_tokens` a generated answer.

    One item a task would have no interval.
    """

    limit: Annotated[int, Field(ge=2)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 128


class DriftSection(Strict):
    """`[shared.drift]`: how many prompts are rolled out, and how the distance of their states is tested."""

    num_prompts: Annotated[int, Field(ge=2)] = 200
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    states_per_rollout: Annotated[int, Field(ge=1)] = 4
    num_permutations: Annotated[int, Field(ge=19)] = 500


class AdapterSection(Strict):
    """`adapter`: train all weights, or a low-rank adapter on every linear layer of the decoder."""

    kind: Literal["full", "lora"] = "full"
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0


class BudgetSection(Strict):
    """`update.budget`: an arm ends with the update that reaches one of these, at `num_updates` at the latest.

    `states` that the source yielded, `loss_tokens` with a loss on them, model `flops` (forward and backward).
    """

    unit: Literal["states", "loss_tokens", "flops"]
    amount: Annotated[float, Field(gt=0)]


class UpdateSection(Strict):
    """`update`: how far the policy may move, and how an update is computed.

    `lr` is the peak of AdamW; `num_epochs`: gradient steps on the batch of one update; `reduction` says what one update
    averages over (`states`: every state weighs the same; `trajectories`: every trajectory does; `constant`: the sum of
    a trajectory is divided by `constant_tokens`, whatever its length); without `trains_end_of_text` the action that
    ends a text is no training state; `max_tokens` bounds a micro-batch, `packing` lays its rows end to end,
    `activation_checkpointing` trades time for memory: none can change a result but by rounding.
    """

    num_updates: Annotated[int, Field(ge=1)]
    num_epochs: Annotated[int, Field(ge=1)] = 1
    budget: BudgetSection | None = None
    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_updates: Annotated[int, Field(ge=0)] = 0
    # Not strict: TOML has lists only.
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    reduction: Literal["states", "trajectories", "constant"] = "states"
    constant_tokens: Annotated[int, Field(ge=1)] = 128
    trains_end_of_text: bool = True
    max_tokens: Annotated[int, Field(ge=1)] = 8192
    packing: bool = False
    activation_checkpointing: bool = False
    checkpoint_every: Annotated[int, Field(ge=1)] = 25


class SharedSection(Strict):
    """`[shared]`: model and tasks of the study, and defaults for every arm.

    `model`: `pocket`, a folder or a hub name `org/name[@revision]`; `end_of_text`: the token that ends gold text, where
    it is not the tokenizer's own. `data`: folder of local copies of hub data sets. `chat`: prompts, in training and
    evaluation, are put into the tokenizer's chat template. `device` and `dtype` "auto": a GPU where there is one, and
    the checkpoint's precision (`policy.device`). `sampler`: the rollout engine of training (`policy.samplers`).
    """

    model: str = "pocket"
    end_of_text: str | None = None
    data: str | None = None
    chat: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    sampler: Literal["own", "generate_batch"] = "own"
    target: str = "pocket_math"
    retention: list[str] = ["pocket_facts", "pocket_myths"]
    reward_metric: str = "exact_match,flexible-extract"
    protocol: dict[str, ProtocolSection] = {}
    evaluation: EvaluationSection = EvaluationSection()
    drift: DriftSection = DriftSection()


class ArmSection(Strict):
    """`[arms.<name>]` over the defaults in `[shared]`: one source, a signal or a sum of them, localities.

    `levels`: axis → level of the cell of a factorial design that the arm stands for; changes nothing that is computed.
    """

    label: str = ""
    levels: dict[str, str] = {}
    teacher: str | None = None
    source: Table
    signal: Table | list[Table]
    locality: Table | list[Table] = []
    adapter: AdapterSection = AdapterSection()
    update: UpdateSection


class PhenomenonSection(Strict):
    """`[[phenomena]]`: a claim put to the test by contrasts, all of which must hold.

    `measure`: a task (its score; for the target also `task:sampled`, its sampled answers) or `forgetting` (mean F).
    `comparison = "more"`: arm minus `than` is above `margin`; `"less"`: it is below `margin`. `than` may be `base`.
    """

    name: str
    statement: str
    measure: str
    comparison: Literal["more", "less"]
    arms: Annotated[list[str], Field(min_length=1)]
    than: str = "base"
    margin: float = 0.0
    note: str = ""


class ReferenceSection(Strict):
    """`[reference]`: a table printed beside the results, labelled as somebody else's."""

    label: str
    headings: list[str]
    rows: list[list[str]]


class StudyConfig(Strict):
    """A whole study, resolved: every arm carries its defaults."""

    study: StudySection
    shared: SharedSection = SharedSection()
    arms: Annotated[dict[str, ArmSection], Field(min_length=1)]
    phenomena: list[PhenomenonSection] = []
    reference: ReferenceSection | None = None


def read_study(path: Path, overrides: Iterable[str] = (), *, is_quick: bool = False) -> StudyConfig:
    """Read, override and check a study file.

    Args:
        path: the file.
        overrides: `arm.key=value`, `shared.key=value`, … (`overrides`), values in TOML syntax or bare text.
        is_quick: apply the study's own `quick` overrides first.

    Raises:
        UsageError: no such file, not TOML, an unknown key or arm, or a value out of range; with file, line and the
            nearest right word.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = tomllib.loads(text)
    except OSError as error:
        raise UsageError(
            f"{path}: cannot read the study file ({error.strerror}); give a path or a built-in name"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text; a study file is TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None
    for override in [*(_quick_of(raw, path) if is_quick else []), *overrides]:
        apply_override(raw, override)
    place = _Place(path, text, raw)
    config = _validate(_with_defaults(expand_grid(raw, place.of), place), place)
    _check_names(config, place)
    return config


def to_toml(config: StudyConfig) -> str:
    """The resolved study as TOML; reading it again gives the same study."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a study was read from, to name file and line in an error."""

    path: Path
    text: str
    raw: Table

    def of(self, keys: Iterable[str | int]) -> str:
        """`file:line` of the deepest key of the dotted path `keys` that the text holds; `file` alone if none.

        A key of an arm may stand in `[shared]`, whose line is the answer where it holds more of the path; one of an arm
        of the grid may stand in a level.
        """
        wanted = [str(key) for key in keys]
        depth, line = self._deepest(wanted)
        if wanted[:1] == ["arms"]:
            if level := origin(self.raw, wanted):
                depth, line = 2 + level.depth, self._deepest(level.keys)[1]
            # `arms.<name>.` and `shared.` are two keys and one.
            shared_depth, shared_line = self._deepest(["shared", *wanted[2:]])
            if shared_depth > 1 and shared_depth - 1 > depth - 2:
                line = shared_line
        return f"{self.path}:{line}" if line else str(self.path)

    def _deepest(self, wanted: list[str]) -> tuple[int, int]:
        """How many of the keys `wanted` the text holds at most, and the line where; 0 and 0 for none."""
        best_depth, best_line, section = 0, 0, list[str]()
        for number, line in enumerate(self.text.splitlines(), start=1):
            if header := re.match(r"\s*\[\[?\s*([^\[\]]+?)\s*\]\]?\s*(#.*)?$", line):
                section = split_key(header[1])
                here = section
            elif key := re.match(r"\s*([A-Za-z0-9_.\"'-]+)\s*=", line):
                here = section + split_key(key[1])
            else:
                continue
            # An inline table holds the keys below `here` on the same line.
            depth = len(here) if wanted[: len(here)] == here else 0
            if depth > best_depth:
                best_depth, best_line = depth, number
        return best_depth, best_line


def _quick_of(raw: Table, path: Path) -> list[str]:
    study = raw.get("study", {})
    quick = study.get("quick") if isinstance(study, dict) else None
    if not isinstance(quick, list) or not quick:
        raise UsageError(f"{path}: has no quick size; give study.quick a list of overrides, or use --set and --limit")
    return [str(override) for override in quick]


def _with_defaults(raw: Table, place: _Place) -> Table:
    """Copy `[shared.adapter]`, `[shared.update]`, … into every arm, and leave `[shared]` what only the study has."""
    shared = raw.get("shared", {})
    arms = raw.get("arms", {})
    if (
        not isinstance(shared, dict)
        or not isinstance(arms, dict)
        or not all(isinstance(a, dict) for a in arms.values())
    ):
        raise UsageError(f"{place.path}: 'shared', 'arms' and every arm must be tables")
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


def _validate(raw: Table, place: _Place) -> StudyConfig:
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        # A mistyped key is both unknown and missing; the former says more.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        loc = [part for part in first["loc"] if isinstance(part, (str, int))]
        where = place.of(loc)
        table = ".".join(str(part) for part in loc[:-1]) or "the study file"
        if first["type"] == "extra_forbidden":
            raise unknown(f"key in [{table}]:", str(loc[-1]), _known_keys(loc[:-1]), where) from None
        if first["type"] == "missing":
            raise UsageError(f"{where}: [{table}] needs the key {str(loc[-1])!r}") from None
        raise UsageError(f"{where}: {'.'.join(map(str, loc))}: {first['msg']} (got {first['input']!r})") from None


def _known_keys(loc: list[str | int]) -> list[str]:
    """The keys that the table at `loc` may have."""
    model: type[BaseModel] = StudyConfig
    by_name: dict[str, type[BaseModel]] = {
        "study": StudySection, "shared": SharedSection, "evaluation": EvaluationSection,
        "protocol": ProtocolSection, "drift": DriftSection,
        "adapter": AdapterSection, "update": UpdateSection, "budget": BudgetSection, "phenomena": PhenomenonSection,
        "reference": ReferenceSection,
    }  # fmt: skip
    if loc and loc[0] == "arms":
        model = ArmSection
    for part in loc:
        model = by_name.get(str(part), model)
    extra = ArmSection.model_fields if model is SharedSection else {}
    return [*model.model_fields, *extra]


def _check_names(config: StudyConfig, place: _Place) -> None:
    """Seeds are different, arms have safe names; teachers and the arms of phenomena exist."""
    seeds = config.study.seeds
    if twice := [seed for index, seed in enumerate(seeds) if seed in seeds[:index]]:
        raise UsageError(f"{place.of(['study', 'seeds'])}: seeds: {twice[0]} occurs twice; a seed is run once")
    for name, arm in config.arms.items():
        if not re.fullmatch(NAME_PATTERN, name) or name == "base":
            raise UsageError(
                f"{place.of(['arms', name])}: arm name {name!r} must match {NAME_PATTERN} and not be 'base'"
            )
        if (
            arm.teacher is not None
            and (arm.teacher not in config.arms or arm.teacher == name)
            and arm.teacher != "base"
        ):
            known = [other for other in config.arms if other != name]
            raise unknown("teacher", arm.teacher, [*known, "base"], place.of(["arms", name, "teacher"]))
    check_levels({name: arm.levels for name, arm in config.arms.items() if arm.levels}, place.of)
    for phenomenon in config.phenomena:
        for arm_name in [*phenomenon.arms, phenomenon.than]:
            if arm_name not in config.arms and arm_name != "base":
                raise unknown("arm", arm_name, [*config.arms, "base"], place.of(["phenomena"]))
