"""Clips a second into batches: the shipped loader against a PyTorch DataLoader with librosa."""

from __future__ import annotations

import os
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
from input_pipeline.loader import train_loader
from input_pipeline.sources import open_source
from input_pipeline.text import Tokenizer
from tests.benchmarks.measure import Row

RATE = 16_000
CLIPS = 512
SECONDS = 10


class Files(Dataset[Any]):
    """Files and captions as most PyTorch code reads them: librosa, a random crop, tokens."""

    def __init__(self, paths: list[Path], captions: list[str], tokenizer: Tokenizer, length: int):
        self.paths, self.captions, self.tokenizer, self.length = paths, captions, tokenizer, length

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        audio, _ = librosa.load(self.paths[index], sr=RATE, mono=True)
        start = torch.randint(max(1, len(audio) - SECONDS * RATE + 1), ()).item()
        audio = audio[start : start + SECONDS * RATE]
        audio = np.pad(audio, (0, SECONDS * RATE - len(audio)))
        tokens, _ = self.tokenizer.encode(self.captions[index], self.length)
        return torch.from_numpy(audio), torch.from_numpy(tokens)


def rows(repeats: int, data: str) -> Iterator[Row]:
    """One row for the dataset `data`, read whole clips of it from FLAC files in the other way."""
    config = load_config("quickstart", [f"data.dir={data}", f"data.max_seconds={SECONDS}"])
    config.data.batch_size = 64
    source = open_source(data, "train")
    captions = list(source.captions())
    tokenizer = Tokenizer.train(captions, 1000)
    cores = len(os.sched_getaffinity(0))
    config.data.read_threads = cores
    with tempfile.TemporaryDirectory() as folder:
        paths, texts = [], []
        for index in range(min(CLIPS, len(source))):
            example = source[index]
            paths.append(Path(folder) / f"{index}.flac")
            soundfile.write(paths[-1], example["audio"], RATE)
            texts.append(captions[index])
        other = DataLoader(
            Files(paths, texts, tokenizer, config.data.max_text_length),
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
        f"batches of 64 x {SECONDS} s with crops and tokens, {cores} cores",
        "clips/s",
        ("grain, int16 PCM in array_record", ours),
        ("PyTorch DataLoader, librosa, FLAC at the same rate", librosas),
        ours / librosas,
        "10",
        times={"grain": mine, "DataLoader": theirs},
    )
