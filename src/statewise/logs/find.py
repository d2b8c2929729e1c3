"""Which logs a path names: files of lm-eval, of one run of it, or logs of inspect."""

from __future__ import annotations

from pathlib import Path

from statewise.logs.inspect_log import EVAL, read_eval_files
from statewise.logs.lm_eval_log import find_samples, is_results, read_samples
from statewise.logs.log import EvaluationLog


def read_log(path: Path) -> EvaluationLog | None:
    """The log at `path`; None where there is none.

    Args:
        path: a file `samples_*.jsonl` or `results_*.json` of lm-eval (the samples of its date), the folder that holds
            them or whose one sub-folder does, a `.eval` file of inspect, or a folder of these.

    Raises:
        UsageError: it cannot be read, or holds several runs of a task.
    """
    if evals := [path] if path.suffix == EVAL else sorted(path.glob(f"*{EVAL}")):
        return read_eval_files(evals)
    if path.is_dir() or path.suffix == ".jsonl" or is_results(path):
        samples = find_samples(path)
        return read_samples(samples) if samples else None
    return None
