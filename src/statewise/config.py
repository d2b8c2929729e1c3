"""Study files: strict schema, overrides, errors that name file and line, and the resolved study.

A study file is TOML (YAML reads `1e-4` as a string and keeps duplicate keys silently). `[shared]` holds what all arms
have in common, `[arms.<name>]` what makes each arm, `[grid]` what makes many at once (`grid`); `study.factors` lists
the keys in which arms may differ. What a source or signal accepts is known by its own dataclass, so those tables stay
open here and are closed by `component`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from statewise.errors import UsageError, unknown
from statewise.grid import NAME_PATTERN, check_levels, expand_grid
from statewise.overrides import ROOTS, apply_override
from statewise.parsing import check_depth, parse_toml
from statewise.place import Place

Table = dict[str, Any]
RESERVED = ("base", *ROOTS)
MAX_SEEDS = 1000
# How a table is written that somebody gave as a value, which stands in the place of VALUE.
EXAMPLES = {
    "source": "{ kind = VALUE }", "signal": "{ kind = VALUE }", "locality": "{ kind = VALUE }",
    "adapter": "{ kind = VALUE }", "update": "{ num_updates = ..., lr = ... }",
    "budget": '{ unit = "loss_tokens", amount = VALUE }',
}  # fmt: skip
# Of AdamW: averages over the past, which forget.
Decay = Annotated[float, Field(ge=0, lt=1)]


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
    seeds: Annotated[list[int], Field(min_length=1, max_length=MAX_SEEDS)] = [0]
    factors: list[str] = []
    quick: list[str] = []
    requires: list[Literal["gpu"]] = []


class ProtocolSection(Strict):
    """`[shared.protocol.<task>]`: what the study changes in a task's own protocol; left out: the task's own."""

    num_fewshot: Annotated[int, Field(ge=0)] | None = None


class EvaluationSection(Strict):
    """`[shared.evaluation]`: `limit` items a task (None: all), `max_new_tokens` a generated answer.

    One item a task would have no interval. `items`: which ones a limit takes, a seeded sample or, as lm-eval does, the
    first. `samples`: sampled answers an item, graded as pass@k beside the single one.
    """

    limit: Annotated[int, Field(ge=2)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    items: Literal["sample", "first"] = "sample"
    samples: Annotated[int, Field(ge=2)] | None = None


class DriftSection(Strict):
    """`[shared.drift]`: how many prompts are rolled out, and how the distance of their states is tested.

    Drift within prompts asks for two `rollouts_per_prompt`; with one it is not measured.
    """

    num_prompts: Annotated[int, Field(ge=2)] = 200
    rollouts_per_prompt: Annotated[int, Field(ge=1)] = 2
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    states_per_rollout: Annotated[int, Field(ge=1)] = 4
    num_permutations: Annotated[int, Field(ge=19)] = 500

    @property
    def num_rollouts(self) -> int:
        """Of one sample: every model draws one, the base model a second for the floor."""
        return self.num_prompts * self.rollouts_per_prompt


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
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
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
    `too_long`: what becomes of documents, given pairs and prompts that exceed the model's context: "refuse" the study,
    or "skip" them in every arm, which the report says.
    """

    model: str = "pocket"
    end_of_text: str | None = None
    data: str | None = None
    chat: bool = False
    too_long: Literal["refuse", "skip"] = "refuse"
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
    """Read, override and check a study file, as `read_study_and_place` does."""
    return read_study_and_place(path, overrides, is_quick=is_quick)[0]


def read_study_and_place(
    path: Path, overrides: Iterable[str] = (), *, is_quick: bool = False
) -> tuple[StudyConfig, Place]:
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
    quick = _quick_of(raw, path) if is_quick else []
    by_quick = f"{Place(path, text).of(['study', 'quick'])}: study.quick"
    called = [(override, by_quick) for override in quick] + [(override, "--set") for override in overrides]
    applied = [(apply_override(raw, one), f"{by} {one.partition('=')[0].strip()}") for one, by in called]
    try:
        check_depth(raw)  # overrides have keys of as many parts as they like
    except ValueError as error:
        raise UsageError(f"{path}: an override is {error}") from None
    place = Place(path, text, raw, tuple(applied))
    config = _validate(_with_defaults(expand_grid(raw, place.of), place), place)
    _check_names(config, place)
    return config, place


