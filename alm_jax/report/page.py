"""Content of a report -> one HTML file that loads nothing from anywhere.

All text goes through Jinja2 with escaping on: captions are other people's words. The page forbids
itself (Content-Security-Policy) scripts and every source but its own data URIs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from alm_jax.report.examples import ClassRow, Query
from alm_jax.report.numbers import Bar, Comparison
from alm_jax.report.reconstructions import Panel

_FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Chart:
    """A drawing with its legend (name, CSS class of the line)."""

    title: str
    note: str
    svg: Markup
    legend: list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Shown:
    """A clip of the test split with what is said of it.

    Attributes:
      clip: its index.
      kind: of sound.
      caption: the true one.
      generated: the model's; None where it is not asked for.
      panel: its reconstruction, or None.
    """

    clip: int
    kind: str
    caption: str
    generated: str | None = None
    panel: Panel | None = None


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """One zero-shot task in words and numbers."""

    title: str
    numbers: list[dict[str, str]]
    prompt: str
    rows: list[ClassRow]


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
      title: heading.
      made: date and versions, one line.
      summary: sentences under the heading.
      facts: (label, value) pairs.
      comparisons: headline numbers.
      baselines: whether ridge regression is among what they are compared with.
      subsets: `numbers.subset_table`.
      charts: loss curves.
      stage1: clips with reconstructions.
      queries: caption searches.
      free: free-text searches.
      gallery: how many sounds are searched.
      captions: clips with generated captions.
      caption_scores: `numbers.caption_table`.
      zero_shot: tasks.
      data: data statistics, see `sections.data_statistics`.
      ablation: recorded ablation, see `sections.ablation_table`; None where there is none.
      parity: export, see `sections.parity`; None where nothing was exported.
      numbers: `numbers.everything`.
      timing: (stage, seconds as shown).
      machine: what it ran on.
      commands: (what for, command) pairs.
      sounds: clip index -> data URI.
    """

    title: str
    made: str
    summary: list[str]
    facts: list[tuple[str, str]]
    comparisons: list[Comparison]
    baselines: bool
    subsets: list[dict[str, Any]]
    charts: list[Chart]
    stage1: list[Shown]
    queries: list[Query]
    free: list[Query]
    gallery: int
    captions: list[Shown]
    caption_scores: list[dict[str, Any]]
    zero_shot: list[ZeroShot]
    data: Mapping[str, Any] | None
    ablation: Mapping[str, Any] | None
    parity: Mapping[str, Any] | None
    numbers: list[dict[str, str]]
    timing: Sequence[tuple[str, str]]
    machine: str
    commands: Sequence[tuple[str, str]]
    sounds: Mapping[int, str]


def environment() -> jinja2.Environment:
    """Templates of this folder, with escaping on."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page_style() -> Markup:
    """The style sheet of all pages."""
    return Markup((_FOLDER / "style.css").read_text(encoding="utf-8"))


def render(report: Report) -> str:
    """The page's HTML."""
    return (
        environment()
        .get_template("page.html")
        .render(
            style=page_style(),
            **{field.name: getattr(report, field.name) for field in dataclasses.fields(report)},
        )
    )


def write_page(report: Report, path: str | os.PathLike[str]) -> Path:
    """Writes the page; a reader never sees half of it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    partial.write_text(render(report), encoding="utf-8")
    partial.replace(target)
    return target


__all__ = ["Bar", "Chart", "Report", "Shown", "ZeroShot", "render", "write_page"]
