"""An evaluation in words: a Markdown page with every number and what it is a number of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

import alm_jax
from alm_jax.config import training_folders
from alm_jax.evaluators.protocols import HeldOut, Protocol, Ridge
from alm_jax.evaluators.results import format_value
from alm_jax.inference.model import Model

_COLUMNS = {
    "Clips": "n_clips",
    "Queries": "n_queries",
    "Gallery": "n_gallery",
    "Classes": "n_classes",
    "Prompt": "prompt",
}


def evaluation_card(
    model: Model,
    origin: str,
    protocols: Sequence[Protocol],
    results: Mapping[str, Mapping[str, Any]],
    missing: Sequence[str] = (),
) -> str:
    """The text of card.md.

    Args:
      model: what was scored.
      origin: where it lies.
      protocols: what was measured.
      results: all rows.
      missing: what could not be measured, and why.
    """
    config = model.config
    parts = [
        f"# Evaluation of {config.name or 'a model'}\n",
        f"- Model: `{origin}`, fingerprint `{model.fingerprint}`, config `{config.name}`; windows "
        f"of {model.max_seconds:g} s at {model.sample_rate} Hz, embeddings of {model.embed_dim} "
        f"dimensions; {_trained(config)}.\n"
        f"- Measured with alm_jax {alm_jax.__version__}.\n",
    ]
    parts += [f"- {line}\n" for line in missing]
    for protocol in protocols:
        rows = {name: row for name, row in results.items() if belongs(name, protocol)}
        if not rows:
            continue
        papers = f" Reported by: {protocol.papers}." if protocol.papers else ""
        parts.append(f"\n## {protocol.tag}\n\n{protocol.title}.{papers}\n\n{_facts(rows)}\n")
        parts.append(f"{_table(protocol, rows)}\n")
    return "\n".join(parts)


def _trained(config: ConfigDict) -> str:
    folders = training_folders(config)
    if not folders:
        return "trained elsewhere and imported"
    return f"trained on {', '.join(f'`{f}`' for f in folders)}, split `{config.data.train_split}`"


def belongs(name: str, protocol: Protocol) -> bool:
    """Whether a number is one of the protocol's."""
    if isinstance(protocol, Ridge):
        return name.startswith("baseline/")
    if isinstance(protocol, HeldOut):
        return name.startswith(("eval/retrieval", "eval/zero_shot/", "eval/captions"))
    return name.startswith(f"eval/{protocol.name}/")


def _facts(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What all rows of a protocol share, and how their numbers are counted."""
    lines = []
    for label, field in (("Dataset", "dataset"), ("Split", "split"), ("Note", "note")):
        if found := _distinct(rows, field):
            lines.append(f"- {label}: {'; '.join(found)}")
    lines.append(f"- Dataset fingerprint: {', '.join(_distinct(rows, 'dataset_fingerprint'))}")
    lines += [f"- Counted: {text}" for text in _distinct(rows, "protocol")]
    lines += [f"- Intervals: {text}" for text in _distinct(rows, "ci")]
    return "\n".join(lines)


def _distinct(rows: Mapping[str, Mapping[str, Any]], field: str) -> list[str]:
    return list(dict.fromkeys(str(row[field]) for row in rows.values() if row.get(field)))


def _table(protocol: Protocol, rows: Mapping[str, Mapping[str, Any]]) -> str:
    used = {
        title: field
        for title, field in _COLUMNS.items()
        if any(row.get(field) not in (None, "") for row in rows.values())
    }
    header = ["Metric", "Value", "95 % interval", "Chance", *used, "Convention"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    for name, row in rows.items():
        unit = row.get("unit", "score")
        ends = ("ci_low" in row) and " to ".join(
            format_value(row[end], unit) for end in ("ci_low", "ci_high")
        )
        cells = [
            name.removeprefix(f"eval/{protocol.name}/"),
            format_value(row["value"], unit),
            ends or "",
            format_value(row["chance"], unit),
            *(str(row.get(field, "")) for field in used.values()),
            str(row.get("convention", "")),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