def to_toml(config: StudyConfig) -> str:
    """The resolved study as TOML; reading it again gives the same study."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def _quick_of(raw: Table, path: Path) -> list[str]:
    study = raw.get("study", {})
    quick = study.get("quick") if isinstance(study, dict) else None
    if not isinstance(quick, list) or not quick:
        raise UsageError(f"{path}: has no quick size; give study.quick a list of overrides, or use --set and --limit")
    return [str(override) for override in quick]


def _with_defaults(raw: Table, place: Place) -> Table:
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


def _validate(raw: Table, place: Place) -> StudyConfig:
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        # A mistyped key is both unknown and missing; the former says more.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        # The branch of a union, such as `list[dict[str,any]]`, is no key.
        loc = [part for part in first["loc"] if isinstance(part, int) or "[" not in part]
        raise _refusal(loc, first["type"], first["msg"], first["input"], place.of(loc)) from None


def _refusal(loc: list[str | int], kind: str, message: str, got: Any, where: str) -> UsageError:
    """What is told of a value at `loc` that pydantic refuses with an error of `kind`."""
    dotted, table, key = ".".join(map(str, loc)), ".".join(map(str, loc[:-1])), str(loc[-1])
    if kind == "extra_forbidden":
        what = f"key in [{table}]:" if table else "section:" if isinstance(got, (dict, list)) else "key before [study]:"
        return unknown(what, key, _known_keys(loc[:-1]), where)
    if kind == "missing":
        return UsageError(f"{where}: [{table}] needs the key {key!r}" if table else f"{where}: needs a section [{key}]")
    if loc == ["arms"] and not got:
        return UsageError(f"{where}: has no arms; add [arms.<name>] with a source and a signal, or a [grid]")
    if key in EXAMPLES and not isinstance(got, dict):
        shown = json.dumps(got) if isinstance(got, (str, int, float)) else "..."
        example = EXAMPLES[key].replace("VALUE", shown)
        return UsageError(f"{where}: {dotted}: must be a table; write {key} = {example} (got {got!r})")
    return UsageError(f"{where}: {dotted}: {message} (got {got!r})")


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
    if not loc:
        return [*model.model_fields, "grid"]
    extra = ArmSection.model_fields if model is SharedSection else {}
    return [*model.model_fields, *extra]


def _check_names(config: StudyConfig, place: Place) -> None:
    """Seeds are different, arms have safe names; teachers and the arms of phenomena exist."""
    seeds = config.study.seeds
    if twice := [seed for index, seed in enumerate(seeds) if seed in seeds[:index]]:
        raise UsageError(f"{place.of(['study', 'seeds'])}: seeds: {twice[0]} occurs twice; a seed is run once")
    for name, arm in config.arms.items():
        if not re.fullmatch(NAME_PATTERN, name) or name in RESERVED:
            raise UsageError(
                f"{place.of(['arms', name])}: arm name {name!r} must match {NAME_PATTERN} and not be "
                f"{', '.join(RESERVED[:-1])} or {RESERVED[-1]}, which name something else in --set and in claims"
            )
        if (
            arm.teacher is not None
            and (arm.teacher not in config.arms or arm.teacher == name)
            and arm.teacher != "base"
        ):
            known = [other for other in config.arms if other != name]
            raise unknown("teacher", arm.teacher, [*known, "base"], place.of(["arms", name, "teacher"]))
    check_levels({name: arm.levels for name, arm in config.arms.items() if arm.levels}, place.of)
    for index, phenomenon in enumerate(config.phenomena):
        for key, arm_name in [*(("arms", arm) for arm in phenomenon.arms), ("than", phenomenon.than)]:
            if arm_name not in config.arms and arm_name != "base":
                raise unknown("arm", arm_name, [*config.arms, "base"], place.of(["phenomena", index, key]))
