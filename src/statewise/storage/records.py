"""What a run folder holds, and how it is written: open formats only, temp file + fsync + rename, no pickle.

    study.toml · plan.json · summary.json · results.parquet · report.html
    arms/<arm>/<seed>/{started.json, config.toml, metrics.jsonl, timing.jsonl, states/*.parquet, checkpoints/, model/,
                       train.json, evals/*.parquet, rollouts.parquet, drift.json, done.json}
    states/ holds what an arm's source yielded, supervised/ what its signals made of it, where that is something else;
    an arm with EWC has locality/fisher.safetensors, one that trains an adapter adapter/ in the place of model/.
    arms/base/<seed>/ has rollouts_again.parquet, the second sample for the noise floor, and no training records.

`metrics.jsonl`, `states/` and `model/` are the same bytes for the same seed, machine and thread count; wall-clock time
is kept apart in `timing.jsonl`. `done.json` is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from statewise.batch import COLUMNS, Column
from statewise.errors import naming
from statewise.storage.output_folder import remove_folder
from statewise.storage.parsing import parse_json

# Of an interval, unless it says another.
LEVEL = 0.95
# Files of an adapter, as peft names them.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
ITEM_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("member", pa.string()),  # of a group, the task that the item belongs to; else the task itself
        ("item", pa.int32()),  # index of the document in the evaluated split; of a group, in its members' in turn
        ("decoding", pa.string()),  # "greedy", "sampled" or "choices"
        ("metric", pa.string()),  # lm-eval's "metric,filter", e.g. "exact_match,flexible-extract"
        ("score", pa.float64()),  # 0..1; null: could not be scored
        ("response", pa.string()),  # what was generated or chosen
        ("is_finished", pa.bool_()),  # one generated answer ended by itself, not at the limit of tokens; else null
        # Of the item, whatever the model (`folder.protocol`); null in records of an older version.
        ("item_sha256", pa.string()),
        ("prompt", pa.string()),
        # Of given texts (decoding "choices"), else null; null in records of an older version.
        ("chance", pa.float64()),  # that a guess among the item's choices scores 1; null: the metric is no such choice
        ("logprobs", pa.list_(pa.float64())),  # of each text that was asked about, in nats
        ("are_greedy", pa.list_(pa.bool_())),  # whether greedy decoding would write it
    ]
)
ROLLOUT_SCHEMA = pa.schema(
    [
        ("prompt_index", pa.int32()),  # a prompt may have several rollouts
        ("prompt_ids", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("is_finished", pa.bool_()),
    ]
)


def schema_of_states(columns: Iterable[Column]) -> pa.Schema:
    """One row a trajectory of an update; a list where there is one value a token."""
    kinds = [(column, pa.type_for_alias(column.kind)) for column in columns]
    told = [(column.name, pa.list_(kind) if column.per == "token" else kind) for column, kind in kinds]
    return pa.schema([("step", pa.int32()), ("row", pa.int32()), *told])


STATE_SCHEMA = schema_of_states(COLUMNS.values())
RESULT_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("column", pa.string()),  # "task:decoding:metric"
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("num_items", pa.int32()),
        ("num_seeds", pa.int32()),
        ("method", pa.string()),
    ]
)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a kill or a full disk leaves either the old file or the new one."""
    with replacing(path) as temporary, temporary.open("xb") as stream:  # new, so never through a link
        stream.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The path of a new file to write, which takes the place of `path`, durably; an error leaves what was there."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # of a run that was killed, or a link that somebody left there
    try:
        with naming(path):
            yield temporary
        sync_folder(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, durably: what is synced inside is lost with a folder whose name was not."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        sync_folder(one.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, or what is in a file: fsync takes any descriptor."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` as a whole, durably; an error leaves that one."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    remove_folder(temporary)
    try:
        make_folder(temporary)
        with naming(folder):
            yield temporary
        for path in temporary.iterdir():
            sync_folder(path)
        sync_folder(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    remove_folder(folder)
    temporary.replace(folder)
    sync_folder(folder.parent)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; nan and infinity are refused, since JSON has none."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return parse_json(path.read_text(encoding="utf-8"))


def write_table(path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> str:
    """Write rows as one Parquet file; the same rows give the same bytes. Returns their SHA-256."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a Parquet file."""
    return list(pq.read_table(path).to_pylist())


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Estimate:
    """A number with its interval of `level`, 0..1.

    `num_items` counts evaluated items (the smallest task's, where several enter), `num_seeds` training seeds.
    `low`/`high` are None where no interval can be given (then `method` says why). `p_adjusted`: two-sided p that the
    number is 0, held together with the same number of the study's other runs (Holm); None outside of such a family.
    """

    value: float
    low: float | None
    high: float | None
    num_items: int
    num_seeds: int
    method: str
    level: float = LEVEL
    p_adjusted: float | None = None

    @property
    def negated(self) -> Estimate:
        """The same of the number with its sign turned: of a difference from base, the forgetting F = base − post."""
        low, high = (None if end is None else 0.0 - end for end in (self.high, self.low))
        return replace(self, value=0.0 - self.value, low=low, high=high)


@dataclass(frozen=True)
class DriftEstimate:
    """A distance of one run's states from the base model's, over seeds.

    `value` is the mean over seeds with its 95 % interval `low`, `high` (None where none can be given: `method` says
    why); `floor` is the same distance between two base samples (mean over seeds). `p_value` is one for all seeds: that
    no seed's states differ from base's; None where no seed has one. `p_values` are the seeds' own.
    """

    value: float
    low: float | None
    high: float | None
    floor: float
    p_values: tuple[float, ...] = ()
    p_value: float | None = None
    num_seeds: int = 0
    method: str = "brackets: smallest and largest seed (an earlier version); p: not combined over seeds"


@dataclass(frozen=True)
class RunSummary:
    """One row of a study's table. Columns are keys of `StudySummary.columns`.

    `planned`: the budget as planned, with the keys of `budget` that can be planned. `levels`: axis → level of the cell
    of a factorial design that the arm stands for. `state_hashes`: seed → running SHA-256 over all training states.
    `answers`: over all seeds, the trajectories trained on, those cut at a limit (`num_unfinished`), and those rewarded
    (`num_rewarded`, `num_rewarded_unfinished`); empty where all of them ended by themselves. `evaluated_answers`: the
    same of the generated answers to the target's items, greedy and sampled, as the reward metric scores them.
    """

    arm: str
    label: str
    num_seeds: int
    num_diverged: int
    recipe: str
    scores: dict[str, Estimate]
    against_base: dict[str, Estimate] = field(default_factory=dict)
    teacher: str | None = None
    against_teacher: dict[str, Estimate] = field(default_factory=dict)
    forgetting: Estimate | None = None
    retention_ratio: Estimate | None = None
    drift: dict[str, DriftEstimate] = field(default_factory=dict)
    budget: dict[str, float] = field(default_factory=dict)
    planned: dict[str, float] = field(default_factory=dict)
    levels: dict[str, str] = field(default_factory=dict)
    state_hashes: dict[str, str] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    evaluated_answers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Effect:
    """One row of an analysis of variance: the share of the total sum of squares, with its 95 % interval over seeds.

    `omega_squared`: partial ω²; None for the seeds themselves, and with one seed. `low`/`high`: of the share without
    what noise adds to it, so that they can lie below; None with one seed, and for the seeds themselves with two.
    """

    name: str
    eta_squared: float
    low: float | None
    high: float | None
    omega_squared: float | None


@dataclass(frozen=True)
class EffectTable:
    """How much of the variance of `response` over cells and seeds each factor explains.

    `factors`: axis → its levels that enter. `effects` is empty where no complete design is left; `note` says why, or
    which levels were left out.
    """

    response: str
    factors: dict[str, tuple[str, ...]]
    num_cells: int
    num_seeds: int
    effects: tuple[Effect, ...]
    method: str
    note: str = ""


@dataclass(frozen=True)
class HypothesisSummary:
    """One hypothesis put to the test. `verdict`: "holds", "does not hold" or "not resolved".

    Every contrast is compared with `margin`, not with 0; its interval has the level that decided. `p_adjusted`: the
    hypothesis's two-sided p, held together with the study's other hypotheses (Holm).
    """

    name: str
    statement: str
    verdict: str
    test: str
    contrasts: dict[str, Estimate]
    margin: float = 0.0
    note: str = ""
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Largest:
    """The largest gain or forgetting (`response`) of `num_runs` runs; several `arms` are a tie.

    The interval of `estimate`, the first arm's, holds for all runs at once, since the data chose the run.
    """

    response: str
    arms: tuple[str, ...]
    estimate: Estimate
    num_runs: int


@dataclass(frozen=True)
class StudySummary:
    """Everything a report prints; `columns` maps a column's key to its heading, in order.

    `target` and `retention` are the columns that gain and forgetting are computed from; further columns are other
    decodings or metrics of the target.
    `protocols` says per task how it was evaluated; `reference` is another source's table (headings, rows), labelled.
    `effects`: of a factorial design, one table a response. `largest`: one for gain, one for forgetting.
    """

    name: str
    description: str
    columns: dict[str, str]
    target: str
    retention: tuple[str, ...]
    protocols: dict[str, str]
    runs: tuple[RunSummary, ...]
    hypotheses: tuple[HypothesisSummary, ...]
    environment: dict[str, str]
    reference_label: str = ""
    reference_headings: tuple[str, ...] = ()
    reference_rows: tuple[tuple[str, ...], ...] = ()
    problems: tuple[str, ...] = ()
    effects: tuple[EffectTable, ...] = ()
    largest: tuple[Largest, ...] = ()
