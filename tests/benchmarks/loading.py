"""Clips a second into batches: the shipped loader against a PyTorch DataLoader with librosa."""

from __future__ import annotations

import contextlib
import csv
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import torch
from torch.utils.data import DataLoader, Dataset

from alm_jax.config import load_config
from input_pipeline.cleaning import Limits
from input_pipeline.examples import Settings
from input_pipeline.loader import train_loader
from input_pipeline.own_data import prepare_own
from input_pipeline.sources import open_source
from input_pipeline.text import Tokenizer
from tests.benchmarks.measure import Row

RATE = 16_000
CLIPS = 512
# Clips are this much longer than the crop that is taken of them.
LONGER = 1.2


class Files(Dataset[Any]):
    """Files and captions as most PyTorch code reads them: librosa, a random crop, tokens."""

    def __init__(
        self,
        paths: list[Path],
        captions: list[str],
        tokenizer: Tokenizer,
        text_length: int,
        samples: int,
    ):
        self.paths, self.captions, self.tokenizer = paths, captions, tokenizer
        self.text_length, self.samples = text_length, samples

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        audio, _ = librosa.load(self.paths[index], sr=RATE, mono=True)
        start = torch.randint(max(1, len(audio) - self.samples + 1), ()).item()
        audio = audio[start : start + self.samples]
        audio = np.pad(audio, (0, self.samples - len(audio)))
        tokens, _ = self.tokenizer.encode(self.captions[index], self.text_length)
        return torch.from_numpy(audio), torch.from_numpy(tokens)


def write_clips(data: str, folder: Path, seconds: float) -> tuple[list[Path], list[str]]:
    """Recorded clips one after the other, cut to a length: files, their table, and captions."""
    source = open_source(data, "train")
    size, kept = round(seconds * RATE), np.zeros(0, np.int16)
    paths: list[Path] = []
    texts: list[str] = []
    index = 0
    while len(paths) < CLIPS:
        audio, captions = source.audio_and_captions(index % len(source))
        kept, index = np.concatenate([kept, audio]), index + 1
        while len(kept) >= size and len(paths) < CLIPS:
            paths.append(folder / f"{len(paths)}.flac")
            soundfile.write(paths[-1], kept[:size], RATE)
            texts.append(captions[0])
            kept = kept[size:]
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        lines = zip((path.name for path in paths), texts, strict=True)
        csv.writer(file).writerows([("file", "caption"), *lines])
    return paths, texts


def rows(repeats: int, data: str, seconds: float) -> Iterator[Row]:
    """One row for clips of the dataset `data`, joined until they are long enough."""
    cores = len(os.sched_getaffinity(0))
    limits = Limits(keep_duplicates=True, silence_db=-999.0, max_clipped=1.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.redirect_stdout(sys.stderr):
            paths, texts = write_clips(data, folder, seconds * LONGER)
            settings = Settings(split="train", limits=limits)
            made = prepare_own(folder, folder / "made", settings=settings)
        config = load_config("quickstart", [f"data.dir={made}", f"data.max_seconds={seconds}"])
        config.data.batch_size = 64
        config.data.read_threads = cores
        tokenizer = Tokenizer.train(list(open_source(data, "train").captions()), 1000)
        other = DataLoader(
            Files(paths, texts, tokenizer, config.data.max_text_length, round(seconds * RATE)),
            batch_size=64,
            shuffle=True,
            num_workers=cores,
            drop_last=True,
        )
        mine: list[float] = []
        theirs: list[float] = []
        with train_loader(config.data, tokenizer, seed=0) as loader:
            next(loader)
            for _ in range(repeats):
                started = time.perf_counter()
                for _ in range(32):
                    next(loader)
                mine.append(32 * 64 / (time.perf_counter() - started))
                batches = iter(other)
                next(batches)  # its processes have started
                started, count = time.perf_counter(), 0
                for audio, _ in batches:
                    count += len(audio)
                theirs.append(count / (time.perf_counter() - started))
    ours, librosas = float(np.median(mine)), float(np.median(theirs))
    yield Row(
        "loading",
        f"batches of 64 x {seconds:g} s, cropped from {seconds * LONGER:g} s, with tokens,"
        f" {cores} cores",
        "clips/s",
        ("grain, int16 PCM in array_record", ours),
        ("PyTorch DataLoader, librosa, FLAC at the same rate", librosas),
        ours / librosas,
        "10",
        times={"grain": mine, "DataLoader": theirs},
    )
