"""What lm-eval writes with `--log_samples`: a line an item and filter, beside the results of the same date.

An item is its doc_id, and the same one only with the same document and requests: their digest is that of our own
records (`folder.protocol.item_text`). In a chat the prompt is left out of it, as a template is the model's own.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from statewise.errors import UsageError
from statewise.folder.item_scores import Column
from statewise.folder.protocol import item_text
from statewise.logs.log import EvaluationLog, Gathering, LoggedItem
from statewise.storage.parsing import parse_json
from statewise.tasks.generation import max_tokens_of
from statewise.tasks.items import CHOICE_METRICS, chance_of_guess

DATE = r"(?P<date>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)"
SAMPLES, RESULTS = re.compile(rf"samples_(?P<task>.+)_{DATE}\.jsonl"), re.compile(rf".+_{DATE}\.json")
KEYS: dict[str, Any] = {
    "doc_id": int | str, "doc": object, "arguments": dict | list, "resps": list, "filter": str, "metrics": list,
}  # fmt: skip
OF_RESULTS = ("configs", "n-samples", "config", "n-shot", "versions")  # the first two hold a table a task
# lm-eval's own metrics that are of all items together; what else a results file does not explain is a mean.
OF_CORPUS = (
    "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "f1", "mcc", "bleu", "chrf", "chrf++", "ter",
    "brier_score", "bypass",
)  # fmt: skip
MEANS = ("mean",)
FEWSHOT_SEED = 1234  # lm_eval.defaults.DEFAULT_OTHER_SEED, which a protocol need not say
NUM_TOLD = 5


@dataclass(frozen=True)
class SamplesFile:
    """The samples of a task, and the results of the same date; None where these are not beside it."""

    path: Path
    task: str
    date: str
    results: Path | None


def is_results(path: Path) -> bool:
    """Whether a file is called like results of lm-eval."""
    return bool(RESULTS.fullmatch(path.name))


def find_samples(path: Path) -> list[SamplesFile]:
    """The files of samples that `path` names, by task; [] for a folder without.

    Raises:
        UsageError: no such file, or several models or several runs of a task to choose from.
    """
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        return [_described(path)]
    if named := RESULTS.fullmatch(path.name):
        found = [one for one in _samples_in(path.parent) if one.date == named["date"]]
        if not found:
            raise UsageError(f"{path}: no samples_*_{named['date']}.jsonl beside it; run lm_eval with --log_samples")
        return found
    folders = [one for one in (path, *sorted(path.iterdir())) if one.is_dir() and _samples_in(one)]
    if len(folders) > 1:
        raise UsageError(f"{path}: holds the samples of several models; name one: {_told(folders)}")
    if not folders:
        if any(is_results(one) for one in path.iterdir()):
            raise UsageError(f"{path}: has results of lm-eval, but no samples; run lm_eval with --log_samples")
        return []
    found = _samples_in(folders[0])
    for task in dict.fromkeys(one.task for one in found):
        runs = [one for one in found if one.task == task]
        if len(runs) > 1:
            choices = _told([one.results or one.path for one in runs])
            raise UsageError(f"{folders[0]}: holds {len(runs)} runs of task {task!r}; name one: {choices}")
    return found


def _told(paths: list[Path]) -> str:
    return ", ".join(map(str, paths[:NUM_TOLD])) + (f" and {len(paths) - NUM_TOLD} more" if paths[NUM_TOLD:] else "")


def _samples_in(folder: Path) -> list[SamplesFile]:
    return [_described(path) for path in sorted(folder.glob("samples_*.jsonl")) if SAMPLES.fullmatch(path.name)]


def _described(path: Path) -> SamplesFile:
    named = SAMPLES.fullmatch(path.name)
    if named is None:
        return SamplesFile(path, path.stem.removeprefix("samples_"), "", None)
    beside = [
        one for one in path.parent.iterdir() if (of := RESULTS.fullmatch(one.name)) and of["date"] == named["date"]
    ]
    return SamplesFile(path, named["task"], named["date"], beside[0] if len(beside) == 1 else None)


def read_samples(files: list[SamplesFile]) -> EvaluationLog:
    """The scores of these files.

    Raises:
        UsageError: a file is none of lm-eval's, cut off or empty, or no score in them is one of single items.
    """
    gathering, protocols, notes = Gathering(), dict[str, str](), dict[str, None]()
    for file in files:
        results = _read_results(file.results) if file.results else {}
        is_chat = bool(results.get("chat_template"))
        row: dict[str, Any] = {}
        for place, row in _rows(file.path):
            _gather(gathering, file.task, results, (place, row))
        protocols[file.task] = _protocol(file.task, results, row) if results else ""
        notes |= dict.fromkeys(_direction_notes(file.task, results))
        if not results:
            notes[
                f"{file.path.name}: no results of its date beside it, so how it was asked is known by its items alone"
            ] = None
        if is_chat:
            notes[
                "asked in the model's chat template; items are the same by document, and prompts are not compared"
            ] = None
    return gathering.log(protocols, notes)


def _direction_notes(task: str, results: Mapping[str, Any]) -> list[str]:
    """What a reader must know of metrics of which less is better."""
    metrics = results.get("configs", {}).get(task, {}).get("metric_list") or []
    lower = [str(one.get("metric")) for one in metrics if one.get("higher_is_better") is False]
    told = f"{task}: less is better in {', '.join(lower)}; there an item that is gained (0 → 1) is one that got worse"
    return [told] if lower else []


def _read_results(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not the results of lm-eval: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("configs"), dict):
        raise UsageError(f"{path}: not the results of lm-eval: no 'configs' in it")
    tables = [value.setdefault(key, {}) for key in OF_RESULTS]
    tables += [one for table in tables[:2] if isinstance(table, dict) for one in table.values()]
    configs = [config for config in value["configs"].values() if isinstance(config, dict)]
    tables += [one for config in configs for key in ("metric_list", "filter_list") for one in config.get(key) or []]
    if odd := [one for one in tables if not isinstance(one, dict)]:
        raise UsageError(f"{path}: not the results of lm-eval: {str(odd[0])[:40]!r} stands where a table is expected")
    return value


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row with its place; lm-eval writes NaN where a number is none."""
    number = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{place}: not valid JSON ({error}); is the file cut off?") from None
            if wrong := _wrong(row):
                raise UsageError(
                    f"{place}: {wrong}; expected a row of `lm_eval --log_samples`, of lm-eval 0.4.5 or later"
                )
            yield place, row
    if not number:
        raise UsageError(f"{path}: holds no samples")


