"""Rows of a data set of the Hugging Face hub, read by `datasets` and pinned to the commit that was read.

As for models, what is in the cache of this machine is used as it is, and the network is not asked: a branch that has
moved since cannot change a study that is continued. Departs from `datasets.load_dataset`, which without a network takes
the set that was cached last, of whichever commit and configuration; here only for "main", where nothing on this machine
says which commit that is: the commit that was taken is in the study's name of the rows. Python is never run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from statewise.errors import UsageError, unknown
from statewise.storage.rows import Row, rows_of_table

HUB = "hub:"
NAME = re.compile(
    r"hub:(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?"
    r"(:(?P<split>[\w.-]+))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
MAIN, DEFAULT = "main", "default"


@dataclass(frozen=True)
class HubName:
    """`hub:repo/config@revision:split`; `config` "": the data set's own."""

    repo: str
    config: str
    revision: str
    split: str

    @property
    def text(self) -> str:
        config = f"/{self.config}" if self.config else ""
        return f"{HUB}{self.repo}{config}@{self.revision}:{self.split}"


def _parse(name: str, split: str = "") -> HubName:
    match = NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name}: is no name of a data set; expected {HUB}org/name[/config][@revision][:split]")
    return HubName(match["repo"], match["config"] or "", match["revision"] or MAIN, match["split"] or split)


def locate_in_hub(name: str, split: str) -> str:
    """The name with its configuration, commit and split; what is not in the cache is downloaded.

    Args:
        name: `hub:org/name[/config][@revision][:split]`; revision: a branch ("main" without one), a tag or a commit.
        split: for a name without one.

    Raises:
        UsageError: no such name, data set, configuration, commit or split, no access to it, or no way to the hub.
    """
    wanted = _parse(name, split)
    builder = _build(wanted)
    splits = [str(one) for one in builder.info.splits or {}]
    if wanted.split not in splits:
        raise unknown("split", wanted.split, splits, name)
    return replace(wanted, config=str(builder.config.name), revision=str(builder.hash)).text


def commit_of(located: str) -> str:
    """The commit in a name that `locate_in_hub` gave."""
    return _parse(located).revision


def read_hub_rows(located: str) -> list[Row]:
    """The rows of a name that `locate_in_hub` gave.

    Raises:
        UsageError: as `locate_in_hub`.
    """
    wanted = _parse(located)
    return rows_of_table(_build(wanted).as_dataset(split=wanted.split).with_format("arrow")[:], located)


def _build(wanted: HubName) -> Any:
    """The builder of a data set that is whole in the cache: of the commit that is there, else that the hub has."""
    import datasets
    from datasets.exceptions import DatasetsError

    from statewise.tasks.offline import offline_without_hub

    if Path(wanted.repo).exists():
        raise UsageError(
            f"{wanted.text}: {Path(wanted.repo).resolve()} is there too, which datasets would read; name a saved "
            "folder by its path, or run in another folder"
        )
    if found := _cached(wanted, _known_commit(wanted)):
        return found
    with offline_without_hub():
        try:
            builder = datasets.load_dataset_builder(wanted.repo, wanted.config or None, revision=wanted.revision)
            _check_built(wanted, builder)
            builder.download_and_prepare()
        except (OSError, ValueError, RuntimeError, DatasetsError) as error:
            raise _hub_error(wanted, error, is_offline=bool(datasets.config.HF_HUB_OFFLINE)) from error
    return builder


def _check_built(wanted: HubName, builder: Any) -> None:
    """Refuse what datasets took from its cache because the hub did not answer, where it may be another data set.

    Raises:
        FileNotFoundError: it may.
    """
    is_pinned = COMMIT.fullmatch(wanted.revision) is not None
    is_from_cache = type(builder).__module__.endswith(".cache")
    is_other = (wanted.revision != MAIN) or (wanted.config or DEFAULT) != builder.config.name
    if (is_pinned and builder.hash != wanted.revision) or (is_from_cache and is_other):
        raise FileNotFoundError(
            f"cached are only others, such as configuration {builder.config.name!r} of commit {builder.hash}"
        )
    if not COMMIT.fullmatch(str(builder.hash)):
        raise FileNotFoundError(f"it has no commit, but {builder.hash!r}")


def _known_commit(wanted: HubName) -> str:
    """The commit that a revision is on this machine; "" where it is not known here."""
    import huggingface_hub

    if COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    found = huggingface_hub.try_to_load_from_cache(
        wanted.repo, "README.md", repo_type="dataset", revision=wanted.revision
    )
    return Path(found).parent.name if isinstance(found, str) else ""


def _cached(wanted: HubName, commit: str) -> Any:
    """The builder of what datasets keeps of this commit; None where it keeps none."""
    import datasets
    from datasets.naming import camelcase_to_snakecase
    from datasets.packaged_modules.cache.cache import Cache

    owner, _, name = wanted.repo.partition("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / f"{owner}___{camelcase_to_snakecase(name)}"
    for path in folder.glob(f"{wanted.config or DEFAULT}/*/{commit}") if commit else ():
        if (path / "dataset_info.json").is_file():
            config, version = path.parts[-3:-1]
            return Cache(dataset_name=name, repo_id=wanted.repo, config_name=config, version=version, hash=commit)
    return None


def _hub_error(wanted: HubName, error: Exception, *, is_offline: bool) -> UsageError:
    """What the user can do about an answer of the hub, or about none."""
    import datasets

    told = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if not is_offline:
        return UsageError(
            f"{wanted.text}: datasets cannot load it ({told}); check the name, log in with `hf auth login` where it is "
            "private or gated, or name a file or a saved folder"
        )
    return UsageError(
        f"{wanted.text}: is not in the cache {datasets.config.HF_DATASETS_CACHE}, and the hub cannot be asked "
        f"(HF_HUB_OFFLINE, or no network; {told}); run the same command once while online, or name a file or a saved "
        "folder"
    )
