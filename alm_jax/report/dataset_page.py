"""A dataset's statistics and some of its clips -> one HTML file that loads nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from alm_jax.report import charts, dataset
from alm_jax.report.dataset import Split
from alm_jax.report.page import environment, page_style

_ROWS = 15


@dataclasses.dataclass(frozen=True)
class Sample:
    """A clip to look at and listen to.

    Attributes:
      split: where it is from.
      captions: all of them.
      seconds: its length.
      spectrogram: PNG data URI of its log-mel spectrogram.
      sound: data URI.
      fields: everything else that the dataset says about it.
    """

    split: str
    captions: tuple[str, ...]
    seconds: float
    spectrogram: str
    sound: str
    fields: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Features:
    """Statistics of the log-mel features, before normalisation.

    Attributes:
      config: the config whose front end it is.
      mean: over all bins and valid frames.
      std: the same.
      by_bin: mean of every mel bin, float [F].
      clips: of how many clips.
      used: the mean and the deviation that the config's front end divides by.
    """

    config: str
    mean: float
    std: float
    by_bin: Sequence[float]
    clips: int
    used: tuple[float, float]


def content(
    directory: str, splits: Sequence[Split], samples: Sequence[Sample], features: Features | None
) -> dict[str, Any]:
    """Everything that the template shows."""
    captions = sum((split.captions for split in splits), Counter[str]())
    vocabulary = dataset.words(captions)
    seconds = np.concatenate([split.seconds for split in splits])
    hours = sum(split.hours for split in splits)
    return {
        "title": _title(directory),
        "directory": directory,
        "facts": [
            ("Clips", f"{len(seconds):,}"),
            ("Hours", f"{hours:,.2f}"),
            ("Median clip", f"{np.median(seconds):.2f} s"),
            ("Captions", f"{captions.total():,}"),
            ("Distinct captions", f"{len(captions):,}"),
            ("Different words", f"{len(vocabulary):,}"),
        ],
        "splits": [_split_row(split) for split in splits],
        "shared": _shared(splits),
        "charts": _charts(splits, captions, features),
        "words": vocabulary.most_common(60),
        "once": sum(count == 1 for count in vocabulary.values()),
        "repeated": [item for item in captions.most_common(_ROWS) if item[1] > 1],
        "scripts": dataset.scripts(captions).most_common(),
        "fields": _fields(splits),
        "features": features,
        "samples": samples,
        "rejected": _rejected(Path(directory)),
    }


def _title(directory: str) -> str:
    path = Path(directory)
    return path.parent.name if path.name[:1].isdigit() else path.name


def _split_row(split: Split) -> dict[str, str]:
    total = split.captions.total()
    repeated = total - len(split.captions)
    return {
        "name": split.name,
        "clips": f"{len(split.seconds):,}",
        "hours": f"{split.hours:,.2f}",
        "lengths": " / ".join(
            f"{value:.1f}" for value in np.percentile(split.seconds, (5, 50, 95))
        ),
        "longest": f"{split.seconds.max():.1f}",
        "captions": f"{total:,}",
        "per_clip": f"{total / max(len(split.seconds), 1):.2f}",
        "repeated": f"{repeated / max(total, 1):.1%}",
        "quiet": f"{int((split.peaks < -40).sum()):,}",
        "clipped": f"{int((split.clipped > 0.001).sum()):,}",
        "fingerprint": split.fingerprint,
    }


def _shared(splits: Sequence[Split]) -> list[str]:
    """Captions that two splits have in common: memory can answer those."""
    found = []
    for number, one in enumerate(splits):
        for other in splits[number + 1 :]:
            both = one.captions.keys() & other.captions.keys()
            if both:
                share = sum(other.captions[caption] for caption in both) / other.captions.total()
                found.append(
                    f"{len(both):,} captions stand in {one.name} and in {other.name}, where they"
                    f" are {share:.0%} of all"
                )
    return found


def _charts(
    splits: Sequence[Split], captions: Counter[str], features: Features | None
) -> list[dict[str, Any]]:
    seconds = np.concatenate([split.seconds for split in splits])
    low, high = max(seconds.min(), 0.01), max(seconds.max(), 0.02)
    edges = np.geomspace(low, high * 1.0001, 33)
    counts = np.histogram(np.maximum(seconds, low), edges)[0]
    drawn: list[dict[str, Any]] = [
        _bars("Length of clips", edges, counts, "seconds", logarithmic=True)
    ]
    if captions:
        sizes = dataset.lengths(captions)
        top = int(max(np.percentile(sizes, 99.5), 5)) + 1
        step = max(1, math.ceil(top / 40))
        edges = np.arange(0, top + step, step)
        counts = np.histogram(np.minimum(sizes, top), edges)[0]
        drawn.append(_bars("Length of captions", edges, counts, "words", y_label="captions"))
    levels = np.concatenate([split.levels for split in splits])
    levels = np.clip(levels, -80, 0)
    counts, edges = np.histogram(levels, 32)
    drawn.append(_bars("Level of clips", edges, counts, "root mean square, dB of full scale"))
    if features is not None:
        line = charts.Line("mean", list(enumerate(features.by_bin)), "model")
        svg = charts.line_chart("Mean log-mel", [line], x_label="mel bin", y_label="log value")
        drawn.append({"title": "Mean of the features", "svg": svg})
    return drawn


def _bars(
    title: str, edges: Any, counts: Any, x_label: str, **fields: Any
) -> dict[str, str | Markup]:
    svg = charts.histogram(title, list(edges), list(counts), x_label=x_label, **fields)
    return {"title": title, "svg": svg}


def _fields(splits: Sequence[Split]) -> list[dict[str, Any]]:
    """Every field with its most frequent values, those first that clips share."""
    rows = []
    for name in sorted({name for split in splits for name in split.fields}):
        fields = [split.fields[name] for split in splits if name in split.fields]
        counts = sum((field.counts for field in fields), Counter[str]())
        total = sum(counts.values())
        rows.append(
            {
                "name": name,
                "distinct": f"{len(counts):,}"
                + (" and more" if any(f.many for f in fields) else ""),
                "varies": all(field.varies for field in fields),
                "values": [
                    (value or "(none)", count, f"{count / total:.1%}")
                    for value, count in counts.most_common(_ROWS)
                ],
                "examples": [(value or "(none)",) for value, _ in counts.most_common(5)],
                "rest": max(0, len(counts) - _ROWS),
            }
        )
    return sorted(rows, key=lambda row: not row["varies"])


def _rejected(directory: Path) -> list[tuple[str, int]]:
    try:
        text = (directory / "prepare_report.json").read_text(encoding="utf-8")
    except OSError:
        return []
    report = json.loads(text)
    found = report.get("rejected_by_reason") or report.get("skipped_by_reason") or {}
    return sorted(found.items(), key=lambda item: -item[1])


def write(shown: dict[str, Any], made: str, path: str | os.PathLike[str]) -> Path:
    """Writes the page; a reader never sees half of it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = environment().get_template("dataset.html").render(style=page_style(), made=made, **shown)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(target)
    return target
