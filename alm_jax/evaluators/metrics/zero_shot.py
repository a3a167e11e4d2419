"""Zero-shot classification: a sound takes the class whose prompt embedding is nearest.

The prompt decides a good part of the number, so it stands in every row. Ties count against the
model: a clip is right only if its class scores higher than every other by more than the tolerance.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.bootstrap import Interval, group_mean_interval, mean_interval
from alm_jax.evaluators.metrics.class_precision import class_precision
from alm_jax.evaluators.metrics.ranking import (
    TIE_TOLERANCE,
    Positives,
    check_embeddings,
    rank_positives,
    unit_grid,
)
from alm_jax.evaluators.results import with_interval

PROTOCOL = "zero-shot-v1: nearest class prompt by cosine, ties within {tolerance:g} lose"

# '{}' is the class name, '{a}' the class name with its article ('a piano', 'an oboe').
TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "sound": ("the sound of {a}", "{}, sound effect"),
    "note": ("{a} playing a note",),
    # LAION-CLAP's and Cacophony's zero-shot scripts; Cacophony says "on" for TUT Acoustic Scenes.
    "this_is": ("This is a sound of {}",),
    "this_is_on": ("This is a sound on {}",),
    # transformers' pipeline "zero-shot-audio-classification" unless told otherwise.
    "pipeline": ("This is a sound of {}.",),
    "ensemble": ("This is a sound of {}", "the sound of {a}", "{}", "a recording of {a}"),
}


def build_prompts(class_names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Writes every class name into every template.

    Underscores in class names become spaces. `{a}` puts an article before the name, `an` before
    the letters a, e, i and o (u is as often spoken with a consonant: a ukulele).

    Args:
      class_names: c names.
      templates: t strings with `{}` or `{a}` in each.

    Returns:
      c * t prompts, the templates of the first class first.
    """
    for template in templates:
        if "{}" not in template and "{a}" not in template:
            raise UserError(f"prompt template {template!r} has no place for the class: write {{}}")
    if not templates:
        raise UserError("zero-shot classification needs at least one prompt template")
    names = [name.replace("_", " ").strip() for name in class_names]
    return [
        template.replace("{a}", _with_article(name)).replace("{}", name)
        for name in names
        for template in templates
    ]


def ensemble_prompts(text: ArrayLike, n_templates: int) -> NDArray[np.float64]:
    """Averages the prompts of each class on the unit sphere.

    Args:
      text: embeddings [c * n_templates, D] in the order of `build_prompts`.
      n_templates: prompts a class.

    Returns:
      float64 [c, D], unit length.
    """
    array = check_embeddings(text, "prompt")
    if n_templates < 1 or len(array) % n_templates:
        raise UserError(f"{len(array)} prompt embeddings are not {n_templates} for each class")
    array = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-300)
    mean = array.reshape(-1, n_templates, array.shape[1]).mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-300)


