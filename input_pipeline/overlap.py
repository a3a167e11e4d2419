"""Finds clips of an evaluation set inside a training set.

    alm overlap TRAIN EVAL [--output=FILE.json]

TRAIN and EVAL are datasets made by `alm prepare`, DIR or DIR:SPLIT. Without a split, of TRAIN that
called train is read, of EVAL all others (or all there are). A clip is found by where it comes from
(id), by equal samples, or by ear: re-encoded, cut, louder or quieter, resampled, with silence or
other sound around it. The exit status is 0 if nothing overlaps, 1 if something does.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax import cli
from alm_jax.arguments import ArgumentParser
from alm_jax.errors import UserError
from input_pipeline.fingerprint import at_rate
from input_pipeline.recordings import Overlap, Reference, open_splits, read, reader, reference
from input_pipeline.sources import Source

_SHOWN = 20


def find_overlaps(
    train: Sequence[Source], evaluation: Sequence[Source], workers: int = 2
) -> tuple[dict[int, str], Reference, list[Overlap]]:
    """Looks every training clip up in an evaluation set.

    The landmarks of the evaluation set are in memory (17 kB for ten seconds); the training set
    passes by clip after clip.

    Args:
      train: its splits.
      evaluation: its splits.
      workers: processes that compute fingerprints; 0 uses this one.

    Returns:
      Position -> id of the training clips that overlap, the evaluation set, and every such pair.
    """
    known = reference(evaluation, workers, "reading the evaluation set")
    pcm, rate = reader(train), train[0].sample_rate or 16000
    ids: dict[int, str] = {}
    found: list[Overlap] = []
    for position, clip in enumerate(read(train, workers, "looking up the training set")):
        if pairs := known.find(position, clip, functools.partial(_audio, pcm, position, rate)):
            ids[position] = clip.id
            found += pairs
    return ids, known, found


def _audio(pcm: Callable[[int], np.ndarray], position: int, sample_rate: int) -> np.ndarray:
    return at_rate(pcm(position), sample_rate)


def report(
    train: Sequence[Source],
    evaluation: Sequence[Source],
    ids: Mapping[int, str],
    known: Reference,
    found: Sequence[Overlap],
) -> dict[str, Any]:
    """What `--output` writes."""
    return {
        "train": [{"directory": s.directory, "split": s.split, "clips": len(s)} for s in train],
        "evaluation": [
            {"directory": s.directory, "split": s.split, "clips": len(s)} for s in evaluation
        ],
        "train_clips": len({pair.train for pair in found}),
        "evaluation_clips": len({pair.evaluation for pair in found}),
        "by": dict(Counter(pair.by for pair in found)),
        "pairs": [
            {
                "train": ids[pair.train],
                "evaluation": known.ids[pair.evaluation],
                "by": pair.by,
                "correlation": _number(pair.correlation, 3),
                "seconds": _number(pair.seconds, 2),
            }
            for pair in found
        ],
    }


def _number(value: float, digits: int) -> float | None:
    return None if np.isnan(value) else round(value, digits)


def lines(content: dict[str, Any]) -> Iterator[str]:
    """The same for a person."""
    pairs = content["pairs"]
    if pairs:
        yield f"{'by':<6} {'correlation':>11} {'seconds':>8}  training clip = evaluation clip"
    for pair in pairs[:_SHOWN]:
        alike = "" if pair["correlation"] is None else f"{pair['correlation']:.3f}"
        shared = "" if pair["seconds"] is None else f"{pair['seconds']:.2f}"
        yield f"{pair['by']:<6} {alike:>11} {shared:>8}  {pair['train']} = {pair['evaluation']}"
    if len(pairs) > _SHOWN:
        yield f"... and {len(pairs) - _SHOWN} more pairs; --output=FILE.json names all"
    counted = ", ".join(f"{count} by {how}" for how, count in content["by"].items())
    yield (
        f"{content['evaluation_clips']} of {_total(content['evaluation'])} evaluation clips are in"
        f" {content['train_clips']} of {_total(content['train'])} training clips"
        + (f" ({counted})" if counted else "")
    )


def _total(splits: Iterable[dict[str, Any]]) -> int:
    return sum(split["clips"] for split in splits)


def main(argv: list[str] | None = None) -> int:
    """Runs `alm overlap`.

    Returns:
      0 if nothing overlaps, else 1.

    Raises:
      UserError: no such dataset or split, or both are one and the same.
    """
    parser = ArgumentParser(prog="alm overlap", description=__doc__)
    parser.add_argument("train", metavar="TRAIN", help="training set, DIR or DIR:SPLIT")
    parser.add_argument("evaluation", metavar="EVAL", help="evaluation set, DIR or DIR:SPLIT")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write all pairs as JSON")
    parser.add_argument("--workers", type=int, default=2, help="processes (0: none but this one)")
    options = parser.parse_args(argv)
    if options.workers < 0:
        parser.error(f"--workers={options.workers}: must not be negative")
    train = open_splits(options.train, held_out=False)
    evaluation = open_splits(options.evaluation, held_out=True)
    same = {(s.directory, s.split) for s in train} & {(s.directory, s.split) for s in evaluation}
    if same:
        directory, split = min(same)
        raise UserError(
            f"{directory} split {split} is on both sides: name two splits, as in"
            f" {options.train.rpartition(':')[0] or options.train}:train"
        )
    content = report(train, evaluation, *find_overlaps(train, evaluation, options.workers))
    for line in lines(content):
        print(line)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, ensure_ascii=False)
        options.output.write_text(f"{text}\n", encoding="utf-8")
        print(f"written to {options.output}")
    return 1 if content["pairs"] else 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm overlap"))
