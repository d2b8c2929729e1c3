"""A finished or unfinished run folder, read from its records alone: its study, and what each arm and seed left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statewise import records
from statewise.config import StudyConfig, read_study
from statewise.errors import UsageError, unknown
from statewise.study.plan import BASE
from statewise.study.store import Store

Key = tuple[str, str]  # decoding, metric
Items = dict[str, dict[Key, dict[int, float | None]]]


@dataclass(frozen=True)
class RunFolder:
    """A folder of `statewise run` and its resolved study; `model` is the base model's folder when it was planned."""

    folder: Path
    config: StudyConfig
    model: Path

    @property
    def arms(self) -> tuple[str, ...]:
        return (BASE, *self.config.arms)

    def check_arm(self, arm: str) -> None:
        """Refuse an arm that the study does not have."""
        if arm not in self.arms:
            raise unknown("arm", arm, self.arms, str(self.folder))

    def check_seed(self, seed: int) -> None:
        """Refuse a seed that the study does not have."""
        if seed not in self.config.study.seeds:
            raise UsageError(
                f"{self.folder}: the study has no seed {seed}; its seeds are "
                f"{', '.join(map(str, self.config.study.seeds))}"
            )

    def arm_folder(self, arm: str, seed: int) -> Path:
        return Store(self.folder).arm_folder(arm, seed)

    def record(self, arm: str, seed: int, name: str) -> dict[str, Any]:
        """`train.json` or `done.json` of an arm and seed; {} if it is not there."""
        path = self.arm_folder(arm, seed) / name
        return read_object(path) if path.is_file() else {}


def open_run(folder: Path) -> RunFolder:
    """Open a run folder.

    Raises:
        UsageError: it is none, or its records are damaged.
    """
    if not (folder / "plan.json").is_file() or not (folder / "study.toml").is_file():
        raise UsageError(f"{folder}: not a run folder (no plan.json); give the folder of a `statewise run`")
    model = str(read_object(folder / "plan.json").get("model", ""))
    return RunFolder(folder, read_study(folder / "study.toml"), Path(model))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        value = records.read_json(path)
    except ValueError as error:
        raise UsageError(f"{path}: damaged, not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: damaged, expected a JSON object, got {type(value).__name__}")
    return value


def read_items(folder: Path) -> Items:
    """The scores of an `evals` folder: task → (decoding, metric) → item → score; None where it could not be scored."""
    items: Items = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in records.read_table(path):
            column = items.setdefault(path.stem, {}).setdefault((row["decoding"], row["metric"]), {})
            column[row["item"]] = row["score"]
    return items
