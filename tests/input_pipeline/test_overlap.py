"""Recordings found again: fingerprints, `alm overlap`, `alm prepare --exclude`, near-duplicates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alm_jax import cli
from input_pipeline import overlap, prepare, similar
from input_pipeline.cleaning import Limits
from input_pipeline.fingerprint import HOP, RATE, fingerprint, same_recording
from input_pipeline.fingerprint_index import Index
from input_pipeline.origins import Origins, origin
from input_pipeline.sources import open_source
from tests.benchmarks.overlap import Known, codec, middle, recall, recorded
from tests.input_pipeline.own_data import prepare as build
from tests.input_pipeline.own_data import read, rejected, write_sound, write_text

Sounds = list[np.ndarray]


@pytest.fixture(scope="module")
def sounds(tiny_dataset: Path) -> Sounds:
    """Twelve different recordings of a second and more, int16 [S] at 16 kHz.

    Of 100 landmarks and more: a drum alone has a dozen and may be missed, see docs/data.md.
    """
    source = open_source(tiny_dataset, "train")
    clips = (source[position]["audio"] for _, position in recorded(source))
    found = {clip.tobytes(): clip for clip in clips if RATE <= len(clip) <= 3 * RATE}
    clear = [clip for clip in found.values() if len(fingerprint(clip, RATE).landmarks) >= 100]
    return clear[:12]


LENIENT = Limits(max_rejected=1.0)


def _corpus(root: Path, clips: dict[str, np.ndarray]) -> Path:
    for name, pcm in clips.items():
        write_sound(root / name, pcm)
    table = ["file,caption", *(f"{name},sound {name}" for name in clips)]
    write_text(root / "captions.csv", "\n".join(table))
    return root


def _changed(sounds: Sounds) -> dict[str, np.ndarray]:
    """Recordings 1, 2 and 3 as somebody else would publish them."""
    return {
        "ogg.wav": codec(sounds[1], "OGG", "VORBIS", 0.9),
        "cut.wav": np.pad(middle(sounds[2], 0.7) // 4, (3333, 0)),
        "same.wav": sounds[3],
    }


def test_recordings_are_found_whatever_was_done_to_them(sounds: Sounds) -> None:
    """A leak that is not found inflates every score; a false one costs training data."""
    known = Known(sounds)
    found = {row["change"]: row for row in recall(sounds, known)}
    assert sum(row["wrong"] for row in found.values()) == 0
    # Two that change the sound itself: a third of the samples cut off at full scale, and noise.
    for change in ("gain +12 dB, clipped", "white noise, 10 dB below"):
        assert found.pop(change)["recall"] > 0.75, change
    assert {change for change, row in found.items() if row["recall"] < 1} == set()
    assert len(found) == 10


def test_correlation_against_the_definition(sounds: Sounds) -> None:
    """The number shown to people must be the correlation coefficient, at the best shift."""
    one = sounds[0].astype(np.float32) / 32768
    noise = np.random.default_rng(0).normal(0, 0.02, len(one)).astype(np.float32)
    shift = 5 * HOP + 70
    other = -0.3 * (one + noise)[shift:]
    length = len(other)
    found, seconds = same_recording(one, other, 5)
    expected = [
        abs(np.dot(np.diff(one[at : at + length]), np.diff(other[: length - max(0, at - shift)])))
        / np.linalg.norm(np.diff(one[5 * HOP :][:length]))
        / np.linalg.norm(np.diff(other[:length]))
        for at in (shift,)
    ]
    # The FFT's result also holds the other band, which can only be higher.
    assert found >= expected[0] - 1e-4 and found < 1
    assert seconds == pytest.approx(length / RATE)
    assert same_recording(one, one, 0)[0] == pytest.approx(1, abs=1e-5)
    assert same_recording(one, np.zeros_like(one), 0)[0] == 0


def test_odd_clips_have_fingerprints() -> None:
    """One sample, silence or a pure tone must not end a run over a million clips."""
    for pcm in (
        np.zeros(1, np.int16),
        np.zeros(RATE, np.int16),
        np.full(3, 9, np.int16),
        np.rint(9000 * np.sin(np.arange(RATE) / 7)).astype(np.int16),
    ):
        found = fingerprint(pcm, RATE)
        assert len(found.landmarks) == len(found.frames)
        index = Index([found, fingerprint(np.zeros(9, np.int16), RATE)])
        assert len(index) == 2 and all(clip < 2 for clip, _ in index.candidates(found))
    assert Index([]).candidates(found) == []


def test_long_recordings_in_pieces(sounds: Sounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten minutes are taken piece by piece; a landmark across a seam must not be lost."""
    from input_pipeline import fingerprint as module

    whole = fingerprint(np.concatenate(sounds), RATE)
    monkeypatch.setattr(module, "_PIECE_FRAMES", 37)
    pieces = fingerprint(np.concatenate(sounds), RATE)
    assert np.array_equal(whole.landmarks, pieces.landmarks)
    assert np.array_equal(whole.frames, pieces.frames)


