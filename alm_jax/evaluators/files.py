"""An evaluation on disk: embeddings and predictions beside the numbers in results.json."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from alm_jax.errors import UserError
from alm_jax.evaluators.clips import Clips, zero_shot_tasks
from alm_jax.evaluators.suite import Evaluation, Results, ZeroShotAnswers

EMBEDDINGS, PREDICTIONS = "embeddings.npz", "predictions.json"


def save_evaluation(evaluation: Evaluation, folder: str | os.PathLike[str]) -> None:
    """Writes `embeddings.npz` and `predictions.json`.

    The first holds `audio` [n, J], `text` [m, J], `caption_of_clip` [n], `id` [n], `caption` [m];
    the second, for every clip, its id, true caption, generated caption and zero-shot answers.

    Args:
      evaluation: what `evaluate_split` returned.
      folder: made if it is not there.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    clips = evaluation.clips
    rows = [{"id": e.get("id", str(i)), "caption": e["text"]} for i, e in enumerate(clips.examples)]
    for row, caption in zip(rows, evaluation.generated or (), strict=False):
        row["generated"] = caption
    for answers in evaluation.zero_shot:
        for clip, answer in zip(answers.task.clips, answers.answers, strict=True):
            rows[int(clip)][answers.task.name] = answer
    np.savez(
        path / EMBEDDINGS,
        audio=evaluation.audio,
        text=evaluation.text,
        caption_of_clip=clips.caption_of_clip,
        id=np.asarray([row["id"] for row in rows]),
        caption=np.asarray(clips.captions),
    )
    text = json.dumps(
        {"split": clips.split, "dataset_fingerprint": clips.fingerprint, "clips": rows},
        indent=1,
        ensure_ascii=False,
    )
    (path / PREDICTIONS).write_text(text + "\n", encoding="utf-8")


def load_evaluation(
    folder: str | os.PathLike[str], directory: str | os.PathLike[str], results: Results
) -> Evaluation:
    """Reads what `save_evaluation` wrote.

    Args:
      folder: where it lies.
      directory: the dataset that was evaluated on.
      results: the numbers.

    Raises:
      UserError: the dataset is another one now.
    """
    path = Path(folder)
    stored = json.loads((path / PREDICTIONS).read_text(encoding="utf-8"))
    clips = Clips.read(directory, stored["split"])
    if clips.fingerprint != stored["dataset_fingerprint"]:
        raise UserError(
            f"{path} was made on another version of {clips.directory}; delete it and evaluate again"
        )
    rows = stored["clips"]
    answers = [
        ZeroShotAnswers(task, tuple(rows[int(clip)][task.name] for clip in task.clips))
        for task in zero_shot_tasks(clips)
    ]
    with np.load(path / EMBEDDINGS) as arrays:
        audio, text = arrays["audio"], arrays["text"]
    generated = [row["generated"] for row in rows] if "generated" in rows[0] else None
    return Evaluation(results, clips, audio, text, generated, answers)
