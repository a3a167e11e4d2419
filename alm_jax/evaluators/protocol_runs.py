"""Runs protocols on a model and a dataset: rows for results.json, predictions beside them."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from alm_jax.errors import UserError
from alm_jax.evaluators import label_runs, protocols
from alm_jax.evaluators.clips import Clips
from alm_jax.evaluators.files import save_evaluation
from alm_jax.evaluators.labels import read_labels
from alm_jax.evaluators.metrics import caption_java
from alm_jax.evaluators.metrics.caption_metrics import caption_metrics, checked_references
from alm_jax.evaluators.metrics.caption_sets import caption_set_metrics
from alm_jax.evaluators.metrics.compositional import compositional_metrics, read_groups
from alm_jax.evaluators.metrics.tagging import tagging_metrics
from alm_jax.evaluators.metrics.zero_shot import TEMPLATES, zero_shot_metrics
from alm_jax.evaluators.predictions import write_answers, write_captions
from alm_jax.evaluators.protocols import Protocol
from alm_jax.evaluators.results import flatten_results
from alm_jax.evaluators.session import Session
from alm_jax.evaluators.suite import Results, evaluate_clips, generate_captions

log = logging.getLogger("alm_jax")
_FILES = 64  # at a time


def run(protocol: Protocol, session: Session, folder: Path | None) -> Results:
    """Measures what a protocol says.

    Args:
      protocol: an entry of `protocols.PROTOCOLS`.
      session: model and data.
      folder: receives predictions; None for none.

    Returns:
      Rows named `eval/{protocol.name}/...`; those of `heldout` and `ridge` keep the quickstart's
      names.

    Raises:
      UserError: the dataset lacks what the protocol needs.
    """
    return _run(protocol, session, None if folder is None else folder / protocol.name)


@functools.singledispatch
def _run(protocol: Protocol, session: Session, folder: Path | None) -> Results:
    raise TypeError(type(protocol))


@_run.register
def _held_out(protocol: protocols.HeldOut, session: Session, folder: Path | None) -> Results:
    clips = _clips(protocol, session)
    clips.require_captions()
    evaluation = evaluate_clips(session.model, clips, session.audio(clips))
    if folder is not None:
        save_evaluation(evaluation, folder)
    return evaluation.results


@_run.register
def _ridge(protocol: protocols.Ridge, session: Session, folder: Path | None) -> Results:
    from alm_jax.evaluators.linear.evaluate import ridge_results

    del folder
    train = session.model.config.data.train_split
    return ridge_results(_clips(protocol, session), train, "validation")


@_run.register
def _retrieval(protocol: protocols.Retrieval, session: Session, folder: Path | None) -> Results:
    clips = _clips(protocol, session)
    clips.require_captions()
    audio, text = session.audio(clips), session.model.embed_text(clips.captions)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            folder / "embeddings.npz",
            audio=audio,
            text=text,
            caption_of_clip=clips.caption_of_clip,
            id=_ids(clips),
            caption=np.asarray(clips.captions),
        )
    rows = caption_set_metrics(audio, text, clips.caption_of_clip, prefix=f"eval/{protocol.name}")
    counts = sorted({len(own) for own in clips.references})
    odd = protocol.captions and counts != [protocol.captions]
    note = f"{counts[0]} to {counts[-1]} captions a clip, not {protocol.captions}" if odd else ""
    prompt = "the caption as written"
    return _named(rows, protocol, session, clips, gallery=True, prompt=prompt, note=note)


@_run.register
def _classification(
    protocol: protocols.Classification, session: Session, folder: Path | None
) -> Results:
    clips = _clips(protocol, session)
    labels = read_labels(clips, protocol.label, protocol.classes, protocol.name)
    notes = []
    if protocol.classes and len(labels.classes) != protocol.classes:
        notes.append(f"{len(labels.classes)} classes, not {protocol.classes}")
    if labels.unlabelled:
        notes.append(f"{labels.unlabelled} clips without label left out")
    templates = TEMPLATES[protocol.prompt]
    shared: dict[str, Any] = {"prompts": templates, "prefix": f"eval/{protocol.name}"}
    if protocol.tags:
        audio = session.audio(clips)[labels.rows]
        classes = session.classes(labels.classes, protocol.prompt)
        rows = tagging_metrics(audio, classes, labels.of_clip, **shared)
        return _named(rows, protocol, session, clips, note="; ".join(notes))
    label = labels.single(protocol.name)
    folds = None
    if protocol.folds:
        folds = labels.folds
        numbers = sorted(set(folds.tolist()))
        if 0 in numbers:
            raise UserError(
                f"{protocol.name} is reported by fold, but {clips.directory} does not say which "
                "clip is in which: prepare the corpus from its published layout "
                f"(`alm prepare --format={protocol.layout} --input=DIR --output=DIR`), or take "
                "--protocol=any-labels"
            )
        if len(numbers) != protocol.folds:
            notes.append(f"{len(numbers)} folds, not {protocol.folds}")
    if absent := len(labels.classes) - len(set(label)):
        notes.append(f"{absent} classes without a clip: offered as answers, not averaged over")
    audio = session.audio(clips)[labels.rows]
    classes = session.classes(labels.classes, protocol.prompt)
    rows = zero_shot_metrics(audio, classes, label, labels.classes, folds=folds, **shared)
    if folder is not None:
        best = np.argmax(np.asarray(audio, np.float64) @ classes.T, axis=1)
        write_answers(
            folder / "predictions.csv",
            _ids(clips)[labels.rows].tolist(),
            [labels.classes[place] for place in label],
            [labels.classes[place] for place in best],
        )
    return _named(rows, protocol, session, clips, note="; ".join(notes))


@_run.register
def _neighbours(protocol: protocols.Neighbours, session: Session, folder: Path | None) -> Results:
    del folder
    clips = _clips(protocol, session)
    return _named(label_runs.neighbours(protocol, session, clips), protocol, session, clips)


@_run.register
def _own_classes(protocol: protocols.OwnClasses, session: Session, folder: Path | None) -> Results:
    clips = _clips(protocol, session)
    rows = label_runs.own_classes(protocol, session, clips, folder)
    return _named(rows, protocol, session, clips)


@_run.register
def _captions(protocol: protocols.Captions, session: Session, folder: Path | None) -> Results:
    clips = _clips(protocol, session)
    clips.require_captions()
    generated = generate_captions(session.model, clips, protocol.decode)
    if generated is None:
        raise UserError(
            f"{protocol.name} needs a model that writes captions; {session.model!r} was trained "
            "without a caption decoder (config.model.caption_decoder)"
        )
    references = checked_references(generated, clips.references)
    if folder is not None:
        write_captions(folder / "predictions.csv", _ids(clips).tolist(), generated, references)
    prefix = f"eval/{protocol.name}"
    rows = caption_metrics(generated, references, prefix=prefix)
    if reason := caption_java.unavailable():
        log.warning("%s: %s", protocol.name, reason)
    else:
        rows |= caption_java.metrics(generated, references, prefix)
    return _named(rows, protocol, session, clips, prompt=f"none: {protocol.decode} decoding")


@_run.register
def _compositional(
    protocol: protocols.Compositional, session: Session, folder: Path | None
) -> Results:
    del folder
    groups = read_groups(session.data)
    paths = [str(path) for group in groups.files for path in group]
    audio, model = [], session.model
    for first in tqdm(range(0, len(paths), _FILES), "embedding clips", delay=2.0):
        audio.append(model.embed_audio(paths[first : first + _FILES], batch_size=_FILES))
    text = model.embed_text([caption for group in groups.captions for caption in group])
    prefix = f"eval/{protocol.name}"
    rows = compositional_metrics(np.concatenate(audio), text, groups.sizes, prefix=prefix)
    common = {"dataset": str(session.data), "dataset_fingerprint": groups.fingerprint}
    if protocol.groups and len(groups.sizes) != protocol.groups:
        common["note"] = _unlike_published([f"{len(groups.sizes)} groups, not {protocol.groups}"])
    return flatten_results(
        {name: row | {"protocol": _tagged(protocol, row)} for name, row in rows.items()},
        prompt="the caption as written",
        **common,
    )


def _clips(protocol: Protocol, session: Session) -> Clips:
    clips = session.clips(protocol.split, text=protocol.text)
    clips.require_several()
    return clips


def _ids(clips: Clips) -> np.ndarray:
    """Of every clip, its row's number where it has none."""
    return np.asarray([str(e.get("id", row)) for row, e in enumerate(clips.examples)])