def test_verb(sounds: Sounds, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The documented command: what overlaps is named, and a script can act on the status."""
    train = {**_changed(sounds), "other.wav": sounds[0], "more.wav": sounds[4]}
    held_out = {f"{number}.wav": sounds[number] for number in (1, 2, 3, 5, 6)}
    for name, clips, split in (("train", train, "train"), ("eval", held_out, "test")):
        build(_corpus(tmp_path / f"{name}_in", clips), tmp_path / name, split=split)
    result = tmp_path / "o/overlap.json"
    words = [str(tmp_path / "train"), str(tmp_path / "eval"), "--workers=0", f"--output={result}"]
    assert cli.main(["overlap", *words]) == 1
    said = capsys.readouterr().out
    assert "3 of 5 evaluation clips are in 3 of 5 training clips (2 by sound, 1 by pcm)" in said
    content = json.loads(result.read_text())
    pairs = {(pair["train"], pair["evaluation"], pair["by"]) for pair in content["pairs"]}
    expected = {("ogg.wav", "1.wav", "sound"), ("cut.wav", "2.wav", "sound")}
    assert pairs == {*expected, ("same.wav", "3.wav", "pcm")}
    assert all(pair["correlation"] > 0.65 for pair in content["pairs"])
    for line in ("cut.wav = 2.wav", f"written to {result}"):
        assert line in said
    # Both splits of one dataset, and two that have nothing in common.
    assert cli.main(["overlap", f"{tmp_path / 'eval'}:test", f"{tmp_path / 'eval'}:test"]) == 2
    assert "is on both sides" in capsys.readouterr().err
    build(_corpus(tmp_path / "far_in", {"x.wav": sounds[8]}), tmp_path / "far", split="train")
    assert overlap.main([str(tmp_path / "far"), str(tmp_path / "eval"), "--workers=0"]) == 0
    assert "0 of 5 evaluation clips are in 0 of 1 training" in capsys.readouterr().out


def test_exclude(sounds: Sounds, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What overlaps must leave the training set, and be named with its reason."""
    held_out = {f"{number}.wav": sounds[number] for number in (1, 2, 3)}
    build(_corpus(tmp_path / "eval_in", held_out), tmp_path / "eval", split="test")
    clips = {**_changed(sounds), "other.wav": sounds[0]}
    root = _corpus(tmp_path / "in", clips)
    words = [f"--input={root}", f"--output={tmp_path / 'out'}", "--split=train", "--workers=0"]
    words += [f"--exclude={tmp_path / 'eval'}"]
    # Three of four rows go, far above --max-rejected: they were asked to go.
    assert cli.run(prepare.main, words) == 0
    folder = tmp_path / "out/1.0.0"
    assert rejected(folder) == dict.fromkeys(_changed(sounds), "excluded")
    assert list(read(folder)) == ["other.wav"]
    lines = (folder / "rejected.jsonl").read_text().splitlines()
    details = {item["id"]: item["detail"] for item in map(json.loads, lines)}
    assert details["same.wav"] == f"by pcm the recording 3.wav of {tmp_path / 'eval'}"
    assert details["ogg.wav"].startswith(f"by sound the recording 1.wav of {tmp_path / 'eval'}, 0.")
    capsys.readouterr()
    assert cli.run(prepare.main, words) == 0 and "is ready" in capsys.readouterr().out
    assert cli.run(prepare.main, words[:-1]) == 2  # without excluding it is another dataset
    assert "made from other input or with other settings" in capsys.readouterr().err
    assert cli.run(prepare.main, [*words[:-1], f"--exclude={tmp_path / 'no'}"]) == 2
    assert f"there is no dataset folder {tmp_path / 'no'}" in capsys.readouterr().err


def test_near_duplicates(sounds: Sounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One upload in two encodings is one recording; the held-out copy stays, blocks or not."""
    from input_pipeline import plan

    monkeypatch.setattr(plan, "_ROWS_PER_PART", 2)
    clips = {"0.wav": sounds[1], **_changed(sounds), "2.wav": sounds[2], "4.wav": sounds[4]}
    root = _corpus(tmp_path / "in", clips)
    table = ["file,caption,split"]
    table += [f"{name},x,{'test' if name == 'ogg.wav' else 'train'}" for name in clips]
    write_text(root / "captions.csv", "\n".join(table))
    limits = Limits(max_rejected=0.5, keep_near_duplicates=False)
    folder = build(root, tmp_path / "out", limits=limits)
    expected = {"0.wav": "near_duplicate", "2.wav": "near_duplicate"}
    assert rejected(folder) == expected
    assert read(folder)["ogg.wav"]["split"] == "test"
    monkeypatch.setattr(similar, "_INDEXED", 1)  # a block of landmarks for every shard
    again = build(root, tmp_path / "blocks", limits=limits)
    assert rejected(again) == expected
    assert not rejected(build(root, tmp_path / "kept", limits=LENIENT))


def test_origins() -> None:
    """Known leaks between corpora are known by their ids, however each writes them."""

    def clip(clip_id: str, source: str) -> dict[str, str]:
        return {"id": clip_id, "source": source}

    known = Origins(
        origin(clip(*pair))
        for pair in (
            ("-0Gj8-vB1q4_30", "AudioCaps"),
            ("1-100032-A-0", "ESC-50"),
            ("100033-3-0-0", "UrbanSound8K"),
            ("100034", "FSD50K"),
            ("abcdefghijk", "MusicCaps"),
        )
    )
    for pair, found in (
        (("AudioSet_SL/Y-0Gj8-vB1q4", "AudioSet_SL"), [0]),
        (("-0Gj8-vB1q4_30", "AudioSet"), [0]),
        (("-0Gj8-vB1q4_40", "VGGSound"), []),  # another part of the video
        (("FreeSound/100032", "FreeSound"), [1]),
        (("FreeSound/100033", "FreeSound"), [2]),
        (("FreeSound/100034", "FreeSound"), [3]),
        (("100034", "ESC-50"), []),
        (("abcdefghijk_10", "AudioSet"), [4]),
        (("abcdefghijk", "my phone"), []),
        (("100034", ""), []),  # a number in somebody's table is no upload
    ):
        assert known.find(origin(clip(*pair))) == found, pair
