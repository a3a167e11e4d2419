"""Gathers what a report shows: runs, evaluation, data, a recorded ablation."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import alm_jax
from alm_jax.config import read_config
from alm_jax.evaluators.clips import Clips
from alm_jax.evaluators.suite import Evaluation
from alm_jax.inference.model import Model
from alm_jax.metrics import read_metrics
from alm_jax.report import examples, numbers, page, sections, sounds
from alm_jax.report.charts import Line, line_chart
from alm_jax.report.reconstructions import panels

QUERIES, CAPTIONS, PANELS = 12, 12, 4
# Long enough to see something in a spectrogram.
_PANEL_SECONDS = 0.8


def gather(
    run: Path,
    evaluation: Evaluation,
    model: Model,
    results: numbers.Results,
    *,
    ablation: Path | None = None,
    refused: str = "",
) -> page.Report:
    """Everything on the page.

    Args:
      run: folder of the quickstart, with `mae/` and `clap/`.
      evaluation: of the test split.
      model: stage 2's.
      results: results.json.
      ablation: a file that `alm_jax.ablation` wrote, or None.
      refused: why the exporter wrote nothing, '' if it did.
    """
    clips = evaluation.clips
    queries = examples.search_captions(evaluation, QUERIES)
    free = examples.search_free(evaluation, model, examples.FREE_QUERIES)
    captions = _captions(evaluation)
    stage1 = _stage1(run / "mae", clips, model.sample_rate)
    heard = {hit.clip for query in (*queries, *free) for hit in query.hits}
    heard |= {item.clip for item in (*captions, *stage1)}
    rows = sorted(heard)
    played = {
        row: sounds.data_uri(pcm, model.sample_rate)
        for row, pcm in zip(rows, clips.audio(rows), strict=True)
    }
    data = sections.data_statistics(Path(clips.directory))
    config = read_config(run / "clap" / "config.json")
    now = datetime.datetime.now().astimezone()
    return page.Report(
        title="A search engine for sounds, trained from scratch",
        made=f"{now:%d %B %Y} · {versions()}",
        summary=_summary(evaluation, results, data, config),
        facts=_facts(evaluation, results, data),
        comparisons=numbers.comparisons(results),
        baselines=any(name.startswith(numbers.RIDGE) for name in results),
        subsets=numbers.subset_table(results),
        charts=loss_charts(run),
        stage1=stage1,
        queries=queries,
        free=free,
        gallery=len(clips),
        captions=captions,
        caption_scores=numbers.caption_table(results),
        zero_shot=_zero_shot(evaluation, results),
        data=data,
        ablation=sections.ablation_table(ablation) if ablation else None,
        parity=sections.parity(results, refused),
        numbers=numbers.everything(results),
        timing=[
            (name.rpartition("/")[2], numbers.shown(row["value"], "seconds"))
            for name, row in results.items()
            if name.startswith("quickstart/seconds/")
        ],
        machine=machine(),
        commands=sections.commands(run),
        sounds=played,
    )


def versions() -> str:
    """Versions of what computes the numbers."""
    return f"alm_jax {alm_jax.__version__}, jax {jax.__version__}, flax {metadata.version('flax')}"


def machine() -> str:
    """What this process runs on, for people."""
    devices = jax.devices()
    kind = f"{len(devices)} × {devices[0].device_kind}" if devices[0].platform != "cpu" else "CPU"
    return (
        f"{kind}, {len(os.sched_getaffinity(0))} {platform.machine()} cores, {platform.system()}, "
        f"Python {platform.python_version()}, {versions()}"
        if hasattr(os, "sched_getaffinity")
        else f"{kind}, {os.cpu_count()} {platform.machine()} cores, {platform.system()}"
    )


def _summary(
    evaluation: Evaluation, results: numbers.Results, data: Mapping[str, Any] | None, config: Any
) -> list[str]:
    main = results.get("eval/retrieval/audio_to_text/R@10")
    trained = f"Trained on {data['trained_on']}." if data else ""
    first = (
        f"{trained} Stage 1 learned to fill in masked spectrograms, stage 2 to match sounds with "
        f"captions and to write captions ({config.train.steps:,} steps of "
        f"{config.data.batch_size} clips)."
    ).strip()
    if main is None:
        return [first]
    return [
        first,
        f"For {numbers.shown(main['value'], 'fraction')} of {main['n_clips']:,} held-out sounds it "
        f"ranks the right caption among its first ten of {main['n_captions']:,} (chance "
        f"{numbers.shown(main['chance'], 'fraction')}). {numbers.verdict(results)}".strip(),
    ]


def _facts(
    evaluation: Evaluation, results: numbers.Results, data: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    facts = [] if data is None else list(data["facts"])
    facts.append(("Test clips", f"{len(evaluation.clips):,}"))
    parameters = results.get("model/parameters")
    if parameters:
        facts.append(("Parameters", f"{parameters['value'] / 1e6:.1f} M"))
    seconds = [row["value"] for name, row in results.items() if "quickstart/seconds/" in name]
    if seconds:
        facts.append(("Time, all stages", f"{math.fsum(seconds) / 60:.1f} min"))
    memory = results.get("quickstart/peak_memory")
    if memory:
        facts.append(("Peak memory", f"{memory['value']:.1f} GB"))
    return facts


def _captions(evaluation: Evaluation) -> list[page.Shown]:
    if evaluation.generated is None:
        return []
    kinds = examples.kind_of(evaluation.clips)
    return [
        page.Shown(
            row,
            str(kinds[row]),
            evaluation.clips.caption(row),
            evaluation.generated[row],
        )
        for row in examples.spread(evaluation.clips, QUERIES + CAPTIONS)[-CAPTIONS:]
    ]


def _stage1(workdir: Path, clips: Clips, sample_rate: int) -> list[page.Shown]:
    if not (workdir / "checkpoints").is_dir():
        return []
    # Twice as many as are shown, so that clips that are too short can be passed over.
    drawn = examples.spread(clips, 6 * PANELS)
    audio = dict(zip(drawn, clips.audio(drawn), strict=True))
    long = [row for row in drawn if len(audio[row]) >= _PANEL_SECONDS * sample_rate]
    rows = (long + [row for row in drawn if row not in long])[:PANELS]
    kinds = examples.kind_of(clips)
    made = panels(os.fspath(workdir), [audio[row] for row in rows])
    return [
        page.Shown(row, str(kinds[row]), clips.caption(row), panel=panel)
        for row, panel in zip(rows, made, strict=True)
    ]


def loss_charts(run: Path) -> list[page.Chart]:
    """Loss curves of both stages, as far as they have been trained."""
    charts = []
    for stage, title, metric, reference, note in (
        (
            "mae",
            "Stage 1: masked patches",
            "reconstruction_loss",
            ("reconstruction_predict_mean", "always predicting the mean"),
            "Mean squared error of the dropped patches, in units of the normalised log-mel.",
        ),
        (
            "clap",
            "Stage 2: matching sounds and captions",
            "contrastive_loss",
            ("contrastive_chance", "chance: 2 ln(batch)"),
            "Contrastive loss in nats, both directions added.",
        ),
        (
            "clap",
            "Stage 2: writing captions",
            "captioning_loss",
            None,
            "Cross-entropy of the next token, in nats.",
        ),
    ):
        path = run / stage / "metrics.jsonl"
        lines = read_metrics(path) if path.exists() else []

        def curve(name: str, lines: list[dict[str, Any]] = lines) -> list[tuple[float, float]]:
            return [(line["step"], line[name]) for line in lines if name in line]

        curves = [Line("training", curve(f"train/{metric}"))]
        if reference:
            curves.append(Line(reference[1], curve(f"train/{reference[0]}"), "chance"))
        # A contrastive loss depends on the batch, which differs in size in evaluation.
        if metric != "contrastive_loss":
            validation = curve(f"eval/validation/{metric}")
            if len(validation) > 1:
                curves.append(Line("validation", validation, "baseline"))
        svg = line_chart(title, curves, x_label="steps", y_label="loss")
        if svg is not None:
            legend = [(line.name, line.style) for line in curves if len(line.finite) > 1]
            charts.append(page.Chart(title, note, svg, legend))
    return charts


def _zero_shot(evaluation: Evaluation, results: numbers.Results) -> list[page.ZeroShot]:
    tasks = []
    for answers in evaluation.zero_shot:
        prefix = f"eval/zero_shot/{answers.task.name}"
        shown = []
        for metric, title in (
            ("accuracy", "accuracy"),
            ("macro_accuracy", "accuracy, classes weighing the same"),
            ("mAP", "mean average precision"),
            ("majority_share", "always the most frequent class"),
        ):
            row = results[f"{prefix}/{metric}"]
            shown.append(
                {
                    "title": title,
                    "value": numbers.shown(row["value"], row["unit"]),
                    "chance": numbers.shown(row["chance"], row["unit"]),
                    "sizes": numbers.sizes(row),
                }
            )
        present = len(set(answers.task.labels))
        tasks.append(
            page.ZeroShot(
                f"{answers.task.title}: {len(answers.task.classes)} answers on offer, "
                f"{present} of them occur",
                shown,
                " | ".join(answers.task.templates),
                examples.class_table(answers),
            )
        )
    return tasks
