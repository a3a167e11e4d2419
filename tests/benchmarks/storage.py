"""Storage formats of audio compared: size, clips a second into a batch, and what is lost.

    python -m tests.benchmarks.storage data/opensounds/default

Ten-second pieces of recorded clips at 16 kHz. Clips/s is CPU time of one process from stored bytes
to what the model's front end takes: PCM for all but the last, which is the front end's output
itself. Loss is the mean difference of the log-mel of the quickstart's front end (natural log,
before normalisation), to that of the PCM.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import soundfile

from alm_jax.audio.frontend import FLAVOURS
from alm_jax.inspect import log_mels
from input_pipeline.audio_files import to_int16
from input_pipeline.sources import open_source

CLIPS, SECONDS, RATE = 40, 10, 16000
Pcm = np.ndarray


def pieces(directory: str) -> list[Pcm]:
    """Recorded clips one after the other, cut into ten seconds each."""
    source = open_source(directory, "test")
    joined = np.concatenate([e["audio"] for e in source if ".sf2#" not in e["id"]])
    size = SECONDS * RATE
    return [joined[i * size :][:size] for i in range(min(CLIPS, len(joined) // size))]


def encoded(container: str, encoding: str, level: float | None = None) -> Callable[[Pcm], bytes]:
    def encode(pcm: Pcm) -> bytes:
        file = io.BytesIO()
        options = {} if level is None else {"compression_level": level}
        soundfile.write(file, pcm, RATE, format=container, subtype=encoding, **options)
        return file.getvalue()

    return encode


def decode(data: bytes) -> Pcm:
    return to_int16(soundfile.read(io.BytesIO(data), dtype="float32")[0])


def speed(stored: Sequence[bytes], load: Callable[[bytes], np.ndarray], shape: tuple) -> float:
    """Clips a second of CPU time into a batch, the better of two passes."""
    batch = np.zeros(shape, load(stored[0]).dtype)
    best = np.inf
    for _ in range(2):
        start = time.process_time()
        for row, data in enumerate(stored):
            loaded = load(data)
            size = min(len(loaded), shape[1])
            batch[row % shape[0], :size] = loaded[:size]
        best = min(best, time.process_time() - start)
    return len(stored) / best


def main(argv: Sequence[str]) -> None:
    """Prints a table."""
    (directory,) = argv
    clips = pieces(directory)
    cfg = FLAVOURS["cacophony"]
    truth = list(log_mels(clips, cfg))
    shape = (32, SECONDS * RATE)
    formats: dict[str, tuple[Callable[[Pcm], bytes], Callable[[bytes], np.ndarray]]] = {
        "int16 PCM": (lambda pcm: pcm.tobytes(), lambda data: np.frombuffer(data, np.int16)),
        "FLAC": (encoded("FLAC", "PCM_16"), decode),
        "Vorbis": (encoded("OGG", "VORBIS"), decode),
        "Opus": (encoded("OGG", "OPUS"), decode),
        "Opus, low": (encoded("OGG", "OPUS", 0.85), decode),
        "MP3": (encoded("MP3", "MPEG_LAYER_III"), decode),
    }
    print(f"{len(clips)} clips of {SECONDS} s at {RATE} Hz")
    print("| format | bytes a clip | of PCM | clips/s a core | log-mel difference |")
    print("|---|---|---|---|---|")
    for name, (encode, load) in formats.items():
        stored = [encode(pcm) for pcm in clips]
        mels = log_mels([load(data) for data in stored], cfg)
        loss = np.mean(
            [np.abs(m[: len(t)] - t[: len(m)]).mean() for m, t in zip(mels, truth, strict=True)]
        )
        row(name, stored, speed(stored, load, shape), float(loss))
    frames, bins = truth[0].shape
    for kind in (np.float32, np.float16):
        stored = [mel.astype(kind).tobytes() for mel in truth]
        loss = np.mean([np.abs(m.astype(kind).astype(np.float32) - m).mean() for m in truth])
        rate = speed(
            stored,
            lambda data, kind=kind: np.frombuffer(data, kind).reshape(-1, bins),
            (32, frames, bins),
        )
        row(f"log-mel, {kind.__name__}", stored, rate, float(loss))


def row(name: str, stored: Sequence[bytes], rate: float, loss: float) -> None:
    size = float(np.mean([len(data) for data in stored]))
    share = size / (2 * SECONDS * RATE)
    print(f"| {name} | {size:,.0f} | {share:.0%} | {rate:,.0f} | {loss:.3f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
