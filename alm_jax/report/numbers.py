"""Rows of results.json in the words and order in which a report shows them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Mapping[str, Any]]

MODEL, RIDGE, EXPORTED = "eval", "baseline/ridge", "export"
RETRIEVAL = (
    ("audio_to_text", "R@10", "Right caption in the first ten"),
    ("audio_to_text", "R@1", "Right caption first"),
    ("text_to_audio", "R@10", "Right sound in the first ten"),
    ("text_to_audio", "R@1", "Right sound first"),
)
SUBSETS = {
    "": "recorded clips",
    "_not_speech": "of these, without speech",
    "_speech": "of these, speech",
    "_with_notes": "with rendered notes",
}


@dataclasses.dataclass(frozen=True)
class Bar:
    """One value among those it is compared with.

    Attributes:
      name: whose value.
      style: CSS class.
      text: the value as shown.
      share: length in percent.
    """

    name: str
    style: str
    text: str
    share: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A headline number beside baseline and chance.

    Attributes:
      title: what it is.
      name: in results.json.
      bars: the model's first.
      note: sizes and prompt.
    """

    title: str
    name: str
    bars: list[Bar]
    note: str


def shown(value: float | None, unit: str = "score") -> str:
    """A value as its unit wants it: fractions in percent, ranks and seconds with one digit."""
    if value is None:
        return "–"
    if unit == "fraction":
        return f"{100 * value:.1f}%"
    if unit == "relative":
        return f"{value:.1e}"
    if unit in ("rank", "seconds", "GB"):
        return f"{value:,.1f}"
    return f"{value:,.0f}" if unit == "count" else f"{value:.3f}"


def sizes(row: Mapping[str, Any]) -> str:
    """How big the problem was: '863 clips, 830 captions'."""
    parts = []
    for key, noun in (("n_clips", "clips"), ("n_captions", "captions"), ("n_classes", "classes")):
        if key in row:
            parts.append(f"{row[key]:,} {noun}")
    return ", ".join(parts)


def comparisons(results: Results) -> list[Comparison]:
    """The headline numbers that there are."""
    found = []
    for direction, metric, title in RETRIEVAL:
        name = f"{MODEL}/retrieval/{direction}/{metric}"
        ridge = results.get(f"{RIDGE}/retrieval/{direction}/{metric}")
        others = [("ridge regression", "baseline", ridge["value"])] if ridge else []
        strong = results.get(f"{RIDGE}_whitened/retrieval/{direction}/{metric}")
        if strong:
            others.append(("ridge, whitened captions", "baseline", strong["value"]))
        found += _comparison(results, name, f"{title} ({metric})", others)
    for task, title in (
        ("general_midi", "Instrument of a note named right"),
        ("effects", "Class of a sound named right"),
    ):
        name = f"{MODEL}/zero_shot/{task}/accuracy"
        majority = results.get(f"{MODEL}/zero_shot/{task}/majority_share")
        others = [("most frequent class", "baseline", majority["value"])] if majority else []
        found += _comparison(results, name, title, others)
    return found


def _comparison(
    results: Results, name: str, title: str, others: Sequence[tuple[str, str, float]]
) -> list[Comparison]:
    row = results.get(name)
    if row is None:
        return []
    values = [("this model", "model", row["value"]), *others]
    if row.get("chance") is not None:
        values.append(("chance", "chance", row["chance"]))
    bars = [
        Bar(who, style, shown(value, row["unit"]), 100 * min(max(value, 0.0), 1.0))
        for who, style, value in values
    ]
    return [Comparison(title, name, bars, sizes(row))]


def verdict(results: Results) -> str:
    """One sentence on whether the model is better than the baseline; '' without a baseline."""
    name = "retrieval/audio_to_text/R@10"
    model, ridge = results.get(f"{MODEL}/{name}"), results.get(f"{RIDGE}/{name}")
    if model is None or ridge is None:
        return ""
    beaten = f"ridge regression on log-mel statistics ({shown(ridge['value'], 'fraction')})"
    if model["value"] > max(ridge["value"], model["chance"]):
        points = 100 * (model["value"] - ridge["value"])
        strong = results.get(f"{RIDGE}_whitened/{name}")
        also = ""
        if strong:
            also = f"; with whitened captions ridge reaches {shown(strong['value'], 'fraction')}"
        return f"That is {points:.1f} points more than {beaten}{also}."
    other = beaten if ridge["value"] >= model["chance"] else "chance"
    return (
        f"That is no better than {other}: this model has learned too little to be of use. Train "
        "it longer, or on more data."
    )


def subset_table(results: Results) -> list[dict[str, Any]]:
    """Retrieval on each set of clips: four numbers of the model, the baselines and chance."""
    table = []
    for suffix, title in SUBSETS.items():
        cells = []
        first: Mapping[str, Any] = {}
        for direction, metric, _ in RETRIEVAL:
            row = results.get(f"{MODEL}/retrieval{suffix}/{direction}/{metric}")
            if row is None:
                break
            first = first or row
            cell = {"model": shown(row["value"], row["unit"])}
            for baseline, label in ((RIDGE, "ridge"), (f"{RIDGE}_whitened", "whitened ridge")):
                other = results.get(f"{baseline}/retrieval{suffix}/{direction}/{metric}")
                if other:
                    cell[label] = shown(other["value"], row["unit"])
            cell["chance"] = shown(row["chance"], row["unit"])
            cells.append(cell)
        if cells:
            name = title if suffix else str(first.get("clips", title))
            table.append({"title": name, "cells": cells, "sizes": sizes(first)})
    return table


def caption_table(results: Results) -> list[dict[str, Any]]:
    """BLEU-4, ROUGE-L and CIDEr-D on each set of clips, with their chance."""
    table = []
    for suffix, title in SUBSETS.items():
        rows = [
            results.get(f"{MODEL}/captions{suffix}/{m}") for m in ("BLEU-4", "ROUGE-L", "CIDEr-D")
        ]
        present = [row for row in rows if row is not None]
        if len(present) == len(rows):
            table.append(
                {
                    "title": title if suffix else str(present[0].get("clips", title)),
                    "cells": [(shown(row["value"]), shown(row["chance"])) for row in present],
                    "sizes": sizes(present[0]),
                    "prompt": present[0].get("prompt", ""),
                }
            )
    return table


def everything(results: Results) -> list[dict[str, str]]:
    """Every row, for the table at the end."""
    return [
        {
            "name": name,
            "value": shown(row["value"], row.get("unit", "score")),
            "chance": shown(row.get("chance"), row.get("unit", "score")),
            "sizes": sizes(row),
            "prompt": str(row.get("prompt", "")),
            "clips": str(row.get("clips", "")),
            "protocol": str(row.get("protocol", "")),
        }
        for name, row in results.items()
    ]


def exported_equal(results: Results) -> tuple[int, list[str]]:
    """How many retrieval numbers the exported model was asked for, and which of them differ."""
    names = [
        n.removeprefix(f"{EXPORTED}/") for n in results if n.startswith(f"{EXPORTED}/retrieval")
    ]
    different = [
        name
        for name in names
        if results[f"{EXPORTED}/{name}"]["value"] != results[f"{MODEL}/{name}"]["value"]
    ]
    return len(names), different
