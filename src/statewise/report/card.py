"""The model card of an exported model: Markdown with YAML front matter, from its facts alone.

Strings of the front matter are written as JSON, which YAML reads; text in the body is freed of control characters and
of what would end a table's cell or start markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from statewise.report import numbers, tables
from statewise.report.text import clean
from statewise.storage.model_records import ModelFacts

TEMPLATE = "card.md.jinja"
ARTICLES = {
    "full": "The model",
    "adapter": "The LoRA adapter",
    "merged": "The model (base weights with the LoRA adapter added, float32)",
}


def render_card(facts: ModelFacts) -> str:
    """The whole card; the same facts give the same bytes."""
    arm_rows = [
        (score.heading, tables.delta_cell(facts.arm_differences[score.column]).line)
        for score in facts.scores
        if score.column in facts.arm_differences
    ]
    scores = [
        {
            "heading": score.heading,
            "score": tables.score_cell(score.score).line,
            "base": tables.score_cell(score.base).line,
            "difference": tables.delta_cell(score.difference).line,
            "num_items": f"{score.score.num_items:,}",
        }
        for score in facts.scores
    ]
    parts = [str(facts.config[part]["kind"]) for part in ("source", "signal") if part in facts.config]
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            facts=facts,
            article=ARTICLES[facts.weights],
            label=f" ({facts.label})" if facts.label != facts.arm else "",
            revision=f", revision={_to_json(facts.base_revision)}" if facts.base_revision else "",
            tags=list(dict.fromkeys(["statewise", *parts, *(["lora"] if facts.weights != "full" else [])])),
            budget=", ".join(_amount(key, value) for key, value in facts.budget.items()) or "not recorded",
            scores=scores,
            forgetting=tables.delta_cell(facts.forgetting).line if facts.forgetting else "",
            arm_rows=arm_rows,
            arm_forgetting=tables.delta_cell(facts.arm_forgetting).line if facts.arm_forgetting else "",
            methods=sorted({estimate.method for estimate in facts.arm_differences.values()}),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("statewise.report"),
        autoescape=False,  # Markdown, not HTML: `cell` below is its escape
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Not jinja2's own tojson, which escapes for HTML.
    environment.filters.update(cell=_cell, settings=_settings, tojson=_to_json)
    return environment


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cell(text: Any) -> str:
    """Text that cannot leave its cell, code span or paragraph."""
    return clean(str(text)).replace("|", "\\|").replace("`", "'").replace("<", "&lt;")


def _settings(table: Mapping[str, Any]) -> str:
    """`kind`, then the other settings as they would stand in a study file."""
    rest = [f"{key} = {_to_json(value)}" for key, value in table.items() if key != "kind"]
    kind = f"`{_cell(table['kind'])}`" if "kind" in table else ""
    return ", ".join(part for part in (kind, *map(_cell, rest)) if part)


def _amount(key: str, value: float) -> str:
    if key == "train_s":
        return f"{numbers.duration(value)} of training"
    writer = key.removeprefix("num_generated_")
    noun = f"tokens written by the {writer}" if writer != key else key.removeprefix("num_").replace("_", " ")
    return f"{numbers.quantity(value)} {noun}"
