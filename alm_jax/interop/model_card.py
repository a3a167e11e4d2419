"""README.md of an exported folder: what the model is, how to use it, data, licences, numbers."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from alm_jax.config import training_folders
from alm_jax.interop.parity import TOLERANCE, ParityReport
from alm_jax.interop.usage import usage
from input_pipeline.sources import open_source

_MOST_EXAMPLES = 50_000


@dataclasses.dataclass(frozen=True)
class DataSummary:
    """What a model was trained on.

    Attributes:
      name: the dataset's folder, last two parts.
      split: the training split.
      clips: number of its clips.
      hours: their duration.
      licences: licence -> number of clips, most frequent first; "" where none is stated.
      sources: number of distinct sources (packages).
    """

    name: str
    split: str
    clips: int
    hours: float
    licences: dict[str, int]
    sources: int

    @classmethod
    def read(
        cls, directory: str | os.PathLike[str], split: str, sample_rate: int
    ) -> DataSummary | None:
        """Counts a split; of more than 50,000 clips evenly spaced ones, scaled up.

        Raises:
          UserError: there is no such dataset or split.
        """
        source = open_source(directory, split)
        step = -(-len(source) // _MOST_EXAMPLES)
        licences: collections.Counter[str] = collections.Counter()
        sources = set()
        samples = 0
        for i in range(0, len(source), step):
            example = source[i]
            samples += len(example["audio"])
            licences[str(example.get("licence", ""))] += step
            sources.add(example.get("source", ""))
        return cls(
            name="/".join(source.directory.rstrip("/").split("/")[-3:]),
            split=split,
            clips=len(source),
            hours=samples * step / sample_rate / 3600,
            licences=dict(licences.most_common()),
            sources=len(sources),
        )


def model_card(
    config: ConfigDict,
    report: ParityReport,
    layout: str,
    *,
    results: Mapping[str, Mapping[str, Any]] | None = None,
    data: DataSummary | None = None,
) -> str:
    """The text of README.md.

    Args:
      config: `exported.export_config`'s.
      report: of the comparison with JAX.
      layout: name of the `layouts.Layout`.
      results: rows of results.json.
      data: the training data.
    """
    parts = [
        f"# {config.name or 'Audio model'}\n",
        f"{_describe(config, report.parameters)}\n",
        f"## Use\n\n{usage(config, layout)}\n",
        f"## Data and licences\n\n{_data(config, data)}\n",
        f"## Results\n\n{_results(results)}\n",
        f"## Equal to the JAX model\n\n{report}.\n\nThe exporter refuses more than "
        f"{TOLERANCE:.0e}.{_REPEATED.get(layout, '')}\n",
    ]
    return "\n".join(parts)


_REPEATED = {"torch": " `python modeling_alm.py` repeats the comparison on golden.npz."}
_REPEATED["hf"] = _REPEATED["torch"]


def _describe(config: ConfigDict, parameters: int) -> str:
    model, rate = config.model, config.frontend.sample_rate
    lines = [
        f"{parameters:,} parameters, float32. Exported by alm_jax {config.export.alm_jax_version} "
        f"(format {config.export.format_version}).",
        "",
        f"- Audio: {rate} Hz mono, {config.frontend.num_mels} log-mel bands, {_tower(config)}; "
        f"windows of {config.data.max_seconds:g} s.",
    ]
    if model.text is not None:
        lines.append(
            f"- Text: {config.export.vocab_size} pieces, {model.text.depth} layers, "
            f"width {model.text.width}; up to {config.data.max_text_length} tokens. "
            f"Joint space of {model.embed_dim} dimensions."
        )
    for name, what in (
        ("caption_decoder", "Caption decoder"),
        ("mae_decoder", "Masked-patch decoder"),
    ):
        if model.get(name) is not None:
            lines.append(f"- {what}: {model[name].depth} layers, width {model[name].width}.")
    if model.get("classifier") is not None:
        lines.append(f"- Classifier: {model.classifier.classes} labels.")
    return "\n".join(lines)


def _tower(config: ConfigDict) -> str:
    audio = config.model.audio
    if audio.tower != "vit":
        return f"tower {audio.tower!r}, " + ", ".join(
            f"{name} {audio[name]}" for name in ("dim", "depths", "heads") if name in audio
        )
    return (
        f"patches of {config.patches.time} frames x {config.patches.freq} bands, transformer of "
        f"{audio.depth} layers, width {audio.width}"
    )


def _data(config: ConfigDict, data: DataSummary | None) -> str:
    folders = ", ".join(f"`{folder}`" for folder in training_folders(config))
    if not folders:
        return (
            "Imported from an official checkpoint: its data and its licence are those that its "
            "authors state."
        )
    if data is None:
        return (
            f"Trained on {folders}, split `{config.data.train_split}`. What the licences of its "
            "clips are is in its own records (prepare_report.json)."
        )
    rows = [
        f"| {_cell(name) or 'not stated'} | {count:,} |" for name, count in data.licences.items()
    ]
    table = "\n".join(["| Licence as its source states it | Clips |", "|---|---:|", *rows[:30]])
    more = f"\n\n... and {len(rows) - 30} more licences." if len(rows) > 30 else ""
    return (
        f"Trained on {data.clips:,} clips ({data.hours:.2f} hours) of {data.sources:,} sources: "
        f"`{data.name}`, split `{data.split}`. No recording is in this folder; golden.npz holds "
        f"synthetic waves.\n\n{table}{more}"
    )


def _results(results: Mapping[str, Mapping[str, Any]] | None) -> str:
    if not results:
        return "None were given to the exporter."
    columns = ("n_clips", "n_captions", "n_classes")
    lines = [
        "| Name | Value | Chance | Clips | Captions | Classes | Prompt |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, row in results.items():
        sizes = " | ".join(str(row.get(column, "")) for column in columns)
        value, chance = row["value"], row.get("chance")
        shown = "" if chance is None else f"{chance:.4g}"
        prompt = _cell(str(row.get("prompt", "")))
        lines.append(f"| {name} | {value:.4g} | {shown} | {sizes} | {prompt} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that a cell of a table can hold."""
    return text.replace("|", "\\|").replace("\n", " ")
