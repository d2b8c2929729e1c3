"""A small study as text, and a folder that looks like a model: what the tests of config, plan and store start from."""

from __future__ import annotations

from pathlib import Path

from statewise.config.read import read_study_and_place
from statewise.plan.dag import Job, Plan, make_plan

STUDY = """\
[study]
name = "small"
seeds = [0, 1]
factors = ["source", "signal", "teacher", "update"]

[shared.evaluation]
limit = 12

[shared.update]
num_updates = 4
lr = 3e-4

[arms.sft]
source = { kind = "dataset", num_trajectories = 8 }
signal = { kind = "imitate" }

[arms.opd]
teacher = "sft"
source = { kind = "rollout", num_prompts = 8 }
signal = { kind = "continuation", num_tokens = 8 }

[arms.rl]
source = { kind = "rollout", num_prompts = 2, samples_per_prompt = 4 }
signal = { kind = "reward" }
update = { lr = 1e-4 }
"""

GRID = """\
[study]
name = "small"
factors = ["source", "signal", "teacher", "update.lr"]

[shared.update]
num_updates = 4
lr = 3e-4

[arms.sft]
source = { kind = "dataset", num_trajectories = 8 }
signal = { kind = "imitate" }

[grid]
label = "{signal} on {source}, lr {lr}"

[grid.axes.source]
data = { source = { kind = "dataset", num_trajectories = 4 } }
own = { source = { kind = "rollout", num_prompts = 8 } }

[grid.axes.signal]
imitate = { signal = { kind = "imitate" } }
reverse-kl = { signal = { kind = "reverse_kl" }, teacher = "sft" }

[grid.axes.lr]
"1e-4" = { update = { lr = 1e-4 } }
"1e-3" = { update = { lr = 1e-3 } }
"""

HYPOTHESIS = """
[[hypotheses]]
name = "p"
statement = "s"
measure = "forgetting"
comparison = "more"
arms = ["sft"]
than = "base"
"""


def write_study(folder: Path, text: str = STUDY) -> Path:
    path = folder / "small.toml"
    path.write_text(text, encoding="utf-8")
    return path


def fake_model(folder: Path) -> Path:
    """A folder with the files whose digests enter a fingerprint, and nothing that could be loaded."""
    model = folder / "fake-model"
    (model / "tasks").mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")  # of no tensors
    for task in ("pocket_math", "pocket_facts", "pocket_myths"):
        (model / "tasks" / f"{task}.yaml").write_text(f"task: {task}\n")
    return model


def small_plan(folder: Path, *overrides: str, text: str = STUDY) -> Plan:
    """The plan of `STUDY` with overrides, on the fake model of `folder`, which is made if it is not there."""
    model = folder / "fake-model"
    if not model.exists():
        fake_model(folder)
    config, place = read_study_and_place(write_study(folder, text), overrides)
    return make_plan(config, model, place)


def job_named(plan: Plan, id_: str) -> Job:
    return next(job for job in plan.jobs if job.id == id_)


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), start=1) if part in line)
