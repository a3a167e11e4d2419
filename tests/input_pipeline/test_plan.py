"""How the rows of a source become parts and clips: whatever its order, size and length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alm_jax import cli
from input_pipeline import plan, prepare
from input_pipeline.cleaning import Limits
from tests.input_pipeline.own_data import (
    RATE,
    read,
    rejected,
    stored,
    write_sound,
    write_text,
)
from tests.input_pipeline.own_data import prepare as build

Sounds = list[np.ndarray]


def test_rows_of_a_clip_meet(
    sounds: Sounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table sorted by caption, not by clip, must not lose captions where it exceeds memory."""
    monkeypatch.setattr(plan, "_ROWS_PER_PART", 2)
    monkeypatch.setattr(plan, "_WAITING", 4)
    monkeypatch.setattr(plan, "_ROWS_AT_A_TIME", 3)
    names = [f"{number:02d}.wav" for number in range(6)]
    for name, pcm in zip(names, sounds, strict=False):
        write_sound(tmp_path / "in" / name, pcm)
    lines = [f"{name},{k} of {name}" for k in range(3) for name in [*names, "gone.wav"]]
    write_text(tmp_path / "in/captions.csv", "\n".join(["file,caption", *lines]))
    limits = Limits(max_rejected=0.5)
    folder = build(tmp_path / "in", tmp_path / "out", split="train", limits=limits)
    found = read(folder)
    assert list(found) == names and rejected(folder) == {"gone.wav": "missing"}
    for name in names:
        assert found[name]["text"] == tuple(f"{k} of {name}" for k in range(3))
    assert json.loads((folder / "prepare_report.json").read_text())["rows"] == 7
    assert len(list(folder.glob("*.array_record*"))) == 3


def test_parts_follow_rows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of hour-long files would be days of work that a stopped build loses."""
    monkeypatch.setattr(plan, "_ROWS_PER_PART", 3)
    monkeypatch.setattr(plan, "_BYTES_PER_PART", 100)
    ids = np.array([7, 3, 7, 9, 1, 2, 4, 8], np.uint64)
    sizes = np.array([10, 120, 10, -1, 5, 5, 5, 5])
    part, first = plan._deal(ids, sizes)
    assert part.tolist() == [0, 0, 0, -1, 1, 2, 2, 2]
    assert first.tolist() == [True, True, False, *[True] * 5]
    monkeypatch.setattr(plan, "_MOST_PARTS", 1)
    assert plan._deal(np.arange(9, dtype=np.uint64), np.zeros(9, int))[0].tolist() == [0] * 9


def test_long_recordings_become_clips(sounds: Sounds, tmp_path: Path) -> None:
    """A day in the forest is a thousand clips; none of it may be lost, or lie on two sides."""
    whole = np.concatenate(sounds)[: 5 * RATE + RATE // 2]
    write_sound(tmp_path / "in/long.flac", whole)
    write_sound(tmp_path / "in/short.flac", sounds[0])
    write_text(
        tmp_path / "in/t.csv",
        "file,caption,start,end\nlong.flac,a,,\nshort.flac,b,,\nlong.flac,c,1.5,2.75\n",
    )
    arguments = ["--validation=0.4", "--test=0.4", "--segment-seconds=1", "--min-seconds=0.3"]
    base = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--workers=0"]
    assert cli.run(prepare.main, [*base, *arguments]) == 0
    found = read(tmp_path / "out/1.0.0")
    pieces = [f"long.flac#{second}-{second + 1}" for second in range(5)]
    pieces.append("long.flac#5-5.5")
    # The rest of the second span, a quarter of a second, is too short for a clip.
    assert set(found) == {*pieces, "short.flac", "long.flac#1.5-2.75#1.5-2.5"}
    joined = np.concatenate([found[name]["audio"] for name in pieces])
    assert np.array_equal(joined, stored(whole))
    assert {found[name]["split"] for name in pieces} == {found[pieces[0]]["split"]}
    assert {found[name]["text"] for name in pieces} == {("a",)}
    assert not rejected(tmp_path / "out/1.0.0")
    arguments[2] = "--segment-seconds=1000"
    assert cli.run(prepare.main, [*base, *arguments]) == 2


def test_link_to_nowhere(sounds: Sounds, tmp_path: Path) -> None:
    """One moved file must cost one clip, not the build."""
    for number in range(3):
        write_sound(tmp_path / f"in/{number}.wav", sounds[number])
    (tmp_path / "in/3.wav").symlink_to(tmp_path / "gone.wav")
    limits = Limits(max_rejected=0.5, needs_caption=False)
    folder = build(tmp_path / "in", tmp_path / "out", "audio", limits=limits, split="train")
    assert rejected(folder) == {"3.wav": "missing"} and len(read(folder)) == 3
