"""How well `alm overlap` finds recordings again: recall for each change, and what it finds wrongly.

    python -m tests.benchmarks.overlap data/opensounds/default

Recall: recorded clips of the test split, each changed and looked up among all of them. Precision:
every recorded clip of the training split looked up in the test split; what is found is listed, to
be judged by its name (the splits were made without this check). Rendered notes are left out: notes
of one synthesiser share their samples by construction.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import soundfile
import soxr
from tqdm import tqdm

from input_pipeline.fingerprint import Fingerprint, at_rate, fingerprint
from input_pipeline.fingerprint_index import Index, Match, matches
from input_pipeline.recordings import CORRELATION
from input_pipeline.sources import Source, open_source

RATE = 16000
Pcm = np.ndarray


def _int16(audio: np.ndarray) -> Pcm:
    return np.rint(np.clip(audio, -1, 1) * 32767).astype(np.int16)


def codec(pcm: Pcm, container: str, encoding: str, level: float) -> Pcm:
    """Encoded and decoded by libsndfile; level 0 is the best quality, 1 the smallest file."""
    file = io.BytesIO()
    soundfile.write(file, pcm, RATE, format=container, subtype=encoding, compression_level=level)
    file.seek(0)
    return _int16(soundfile.read(file, dtype="float32")[0])


def resampled(pcm: Pcm, rate: int) -> Pcm:
    there = soxr.resample(pcm / np.float32(32768), RATE, rate)
    return _int16(soxr.resample(there, rate, RATE))


def middle(pcm: Pcm, share: float) -> Pcm:
    length = round(len(pcm) * share)
    start = (len(pcm) - length) // 3
    return pcm[start : start + length]


def in_noise(pcm: Pcm) -> Pcm:
    noise = np.random.default_rng(len(pcm)).normal(0, pcm.std() * 10 ** (-10 / 20), len(pcm))
    return _int16((pcm + noise) / 32768)


CHANGES: dict[str, Callable[[Pcm], Pcm]] = {
    "Vorbis, default": lambda pcm: codec(pcm, "OGG", "VORBIS", 0.6),
    "Vorbis, lowest": lambda pcm: codec(pcm, "OGG", "VORBIS", 1.0),
    "Opus, low": lambda pcm: codec(pcm, "OGG", "OPUS", 0.85),
    "MP3, lowest": lambda pcm: codec(pcm, "MP3", "MPEG_LAYER_III", 0.9),
    "gain -20 dB": lambda pcm: _int16(pcm / 32768 * 0.1),
    "gain +12 dB, clipped": lambda pcm: _int16(pcm / 32768 * 4),
    "over 8 kHz": lambda pcm: resampled(pcm, 8000),
    "over 44.1 kHz": lambda pcm: resampled(pcm, 44100),
    "the middle half": lambda pcm: middle(pcm, 0.5),
    "0.6 s of silence before": lambda pcm: np.pad(pcm, (9999, 0)),
    "white noise, 10 dB below": in_noise,
    "80%, -10 dB, Vorbis lowest": lambda pcm: codec(
        _int16(middle(pcm, 0.8) / 32768 * 0.3), "OGG", "VORBIS", 1.0
    ),
}


class Known:
    """Clips that others are looked up among."""

    def __init__(self, clips: Sequence[Pcm]) -> None:
        self.audio = [at_rate(pcm, RATE) for pcm in clips]
        self.index = Index([fingerprint(pcm, RATE) for pcm in clips])

    def find(self, pcm: Pcm) -> list[Match]:
        found: Fingerprint = fingerprint(pcm, RATE)
        return matches(
            self.index, found, lambda: at_rate(pcm, RATE), self.audio.__getitem__, least=CORRELATION
        )


def recall(clips: Sequence[Pcm], known: Known) -> Iterator[dict[str, Any]]:
    """For every change: the share found, of all and of those of a second and more; wrong pairs."""
    long = np.array([len(pcm) >= RATE for pcm in clips])
    for name, change in CHANGES.items():
        right, wrong = np.zeros(len(clips), bool), 0
        for number, pcm in enumerate(tqdm(clips, desc=name, delay=2.0, leave=False)):
            found = {match.clip for match in known.find(change(pcm))}
            right[number] = number in found
            wrong += len(found - {number})
        yield {
            "change": name,
            "recall": right.mean(),
            "recall_from_1s": right[long].mean(),
            "wrong": wrong,
        }


def recorded(source: Source) -> list[tuple[str, int]]:
    """Ids and positions of what was not rendered."""
    return [
        (example["id"], position)
        for position, example in enumerate(source.metadata())
        if ".sf2#" not in example["id"]
    ]


def main(argv: Sequence[str]) -> None:
    """Prints both."""
    (directory,) = argv
    test = open_source(directory, "test")
    ids = recorded(test)
    clips = [test[position]["audio"] for _, position in ids]
    known = Known(clips)
    long = sum(len(pcm) >= RATE for pcm in clips)
    print(f"{len(clips)} clips, {long} of a second and more")
    print("| change | found | of 1 s and more | wrong pairs |\n|---|---|---|---|")
    for row in recall(clips, known):
        print(
            f"| {row['change']} | {row['recall']:.1%} | {row['recall_from_1s']:.1%} |"
            f" {row['wrong']} |",
            flush=True,
        )
    train = open_source(directory, "train")
    others = recorded(train)
    pairs = 0
    for name, position in tqdm(others, desc="precision", delay=2.0):
        for match in known.find(train[position]["audio"]):
            pairs += 1
            print(f"{match.correlation:.3f} {match.seconds:.2f} s: {name} = {ids[match.clip][0]}")
    print(f"{pairs} pairs among {len(others)} x {len(clips)}")


if __name__ == "__main__":
    main(sys.argv[1:])