def _unlike_published(notes: list[str]) -> str:
    return "not the published set: " + "; ".join(notes)


def _tagged(protocol: Protocol, row: Any) -> str:
    return f"{protocol.tag}: {row['protocol']}"


def _named(
    rows: Any,
    protocol: Protocol,
    session: Session,
    clips: Clips,
    *,
    gallery: bool = False,
    prompt: str = "",
    note: str = "",
) -> Results:
    """Rows with protocol, data and what keeps them from being the published number's equal."""
    notes = [note] if note else []
    if protocol.clips and len(clips) != protocol.clips:
        notes.append(f"{len(clips):,} clips, not {protocol.clips:,}")
    if protocol.layout and session.layout != protocol.layout:
        made = f"format {session.layout!r}" if session.layout else "no format that is known"
        notes.append(f"prepared from {made}, not {protocol.layout!r}")
    common: dict[str, Any] = {
        "split": clips.split,
        "dataset": clips.directory,
        "dataset_fingerprint": clips.fingerprint,
    }
    if prompt:
        common["prompt"] = prompt
    if notes:
        common["note"] = _unlike_published(notes) if protocol.layout else "; ".join(notes)
    named = {name: row | {"protocol": _tagged(protocol, row)} for name, row in rows.items()}
    if gallery:
        for name, row in named.items():
            what = "clips" if "/text_to_audio/" in name else "captions"
            row["gallery"] = f"the split's {row['n_gallery']:,} {what}"
    return flatten_results(named, **common)
