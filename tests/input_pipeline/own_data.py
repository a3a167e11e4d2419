"""Real clips to lay out as a corpus, and what `prepare --input` made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from input_pipeline.engines import Engine
from input_pipeline.examples import Settings
from input_pipeline.formats import Options
from input_pipeline.own_data import prepare_own
from input_pipeline.sources import open_source

RATE = 16000


def write_sound(path: Path, pcm: np.ndarray) -> Path:
    """Writes int16 PCM at 16 kHz in the format of the suffix; lossless for wav and flac."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, pcm, RATE)
    return path


def write_text(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def stored(pcm: np.ndarray) -> np.ndarray:
    """What a dataset must hold of 16-bit PCM: 1.0 is 32768 in a file and 32767 in a dataset."""
    return np.rint(pcm / np.float32(32768) * np.float32(32767)).astype(np.int16)


def prepare(root: Path, output: Path, layout: str = "", **changed: Any) -> Path:
    """`prepare_own` in this process; `changed` are its options' and settings' fields."""
    engine = changed.pop("engine", None)
    options = {name: changed.pop(name) for name in list(changed) if hasattr(Options(), name)}
    return prepare_own(
        root,
        output,
        layout=layout,
        options=Options(**options),
        settings=Settings(**changed),
        engine=engine or Engine(workers=0),
    )


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Examples by id, with their split, of all splits, as training reads them."""
    info = json.loads((folder / "dataset_info.json").read_text())
    found = {}
    for split in info["splits"]:
        for example in open_source(folder, split["name"]):
            assert example["id"] not in found
            found[example["id"]] = {**example, "split": split["name"]}
    return found


def rejected(folder: Path) -> dict[str, str]:
    """Reasons by id."""
    lines = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return {item["id"]: item["reason"] for item in map(json.loads, lines)}
