"""Classes without prompts: by the nearest training clips, and by a model's own classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from alm_jax.errors import UserError
from alm_jax.evaluators import protocols
from alm_jax.evaluators.clips import Clips
from alm_jax.evaluators.labels import read_labels
from alm_jax.evaluators.metrics.classifier import classifier_metrics
from alm_jax.evaluators.metrics.knn import PROTOCOL, TEMPERATURE, knn_scores
from alm_jax.evaluators.session import Session
from alm_jax.evaluators.suite import Results
from input_pipeline import labels as class_labels
from input_pipeline.loader_config import LoaderConfig

_BATCH = 64  # windows that the model takes at a time
_CHUNK = 512  # clips in memory at a time


def neighbours(protocol: protocols.Neighbours, session: Session, clips: Clips) -> Results:
    """Accuracy, mAP and AUC of the votes of the nearest training clips.

    Raises:
      UserError: no labels, too few training clips, or the split is the one to learn from.
    """
    train = session.training_clips(protocol.train, text=False)
    if train.split == clips.split:
        raise UserError(
            f"{protocol.name}: {clips.split!r} is the split that neighbours are taken from, and "
            "every clip is nearest to itself; give another --split"
        )
    asked, known = (read_labels(c, protocol.label, 0, protocol.name) for c in (clips, train))
    queries, gallery = session.audio(clips)[asked.rows], session.audio(train)[known.rows]
    rows: Results = {}
    for count in protocol.counts:
        scores = knn_scores(gallery, known.multi_hot(), queries, neighbours=count)
        prefix = f"eval/{protocol.name}[k={count}]"
        found = classifier_metrics(scores, asked.multi_hot(), prefix=prefix)
        more = {
            "gallery": f"{len(gallery):,} labelled clips of {train.split!r}",
            "convention": PROTOCOL.format(k=count, temperature=TEMPERATURE),
        }
        rows |= {
            name: {**row, **more, **_left_out(asked.unlabelled)} for name, row in found.items()
        }
    return rows


def own_classes(
    protocol: protocols.OwnClasses, session: Session, clips: Clips, folder: Path | None
) -> Results:
    """Accuracy, mAP and AUC of a model's own classifier; logits to `predictions.npz` of folder.

    Raises:
      UserError: the model was not trained on labels, or labels that are none of its classes.
    """
    model = session.model
    data = LoaderConfig.create(model.config.data)
    if not (model.classes and data.labels):
        raise UserError(
            f"{protocol.name} needs a model that was trained on labels; {model!r} has no classes "
            "(config.data.labels, objectives.classification)"
        )
    labels = class_labels.read_labels([clips], data.labels, model.classes, data.unlabelled)
    chunks = clips.audio_chunks("classifying clips", _CHUNK, labels.kept)
    logits = np.concatenate(
        [model.class_logits(audio, model.sample_rate, batch_size=_BATCH) for audio in chunks]
    )
    right = labels.rows(labels.kept)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        ids = np.asarray([str(clips.examples[row].get("id", row)) for row in labels.kept])
        classes = np.asarray(model.classes)
        np.savez(folder / "predictions.npz", id=ids, logits=logits, labels=right, classes=classes)
    found = classifier_metrics(logits, right, prefix=f"eval/{protocol.name}")
    left = len(clips) - len(labels.kept)
    return {name: {**row, **_left_out(left)} for name, row in found.items()}


def _left_out(clips: int) -> dict[str, str]:
    return {"note": f"{clips} clips without a class left out"} if clips else {}
