"""What a study names by path: models, and tasks of the user's own. Read once, then known by whole paths and by names.

A path is relative to the study file; one of the command line, to the working directory. Those of [data] are always
relative to the study file.
"""

from __future__ import annotations

import os
from pathlib import Path

from statewise.config.locations import Location
from statewise.config.study import StudyConfig
from statewise.errors import UsageError
from statewise.policy.find import EMBEDDED
from statewise.tasks.own_file import SUFFIX, TaskSection


def place_models(config: StudyConfig, location: Location) -> StudyConfig:
    """The study whose models, and local copies of data sets, that are folders here have their whole paths."""
    folders = {name: location.folder_of("models", name, "model") for name in config.models}
    models = {name: one.changed(model=_place(one.model, folders[name])) for name, one in config.models.items()}
    shared = {"model": _place(config.shared.model, location.folder_of("shared", "model"))}
    if config.shared.data is not None:
        shared["data"] = _place(config.shared.data, location.folder_of("shared", "data"))
    return config.model_copy(update={"models": models, "shared": config.shared.model_copy(update=shared)})


def _place(name: str, folder: Path) -> str:
    """The whole path of a folder in `folder`, or else in the working directory; `name` itself where there is none."""
    places = [os.path.abspath(place / os.path.expanduser(name)) for place in (folder, Path.cwd())]
    return name if name == EMBEDDED else next(filter(os.path.isdir, places), name)


def place_tasks(config: StudyConfig, location: Location) -> StudyConfig:
    """The study whose target and retention tasks are names, with the files of those that were given by path.

    Raises:
        UsageError: a file is not there or is no task, two tasks have one name, or a file is none of them.
    """
    own = dict[str, TaskSection]()
    for name, section in config.tasks.items():
        with location.naming("tasks", name):
            own[name] = section.located(location.path.parent)
            if (called := own[name].name) != name:
                raise UsageError(f"[tasks.{name}]: {own[name].file} calls its task {called!r}")
    names, given = list[str](), [("target", config.shared.target), *(("retention", t) for t in config.shared.retention)]
    for key, task in given:
        with location.naming("shared", key):
            is_path = "/" in task or task.endswith(SUFFIX)
            named = TaskSection(file=task).located(location.folder_of("shared", key)) if is_path else own.get(task)
            name = named.name if named and is_path else task
            if named and name in names:
                raise UsageError(_clash(name, given[names.index(name)][1], task))
        names.append(name)
        own |= {name: named} if named else {}
    if unused := [name for name in config.tasks if name not in names]:
        where = location.of(["tasks", unused[0]])
        raise UsageError(f"{where}: task {unused[0]!r} is neither shared.target nor in shared.retention; remove it")
    shared = config.shared.model_copy(update={"target": names[0], "retention": names[1:]})
    return config.model_copy(update={"shared": shared, "tasks": own})


def _clash(name: str, one: str, other: str) -> str:
    if one == other:
        return f"task {one!r} is given twice"
    return f"tasks {one!r} and {other!r} are both called {name!r}; give `task` in the YAML file another name"
