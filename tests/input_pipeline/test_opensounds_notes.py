"""Rendered soundfont notes, against TinySoundFont and against physics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from input_pipeline.opensounds import fetch, index, notes, soundfont
from input_pipeline.opensounds.notes import Note

RATE = 16000
GOLDEN = Path(__file__).parents[1] / "golden/tinysoundfont_notes.npz"
EDGES = np.array([0, 2, 4, 6, 8, 11, 14, 18, 23, 29, 37, 47, 60, 77, 98, 125, 160, 200])
FLUTE, ORGAN, PIANO, WHISTLE = 73, 19, 0, 78


@pytest.fixture(scope="module")
def font(tiny_packages: Path) -> soundfont.SoundFont:
    archive = fetch.find_package(tiny_packages, index.PACKAGES["pretty_midi"])
    assert archive is not None
    return soundfont.load(archive, "pretty_midi/TimGM6mb.sf2")


def _bands(audio: np.ndarray) -> np.ndarray:
    """Energy in dB below the peak, [62 frames, 18 bands], floor -60."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, 512)[::512] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    decibels = 10 * np.log10(np.add.reduceat(power, EDGES, axis=1) + 1e-9)
    return np.maximum(decibels - decibels.max(), -60)


def test_notes_sound_like_a_synthesiser_s(font: soundfont.SoundFont) -> None:
    """Instruments must keep their timbre and decay.

    The golden holds 30 instruments rendered by TinySoundFont 0.3.7 (an independent C synthesiser):
    1.5 s held, 0.5 s released, both channels averaged, 44.1 kHz resampled to 16 kHz, then `_bands`
    rounded to whole dB.
    """
    golden = np.load(GOLDEN)
    for path, expected in zip(golden["path"], golden["bands"], strict=True):
        bands = _bands(notes.render(font, notes.parse_note(str(path))))
        assert np.corrcoef(bands.ravel(), expected.ravel())[0, 1] > 0.92, path
        assert np.abs(bands - expected).mean() < 3.0, path


@pytest.mark.parametrize("key", [57, 69, 81])
def test_pitch(font: soundfont.SoundFont, key: int) -> None:
    """A caption that says A4 must hear 440 Hz."""
    audio = notes.render(font, Note(0, ORGAN, key, 100))[RATE // 4 : RATE]
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio)), 1 << 17))
    frequency = 440 * 2 ** ((key - 69) / 12)
    bins = np.fft.rfftfreq(1 << 17, 1 / RATE)
    near = (bins > frequency * 0.94) & (bins < frequency * 1.06)
    assert bins[near][spectrum[near].argmax()] == pytest.approx(frequency, rel=0.006)


def test_envelope_and_velocity(font: soundfont.SoundFont) -> None:
    """Notes must be held, then die away; harder strokes are louder; none clips."""

    def level(audio: np.ndarray, start: float, end: float) -> float:
        return float(np.sqrt(np.mean(audio[int(start * RATE) : int(end * RATE)] ** 2)))

    flute = notes.render(font, Note(0, FLUTE, 69, 100))
    assert flute.dtype == np.float32 and flute.shape == (2 * RATE,)
    assert level(flute, 1.2, 1.5) > 0.5 * level(flute, 0.5, 0.8)
    assert level(flute, 1.95, 2.0) < 0.3 * level(flute, 1.2, 1.5)
    piano = notes.render(font, Note(0, PIANO, 60, 100))
    assert level(piano, 1.2, 1.5) < level(piano, 0.0, 0.3)
    assert level(notes.render(font, Note(0, FLUTE, 69, 40)), 0.5, 0.8) < 0.5 * level(
        flute, 0.5, 0.8
    )
    for program in (29, 62, 80, 87, 105, 107, 115):
        assert np.abs(notes.render(font, Note(0, program, 68, 115))).max() < 1.0


def test_what_a_font_does_not_have(font: soundfont.SoundFont, tmp_path: Path) -> None:
    """Another font, a damaged one or a mistyped note must say so."""
    with pytest.raises(soundfont.SoundFontError, match="bank 5, program 7"):
        notes.render(font, Note(5, 7, 60, 90))
    for data in (b"", b"RIFF\x10\x00\x00\x00sfbkLIST", b"not a soundfont" * 100):
        with pytest.raises(soundfont.SoundFontError, match="not a SoundFont 2 file"):
            soundfont.parse(data)
    assert notes.parse_note("a/b.sf2#bank=0,program=40,note=60,velocity=90") == Note(0, 40, 60, 90)
    for path in (
        "a.sf2",
        "a.sf2#bank=0,program=x,note=60,velocity=90",
        "a.sf2#bank=0,program=1,note=60",
    ):
        with pytest.raises(ValueError, match="a note is written"):
            notes.parse_note(path)