def _wrong(row: Any) -> str:
    """What makes a row none of lm-eval's; "" where nothing does."""
    if missing := [key for key in KEYS if not isinstance(row, dict) or key not in row]:
        return f"no {missing[0]!r}"
    odd = [key for key, kind in KEYS.items() if not isinstance(row[key], kind)] or ["arguments"] * (
        not row["arguments"]
    )
    return f"{odd[0]!r} is {str(row[odd[0]])[:40]}" if odd else ""


def _gather(gathering: Gathering, task: str, results: Mapping[str, Any], placed: tuple[str, dict[str, Any]]) -> None:
    """Keep the scores of one row, or say why they are none."""
    place, row = placed
    config = results.get("configs", {}).get(task, {})
    asked = _requests(row["arguments"])
    shown = [one[1:] for one in asked] if results.get("chat_template") else asked
    digest = hashlib.sha256(item_text(row["doc"], shown)).hexdigest()
    chance = _chance(row, len(asked), str(config.get("output_type", "multiple_choice")))
    for metric in row["metrics"]:
        name, value = f"{metric},{row['filter']}", row.get(metric)
        if why := _refusal(metric, value, config):
            gathering.refused[f"{task} {name}"] = why
            continue
        column = Column(task, _decoding(row, asked), name)
        of_choice = chance if metric in CHOICE_METRICS and chance is not None else math.nan
        gathering.add(column, row["doc_id"], LoggedItem(float(row[metric]), digest, of_choice), place)


