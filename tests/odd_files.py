"""Every kind of odd audio file, made from a real recording, and what becomes of it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from math import gcd
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

from input_pipeline.opensounds import archives, fetch, index

RATE = 22050
_LAVA = "usr/share/games/minetest/games/minetest_game/mods/env_sounds/sounds/env_sounds_lava.1.ogg"


def real_clip(packages: Path) -> np.ndarray:
    """Two seconds of lava from the tiny tier: float64 [S] at 22,050 Hz, peak 0.5."""
    archive = fetch.find_package(packages, index.PACKAGES["minetest-data"])
    assert archive is not None
    data, rate = soundfile.read(io.BytesIO(dict(archives.read_members(archive, [_LAVA]))[_LAVA]))
    assert rate == RATE
    return data[: 2 * rate] / np.abs(data[: 2 * rate]).max() * 0.5


def at_rate(clip: np.ndarray, rate: int) -> np.ndarray:
    """The clip at another rate in Hz, by a resampler that is not the project's."""
    common = gcd(rate, RATE)
    return resample_poly(clip, rate // common, RATE // common)


def _spoilt(clip: np.ndarray, value: float) -> np.ndarray:
    spoilt = clip.astype(np.float32)
    spoilt[len(spoilt) // 2] = value
    return spoilt


def _write(data: Callable[[np.ndarray], np.ndarray], rate: int, **options: str):
    return lambda path, clip: soundfile.write(path, data(clip), rate, **options)


# name -> how to make it. What can be used:
GOOD: dict[str, Callable[[Path, np.ndarray], object]] = {
    "plain.wav": _write(lambda c: c, RATE),
    "one_sample.wav": _write(lambda c: c[[np.abs(c).argmax()]], RATE),
    "ten_minutes.flac": _write(lambda c: np.tile(at_rate(c, 16000), 300), 16000),
    "5khz.wav": _write(lambda c: at_rate(c, 5000), 5000),
    "192khz.wav": _write(lambda c: at_rate(c, 192000), 192000, subtype="PCM_24"),
    "stereo.ogg": _write(lambda c: np.stack([c, -0.5 * c], 1), RATE),
    "8_channels.wav": _write(lambda c: np.repeat(c[:, None], 8, 1), RATE),
    "звук 音 é.wav": _write(lambda c: c, RATE),
}
# What is embedded and described, but of no use in a search:
SILENT = {"silent.wav": _write(lambda c: np.zeros(RATE), RATE)}
# What cannot be used, and the reason that must be named:
BAD: dict[str, tuple[str, Callable[[Path, np.ndarray], object]]] = {
    "text.wav": ("not_audio", lambda path, _: path.write_text("This is not audio. " * 50)),
    "empty.wav": ("empty", lambda path, _: path.touch()),
    "no_samples.wav": ("empty", _write(lambda c: c[:0], RATE)),
    "nan.wav": ("non_finite", _write(lambda c: _spoilt(c, np.nan), RATE, subtype="FLOAT")),
    "inf.wav": ("non_finite", _write(lambda c: _spoilt(c, np.inf), RATE, subtype="DOUBLE")),
    "dangling.wav": ("missing", lambda path, _: path.symlink_to("nowhere.wav")),
}


def _forbidden(path: Path, clip: np.ndarray) -> None:
    soundfile.write(path, clip, RATE)
    path.chmod(0)


if hasattr(os, "geteuid") and os.geteuid() != 0:  # root may read everything
    BAD["forbidden.wav"] = ("unreadable", _forbidden)


def make_all(folder: Path, clip: np.ndarray) -> None:
    """Writes a file of every kind into `folder`."""
    for name, make in {**GOOD, **SILENT}.items():
        make(folder / name, clip)
    for name, (_, make) in BAD.items():
        make(folder / name, clip)
