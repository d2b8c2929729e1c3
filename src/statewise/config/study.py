"""Study files: strict schema, overrides, errors that name file and line, and the resolved study.

A study file is TOML (YAML reads `1e-4` as a string and keeps duplicate keys silently). `[shared]` holds what all arms
have in common, `[arms.<name>]` what makes each arm, `[grid]` what makes many at once (`grid`); `study.factors` lists
the keys in which arms may differ. What a source or signal accepts is known by its own class (`kind`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FieldSerializationInfo,
    ValidationError,
    field_serializer,
    field_validator,
)

from statewise.config.grid import NAME_PATTERN, check_levels, expand_grid
from statewise.config.locations import Place
from statewise.config.overrides import ROOTS, apply_override
from statewise.config.refusals import first_of, keys_of, refusal
from statewise.errors import UsageError, unknown
from statewise.kind import Strict
from statewise.locality import Adapter, Full, Locality
from statewise.policy.samplers import SAMPLERS
from statewise.signals import WeightedSignal
from statewise.states import Source
from statewise.storage.parsing import check_depth, parse_toml

Table = dict[str, Any]
RESERVED = ("base", *ROOTS)
MAX_SEEDS = 1000
# Of AdamW: averages over the past, which forget.
Decay = Annotated[float, Field(ge=0, lt=1)]


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


def _known_sampler(name: str) -> str:
    if name not in SAMPLERS:
        raise ValueError(str(unknown("sampler", name, SAMPLERS)))
    return name


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
    sampler: Annotated[str, AfterValidator(_known_sampler)] = "own"
    target: str = "pocket_math"
    retention: list[str] = ["pocket_facts", "pocket_myths"]
    reward_metric: str = "exact_match,flexible-extract"
    protocol: dict[str, ProtocolSection] = {}
    evaluation: EvaluationSection = EvaluationSection()
    drift: DriftSection = DriftSection()


def _several(given: Any) -> Any:
    """One table or a list of them, as a tuple."""
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


class ArmSection(Strict):
    """`[arms.<name>]` over the defaults in `[shared]`: one source, a signal or a sum of them, localities.

    `levels`: axis → level of the cell of a factorial design that the arm stands for; changes nothing that is computed.
    """

    label: str = ""
    levels: dict[str, str] = {}
    teacher: str | None = None
    source: Source
    signal: Annotated[tuple[WeightedSignal, ...], BeforeValidator(_several)]
    locality: Annotated[tuple[Locality, ...], BeforeValidator(_several)] = ()
    adapter: Adapter = Full()
    update: UpdateSection

    @field_validator("signal")
    @classmethod
    def _are_some(cls, signals: tuple[WeightedSignal, ...]) -> tuple[WeightedSignal, ...]:
        if not signals:
            raise ValueError("no signal; give one, e.g. signal = { kind = 'imitate' }")
        return signals

    @field_validator("locality")
    @classmethod
    def _are_of_different_kinds(cls, localities: tuple[Locality, ...]) -> tuple[Locality, ...]:
        kinds = [one.kind for one in localities]
        if twice := [kind for index, kind in enumerate(kinds) if kind in kinds[:index]]:
            raise ValueError(f"locality {twice[0]!r} is given twice; give it once")
        return localities

    @field_serializer("signal")
    def _plainly(self, signals: tuple[WeightedSignal, ...], info: FieldSerializationInfo) -> Any:
        """One signal of weight 1 is a table, as it is mostly written."""
        tables = [one.model_dump(mode=info.mode, exclude_none=info.exclude_none) for one in signals]
        is_plain = len(signals) == 1 and signals[0].weight == 1
        return {key: value for key, value in tables[0].items() if key != "weight"} if is_plain else tables

    @property
    def needs_teacher(self) -> bool:
        return self.source.needs_teacher or any(one.signal.needs_teacher for one in self.signal)

    @property
    def needs_base(self) -> bool:
        """Whether the base model writes for the arm, or its next-token distribution is compared with."""
        wants = {need for one in self.signal for need in one.signal.needs}
        return (
            self.source.needs_base
            or any(one.needs_base for one in self.locality)
            or any(need.startswith("base_") for need in wants)
        )

    @property
    def signals(self) -> str:
        """In a few words: "reward + 0.1 reverse_kl"."""
        return " + ".join(one.summary for one in self.signal)

    @property
    def cell(self) -> str:
        """Source and signals, as errors name them."""
        return f"source {self.source.kind!r} with signal {' + '.join(one.signal.kind for one in self.signal)!r}"


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
    """The resolved study as TOML, with the defaults of every part; reading it again gives the same study."""
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
        errors = error.errors()
    first = first_of(errors, raw)
    keys = keys_of(first, raw)
    where, key, got = place.of(keys), str(keys[-1]), first["input"]
    if first["type"] == "extra_forbidden" and len(keys) == 1:
        what = "section:" if isinstance(got, (dict, list)) else "key before [study]:"
        raise unknown(what, key, [*StudyConfig.model_fields, "grid"], where)
    if first["type"] == "extra_forbidden" and keys[:-1] == ["shared"]:
        raise unknown("key in [shared]:", key, [*SharedSection.model_fields, *ArmSection.model_fields], where)
    if first["type"] == "missing" and len(keys) == 1:
        raise UsageError(f"{where}: needs a section [{key}]")
    if keys == ["arms"] and not got:
        raise UsageError(f"{where}: has no arms; add [arms.<name>] with a source and a signal, or a [grid]")
    raise refusal(errors, StudyConfig, raw, place.of)


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
