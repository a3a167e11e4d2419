"""Evaluation sets in exactly their published layouts, of real recordings, built by `prepare`."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from input_pipeline.sources import open_source
from tests.input_pipeline.own_data import prepare, write_sound, write_text

Sounds = list[np.ndarray]
WORDS = ("dog", "rain", "door_knock", "siren", "violin", "frog")


def six(dataset: Path) -> Sounds:
    """Six different recordings of 0.3 to 1 s of a prepared OpenSounds."""
    found: dict[bytes, np.ndarray] = {}
    for clip in open_source(dataset, "train"):
        if ".sf2#" not in clip["id"] and 4800 <= len(clip["audio"]) <= 16000:
            found.setdefault(clip["audio"].tobytes(), clip["audio"])
        if len(found) == 6:
            break
    return list(found.values())


def table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def clotho(root: Path, sounds: Sounds) -> None:
    """Six clips with five captions; clips 0 and 1 share one."""
    header = ["file_name", *(f"caption_{n}" for n in range(1, 6))]
    rows = []
    for number, sound in enumerate(sounds):
        word = WORDS[number % 6].replace("_", " ")
        captions = [f"{word} number {number}, described {n}" for n in range(5)]
        captions[4] = "a sound outside" if number < 2 else captions[4]
        rows.append([f"clip {number}.wav", *captions])
        write_sound(root / "clotho_audio_files" / "evaluation" / f"clip {number}.wav", sound)
    table(root / "clotho_captions_evaluation.csv", [header, *rows])


def audiocaps(root: Path, sounds: Sounds) -> None:
    rows: list[list[Any]] = [["audiocap_id", "youtube_id", "start_time", "caption"]]
    for number, sound in enumerate(sounds):
        video = f"video-{number:05d}"
        rows += [[9 * number + n, video, 30, f"{WORDS[number % 6]}, way {n}"] for n in range(5)]
        write_sound(root / "test" / f"{video}_30.wav", sound)
    table(root / "test.csv", rows)


def esc50(root: Path, sounds: Sounds) -> None:
    rows: list[list[Any]] = [
        ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    ]
    for number, sound in enumerate(sounds):
        fold, target = number % 2 + 1, number % 3
        name = f"{fold}-{number}-A-{target}.wav"
        rows.append([name, fold, target, WORDS[target], "True", number, "A"])
        write_sound(root / "audio" / name, sound)
    table(root / "meta" / "esc50.csv", rows)


def urbansound8k(root: Path, sounds: Sounds) -> None:
    rows: list[list[Any]] = [
        ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    ]
    for number, sound in enumerate(sounds):
        # Fold 1 has one clip, fold 2 all others: the two averages differ.
        fold, target = (1 if number == 0 else 2), number % 3
        name = f"{number}-{target}-0-0.wav"
        rows.append([name, number, 0.0, 1.0, 1, fold, target, WORDS[target]])
        write_sound(root / "audio" / f"fold{fold}" / name, sound)
    table(root / "metadata" / "UrbanSound8K.csv", rows)


def vggsound(root: Path, sounds: Sounds) -> None:
    rows = []
    for number, sound in enumerate(sounds):
        video = f"video-{number:05d}"
        rows.append([video, number, WORDS[number % 3].replace("_", " "), "test"])
        write_sound(root / "audio" / f"{video}_{number:06d}.wav", sound)
    table(root / "vggsound.csv", rows)


def fsd50k(root: Path, sounds: Sounds) -> None:
    """Evaluation clips have two labels; `Frog` is a class of the development set alone."""
    rows: list[list[Any]] = [["fname", "labels", "mids"]]
    for number, sound in enumerate(sounds[:-1]):
        labels = f"{WORDS[number % 3]},{WORDS[(number + 1) % 3]}"
        rows.append([1000 + number, labels, "/m/1,/m/2"])
        write_sound(root / "FSD50K.eval_audio" / f"{1000 + number}.wav", sound)
    table(root / "FSD50K.ground_truth" / "eval.csv", rows)
    table(
        root / "FSD50K.ground_truth" / "dev.csv",
        [["fname", "labels", "mids", "split"], [1, "frog", "/m/3", "train"]],
    )
    write_sound(root / "FSD50K.dev_audio" / "1.wav", sounds[-1])


def audioset(root: Path, sounds: Sounds) -> None:
    names = [["index", "mid", "display_name"]]
    names += [[n, f"/m/{n}", word] for n, word in enumerate(WORDS[:3])]
    table(root / "class_labels_indices.csv", names)
    lines = ["# Segments csv", "# num_ytids=6", "# YTID, start_seconds, end_seconds, labels"]
    for number, sound in enumerate(sounds):
        video = f"video-{number:05d}"
        lines.append(f'{video}, 30.000, 40.000, "/m/{number % 3},/m/{(number + 1) % 3}"')
        write_sound(root / "audio" / "eval_segments" / f"Y{video}.wav", sound)
    write_text(root / "eval_segments.csv", "\n".join(lines) + "\n")


def tut2017(root: Path, sounds: Sounds) -> None:
    folder = root / "TUT-acoustic-scenes-2017-evaluation"
    lines = []
    for number, sound in enumerate(sounds):
        lines.append(f"audio/{number}.wav\t{WORDS[number % 3]}")
        write_sound(folder / "audio" / f"{number}.wav", sound)
    write_text(folder / "meta.txt", "\n".join(lines) + "\n")


LAYOUTS: dict[str, Callable[[Path, Sounds], None]] = {
    make.__name__: make
    for make in (clotho, audiocaps, esc50, urbansound8k, vggsound, fsd50k, audioset, tut2017)
}


def build(layout: str, folder: Path, sounds: Sounds) -> Path:
    """The prepared dataset's version folder."""
    LAYOUTS[layout](folder / "corpus", sounds)
    return prepare(folder / "corpus", folder / layout, layout)


def compa(folder: Path, sounds: Sounds) -> Path:
    """CompA-order's table with the audio beside it: a group of three clips, then groups of two."""
    sides = ("pair", "reversed_pair", "triplet")
    rows = [[f"{side}_{what}" for what in ("caption", "file") for side in sides]]
    for number in range(0, len(sounds) - 2, 2):
        first = 0 if number == 0 else number + 1
        size = 3 if number == 0 else 2
        names = [f"{first + side}.wav" for side in range(size)]
        for side, name in enumerate(names):
            write_sound(folder / "CompA_order_files" / name, sounds[first + side])
        captions = [f"{WORDS[number]} {where}" for where in ("first", "last", "between")[:size]]
        absent = ["-"] * (3 - size)
        rows.append([*captions, *absent, *names, *absent])
    table(folder / "CompA_order_benchmark.csv", rows)
    return folder / "CompA_order_benchmark.csv"
