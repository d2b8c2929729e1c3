"""The schema of a study, resolved: every arm carries its defaults.

`[shared]` holds what all arms have in common, `[arms.<name>]` what makes each arm, `[grid]` what makes many at once
(`grid`); `study.factors` lists the keys in which arms may differ. What a source or signal accepts is known by its own
class (`kind`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FieldSerializationInfo,
    field_serializer,
    field_validator,
)

from statewise.config.grid import NAME_PATTERN
from statewise.errors import unknown
from statewise.kind import Strict
from statewise.locality import Adapter, Full, Locality
from statewise.policy.engine import ENGINES
from statewise.signals import WeightedSignal
from statewise.states import Source
from statewise.storage import records
from statewise.tasks.own_data import DataSection
from statewise.tasks.own_file import TaskSection
from statewise.tasks.rewards import model_of_reward

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
    if name not in ENGINES:
        raise ValueError(str(unknown("sampler", name, ENGINES)))
    return name


class SharedSection(Strict):
    """`[shared]`: model and tasks of the study, and defaults for every arm.

    `model`: `pocket`, a folder or a hub name `org/name[@revision]`; `end_of_text`: the token that ends gold text, where
    it is not the tokenizer's own. `data`: folder of local copies of hub data sets. `chat`: prompts, in training and
    evaluation, are put into the tokenizer's chat template. `device` and `dtype` "auto": a GPU where there is one, and
    the checkpoint's precision (`policy.device`). `sampler`: the rollout engine of training (`policy.engine`).
    `too_long`: what becomes of documents, given pairs and prompts that exceed the model's context: "refuse" the study,
    or "skip" them in every arm, which the report says. `target` and `retention`: tasks by name, or the paths of YAML
    files, which reading turns into names (`[tasks.<name>]`); `reward_metric` "": as `plan.catalog.with_reward_metric`.
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
    reward_metric: str = ""
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
    def signal_summary(self) -> str:
        """In a few words: "reward + 0.1 reverse_kl"."""
        return " + ".join(one.summary for one in self.signal)

    @property
    def cell(self) -> str:
        """Source and signals, as errors name them."""
        return f"source {self.source.kind!r} with signal {' + '.join(one.signal.kind for one in self.signal)!r}"


class HypothesisSection(Strict):
    """`[[hypotheses]]`: a hypothesis put to the test by contrasts, all of which must hold.

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


class ModelSection(Strict):
    """`[models.<name>]`: a model from elsewhere, a folder or a hub name: a teacher, or what `data.reward` names.

    Of a reward model: `label`, which of its labels is rewarded (of one label it is that one), and `range`, the logits
    that are reward 0 and 1, with a straight line between. Without `range` the reward is the label's probability: the
    sigmoid of a single label's logit, the softmax over several.
    """

    model: str
    label: str | None = None
    # Not strict: TOML has lists only.
    range: Annotated[tuple[float, float], Field(strict=False)] | None = None

    @field_validator("range")
    @classmethod
    def _ascends(cls, given: tuple[float, float] | None) -> tuple[float, float] | None:
        if given is not None and given[0] >= given[1]:
            raise ValueError("the first logit must be below the second")
        return given


class StudyConfig(Strict):
    """A whole study, resolved: every arm carries its defaults."""

    study: StudySection
    data: DataSection | None = None
    models: dict[str, ModelSection] = {}
    tasks: dict[str, TaskSection] = {}
    shared: SharedSection = SharedSection()
    arms: Annotated[dict[str, ArmSection], Field(min_length=1)]
    hypotheses: list[HypothesisSection] = []
    reference: ReferenceSection | None = None

    @property
    def own_tasks(self) -> dict[str, list[str]]:
        """What tasks of the user's own are, by name: the digests of their files."""
        return {name: task.identity for name, task in self.tasks.items()}

    @property
    def reward_model(self) -> str | None:
        """Which of `models` rewards the answers, if one does."""
        return model_of_reward(self.data.reward) if self.data else None

    def rewarded_by(self, digests: Mapping[str, str]) -> str:
        """A digest of the bytes (`digests`, by name), label and range of the model that rewards; "" where none does."""
        if self.reward_model is None:
            return ""
        how = self.models[self.reward_model].model_dump(mode="json", exclude={"model"})
        return records.digest_json({"model": digests.get(self.reward_model), **how})