def zero_shot_metrics(
    audio: ArrayLike,
    class_text: ArrayLike,
    labels: Sequence[str] | ArrayLike,
    class_names: Sequence[str],
    *,
    prompts: Sequence[str],
    prefix: str = "eval/zero_shot",
    tie_tolerance: float = TIE_TOLERANCE,
    folds: ArrayLike | None = None,
    intervals: bool = True,
) -> dict[str, dict[str, Any]]:
    """Accuracy, accuracy averaged over classes, and mAP, with chance and the majority share.

    Args:
      audio: embeddings of labelled clips [n, D].
      class_text: embeddings of the classes [c, D], one each (see `ensemble_prompts`).
      labels: class of each clip: names, or int [n] rows of `class_text`.
      class_names: c names; classes without a clip are still offered as answers.
      prompts: the templates that were used, reported beside the numbers.
      prefix: names start with it.
      tie_tolerance: cosine difference up to which two classes are tied.
      folds: int [n], the fold of each clip, where a corpus has some.
      intervals: whether to add confidence intervals.

    Returns:
      Rows `{prefix}/accuracy` (share of clips given their class), `/macro_accuracy` (the same,
      each class that has clips weighing the same), `/mAP` (average precision of ranking all clips
      by each class that has clips, averaged over these classes) and `/majority_share` (accuracy of
      always answering the most frequent class); with folds also `/accuracy_mean_of_folds` and
      `/accuracy/fold_{number}`. With intervals over clips.

    Raises:
      UserError: unknown label, wrong shapes, non-finite embeddings.
    """
    clips, classes = unit_grid(audio, "audio"), unit_grid(class_text, "class prompt")
    if len(class_names) != len(classes) or len(set(class_names)) != len(class_names):
        raise UserError(
            f"{len(classes)} class embeddings need as many different class names, got "
            f"{len(class_names)} names, {len(set(class_names))} of them different"
        )
    label = _class_index(labels, class_names, len(clips))
    every_clip = np.arange(len(clips))
    _, right_class = Positives.from_pairs(every_clip, label)
    found = rank_positives(clips, classes, right_class, tie_tolerance=tie_tolerance).best == 1
    by_class = class_precision(
        clips, classes, every_clip, label, tie_tolerance=tie_tolerance, intervals=intervals
    )
    counts = by_class.counts
    hits = np.bincount(label[found], minlength=len(classes))[by_class.present]
    chance = 1.0 / len(classes)
    values: dict[str, tuple[float, float, Interval | None]] = {
        "accuracy": (float(found.mean()), chance, mean_interval(found) if intervals else None),
        "macro_accuracy": (
            math.fsum(hits / counts) / len(counts),
            chance,
            group_mean_interval(every_clip, label, found) if intervals else None,
        ),
        "mAP": (by_class.mean, by_class.chance, by_class.interval),
        "majority_share": (float(counts.max() / len(clips)), chance, None),
    }
    common = {
        "unit": "fraction",
        "n_clips": len(clips),
        "n_classes": len(classes),
        "prompt": " | ".join(prompts),
        "protocol": PROTOCOL.format(tolerance=tie_tolerance),
    }
    rows = {
        f"{prefix}/{name}": {"value": value, "chance": expected, **common, **with_interval(ends)}
        for name, (value, expected, ends) in values.items()
    }
    if folds is None:
        return rows
    numbers, fold = np.unique(np.asarray(folds), return_inverse=True)
    inside = np.equal.outer(fold, np.arange(len(numbers)))
    each = inside[found].sum(axis=0) / inside.sum(axis=0)
    rows[f"{prefix}/accuracy_mean_of_folds"] = {
        "value": math.fsum(each) / len(each),
        "chance": chance,
        **common,
        "convention": f"mean over {len(numbers)} folds, each weighing the same",
        **with_interval(group_mean_interval(every_clip, fold, found) if intervals else None),
    }
    for column, (number, value) in enumerate(zip(numbers, each, strict=True)):
        rows[f"{prefix}/accuracy/fold_{number}"] = {
            "value": float(value),
            "chance": chance,
            **common,
            "n_clips": int(inside[:, column].sum()),
            **with_interval(mean_interval(found[inside[:, column]]) if intervals else None),
        }
    return rows


def _class_index(
    labels: Sequence[str] | ArrayLike, class_names: Sequence[str], n_clips: int
) -> NDArray[np.int64]:
    array = np.asarray(labels)
    if array.shape != (n_clips,):
        raise UserError(f"{n_clips} audio embeddings need as many labels, got shape {array.shape}")
    if array.dtype.kind in "iu":
        outside = np.flatnonzero((array < 0) | (array >= len(class_names)))
        if outside.size:
            raise UserError(
                f"label {array[outside[0]]} of clip {outside[0]} is outside "
                f"0..{len(class_names) - 1} ({outside.size} such clips): leave unlabelled clips out"
            )
        return array.astype(np.int64)
    row = {name: index for index, name in enumerate(class_names)}
    unknown = sorted({str(label) for label in array.tolist()} - row.keys())
    if unknown:
        raise UserError(
            f"labels without a class of that name: {', '.join(map(repr, unknown[:5]))}"
            f"{' ...' if len(unknown) > 5 else ''}; leave unlabelled clips out"
        )
    return np.asarray([row[str(label)] for label in array.tolist()], np.int64)


def _with_article(name: str) -> str:
    return f"an {name}" if name[:1].lower() in {"a", "e", "i", "o"} else f"a {name}"
