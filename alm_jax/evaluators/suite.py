"""What a model is worth on a held-out split: retrieval, zero-shot classes, captions.

`evaluate_split` gives flat rows for results.json and keeps what the numbers were made of, so that a
report can show sounds and sentences, and another framework's model can be scored the same way.

Retrieval and captions are reported for several sets of clips. The unmarked names
(`eval/retrieval/...`) are for recorded clips; OpenSounds' rendered notes ("a violin playing the
note C4"), whose captions differ by a few words only, come with `eval/retrieval_with_notes/...`.
Shapes: n clips, m distinct captions, c classes, J joint width.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from alm_jax.errors import UserError
from alm_jax.evaluators.clips import Clips, ZeroShotTask, zero_shot_tasks
from alm_jax.evaluators.metrics.caption_metrics import caption_metrics
from alm_jax.evaluators.metrics.retrieval import retrieval_metrics, select_clips
from alm_jax.evaluators.metrics.zero_shot import build_prompts, ensemble_prompts, zero_shot_metrics
from alm_jax.evaluators.results import flatten_results
from alm_jax.inference.model import Model as JaxModel

Results = dict[str, dict[str, Any]]

RETRIEVAL_PROMPT = "the caption as written"
CAPTION_PROMPT = "none: greedy decoding from <bos>"
_BATCH = 64  # windows that the model takes at a time
_CHUNK = 512  # clips in memory at a time


class Model(Protocol):
    """What can be scored: `alm_jax.load`'s model, or another framework's behind the same names."""

    @property
    def sample_rate(self) -> int:
        """Hz."""
        ...

    def embed_audio(
        self, clips: Any, sample_rate: float | None = None, *, batch_size: int = ...
    ) -> np.ndarray:
        """Embeddings [n, J] float32 of int16 clips [S] at `sample_rate` Hz."""
        ...

    def embed_text(self, strings: Sequence[str], *, batch_size: int = ...) -> np.ndarray:
        """Embeddings [m, J] float32."""
        ...


def embed_clips(
    model: Model,
    clips: Clips,
    *,
    rows: range | None = None,
    progress: str = "embedding clips",
) -> np.ndarray:
    """Embeddings [n, J] float32 of all clips of a split, whole (see `Model.embed_audio`).

    Args:
      model: embeds clips.
      clips: the split.
      rows: a part of it; None for all.
      progress: what the progress bar says.
    """
    parts = [
        np.asarray(model.embed_audio(audio, model.sample_rate, batch_size=_BATCH))
        for audio in clips.audio_chunks(progress, _CHUNK, rows)
    ]
    return np.concatenate(parts)


def generate_captions(model: JaxModel, clips: Clips, decode: str = "greedy") -> list[str] | None:
    """One caption a clip, or None where the model has no caption decoder.

    Args:
      model: writes captions.
      clips: the split.
      decode: `alm_jax.inference.decoding.Decoding` in words.
    """
    if not model.has_captions:
        return None
    return [
        caption
        for audio in clips.audio_chunks("writing captions", _CHUNK)
        for caption in model.caption(audio, model.sample_rate, batch_size=_BATCH, decode=decode)
    ]


@dataclasses.dataclass(frozen=True)
class ZeroShotAnswers:
    """A task with the class that the model gave each clip, in the order of `task.clips`."""

    task: ZeroShotTask
    answers: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Numbers of a model on a split, and what they were made of.

    Attributes:
      results: name -> row.
      clips: the split.
      audio: embeddings [n, J].
      text: embeddings [m, J] of the distinct captions.
      generated: a caption a clip, or None.
      zero_shot: the classes given.
    """

    results: Results
    clips: Clips
    audio: np.ndarray
    text: np.ndarray
    generated: list[str] | None
    zero_shot: list[ZeroShotAnswers]


def retrieval_results(
    audio: np.ndarray,
    text: np.ndarray,
    clips: Clips,
    prefix: str = "eval/retrieval",
    *,
    intervals: bool = True,
) -> Results:
    """Retrieval both ways on every subset of the split.

    Args:
      audio: embeddings [n, J].
      text: embeddings [m, J] of `clips.captions`.
      clips: the split.
      prefix: names start with it and the subset's suffix.
      intervals: whether to add confidence intervals.
    """
    results: Results = {}
    for suffix, (what, keep) in clips.subsets.items():
        rows = retrieval_metrics(
            *select_clips(audio, text, clips.caption_of_clip, keep),
            prefix=prefix + suffix,
            intervals=intervals,
        )
        results |= _with(rows, clips, what, RETRIEVAL_PROMPT)
    return results