def _requests(arguments: Any) -> list[list[Any]]:
    """What was asked, request by request: `{"gen_args_0": {"arg_0": …}}`, or the bare lists of earlier versions."""
    requests = arguments.values() if isinstance(arguments, dict) else arguments
    return [list(one.values()) if isinstance(one, dict) else list(one) for one in requests]


def _refusal(metric: str, value: Any, config: Mapping[str, Any]) -> str:
    """Why a score is not the mean of its items' scores; "" if it is."""
    told = [one.get("aggregation") for one in config.get("metric_list") or [] if one.get("metric") == metric]
    if told and told[0] is not None:
        if told[0] not in MEANS:
            return f"its score is {str(told[0]).splitlines()[0][:60]!r} of all items, not the mean of single ones"
    elif metric in OF_CORPUS:
        return "its score is of all items together, not the mean of single ones"
    return "" if isinstance(value, int | float) else f"an item has {type(value).__name__}, not a number"


def _is_scored(row: Mapping[str, Any]) -> bool:
    """Whether given texts were scored: every response is one (log-likelihood, is greedy)."""
    resps = row["resps"]
    return all(
        isinstance(one, list) and len(one) == 1 and isinstance(one[0], list) and len(one[0]) == 2 for one in resps
    )


def _decoding(row: Mapping[str, Any], asked: list[list[Any]]) -> str:
    if _is_scored(row):
        return "choices"
    kwargs = asked[0][1] if len(asked[0]) > 1 and isinstance(asked[0][1], dict) else {}
    is_sampled = kwargs.get("do_sample", bool(kwargs.get("temperature"))) and kwargs.get("temperature", 1) > 0
    return "sampled" if is_sampled else "greedy"


def _chance(row: Mapping[str, Any], num_requests: int, output_type: str) -> float | None:
    """That a guess among the choices is right; of `acc_mutual_info` each is asked about twice."""
    if output_type != "multiple_choice" or not _is_scored(row):
        return None
    num_choices = num_requests // 2 if "acc_mutual_info" in row["metrics"] else num_requests
    try:
        gold = json.loads(str(row.get("target")))
    except ValueError:
        gold = None
    return chance_of_guess(num_choices, gold)


def _protocol(task: str, results: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """How lm-eval asked, in the words of `folder.protocol.describe_protocol`."""
    config, settings = results["configs"].get(task, {}), results.get("config", {})
    counts, shots = results.get("n-samples", {}).get(task, {}), results.get("n-shot", {}).get(task, "?")
    names = [one.get("name") for one in config.get("filter_list") or []]
    filters = "" if names in ([], ["none"]) else f"; filters {', '.join(map(str, names))}"
    split = config.get("test_split") or config.get("validation_split")
    told = (
        f"{shots}-shot; split {split}, n = {counts.get('original', '?')}{filters}; "
        f"task version {results.get('versions', {}).get(task)}, lm-eval {results.get('lm_eval_version', '?')}"
    )
    asked = _requests(row["arguments"])
    if not _is_scored(row) and len(asked[0]) > 1 and isinstance(asked[0][1], dict):
        told += f"; {_decoding(row, asked)}, at most {max_tokens_of(asked[0][1])} new tokens"
    if settings.get("fewshot_seed", FEWSHOT_SEED) != FEWSHOT_SEED and shots:
        told += f"; worked examples by seed {settings['fewshot_seed']}"
    if results.get("system_instruction"):
        told += f"; system instruction {str(results.get('system_instruction_sha'))[:8]}"
    if results.get("chat_template"):
        told += "; chat template" + (
            "" if results.get("fewshot_as_multiturn") or not shots else ", examples in one turn"
        )
    if (taken := counts.get("effective")) != counts.get("original"):
        told += f"; {taken} items only" + ("; the first items" if settings.get("limit") else "")
    return told