def caption_results(generated: Sequence[str], clips: Clips) -> Results:
    """BLEU, ROUGE-L and CIDEr-D of one caption [n] a clip, on every subset of the split."""
    results: Results = {}
    true = clips.references
    for suffix, (what, keep) in clips.subsets.items():
        rows = caption_metrics(
            [caption for caption, kept in zip(generated, keep, strict=True) if kept],
            [references for references, kept in zip(true, keep, strict=True) if kept],
            prefix=f"eval/captions{suffix}",
        )
        results |= _with(rows, clips, what, CAPTION_PROMPT)
    return results


def zero_shot_results(
    model: Model, audio: np.ndarray, clips: Clips
) -> tuple[Results, list[ZeroShotAnswers]]:
    """Every zero-shot task of the split, with the class given to each clip.

    Args:
      model: embeds the prompts.
      audio: embeddings [n, J].
      clips: the split.
    """
    results: Results = {}
    answers = []
    for task in zero_shot_tasks(clips):
        prompts = model.embed_text(build_prompts(task.classes, task.templates))
        classes = ensemble_prompts(prompts, len(task.templates))
        rows = zero_shot_metrics(
            audio[task.clips],
            classes,
            task.labels,
            task.classes,
            prompts=task.templates,
            prefix=f"eval/zero_shot/{task.name}",
        )
        results |= _with(rows, clips, f"labelled clips: {task.title}", "")
        best = np.argmax(np.asarray(audio[task.clips], np.float64) @ classes.T, axis=1)
        answers.append(ZeroShotAnswers(task, tuple(task.classes[i] for i in best)))
    return results, answers


def evaluate_split(model: JaxModel, directory: str | os.PathLike[str], split: str) -> Evaluation:
    """Scores a model on a split: retrieval, zero-shot classification and generated captions.

    Args:
      model: a trained model with a text side.
      directory: a prepared dataset.
      split: a split's name.

    Raises:
      UserError: no such data, or a model without a text tower.
    """
    clips = open_clips(model, directory, split)
    clips.require_captions()
    return evaluate_clips(model, clips, embed_clips(model, clips))


def open_clips(
    model: JaxModel, directory: str | os.PathLike[str], split: str, *, text: bool = True
) -> Clips:
    """A split that a model can be scored on; with `text`, it must have a text side.

    Raises:
      UserError: as `evaluate_split`.
    """
    if text and not model.has_text:
        raise UserError(
            f"{model!r} was trained without text (config.model.text is none): it has no "
            "retrieval or zero-shot numbers. Give the workdir of a stage-2 run"
        )
    clips = Clips.read(directory, split)
    if clips.sample_rate not in (None, model.sample_rate):
        raise UserError(
            f"{clips.directory} holds audio at {clips.sample_rate} Hz, but the model was trained "
            f"at {model.sample_rate} Hz; build the dataset at that rate"
        )
    return clips


def evaluate_clips(model: JaxModel, clips: Clips, audio: np.ndarray) -> Evaluation:
    """What `evaluate_split` measures, on clips whose embeddings [n, J] are known."""
    text = model.embed_text(clips.captions)
    results = retrieval_results(audio, text, clips)
    zero_shot, answers = zero_shot_results(model, audio, clips)
    generated = generate_captions(model, clips)
    captions = caption_results(generated, clips) if generated is not None else {}
    rows = flatten_results(results, zero_shot, captions)
    return Evaluation(rows, clips, audio, text, generated, answers)


def _with(rows: Any, clips: Clips, what: str, prompt: str) -> Results:
    """Adds to rows where they come from; a prompt that a row has already stays."""
    common = {"split": clips.split, "clips": what, "dataset_fingerprint": clips.fingerprint}
    if prompt:
        common["prompt"] = prompt
    return flatten_results(rows, **common)
