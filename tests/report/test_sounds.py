"""Sounds inside the page."""

import base64
import io

import numpy as np
import soundfile

from alm_jax.report.sounds import data_uri

RATE = 16000


def _decoded(uri: str) -> tuple[np.ndarray, int]:
    head, _, body = uri.partition(",")
    assert head.startswith("data:audio/") and head.endswith(";base64")
    return soundfile.read(io.BytesIO(base64.b64decode(body)))


def test_a_player_plays_the_clip() -> None:
    """The report's players would play noise, at a wrong speed, or nothing."""
    time = np.arange(2 * RATE) / RATE
    tone = (12000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    audio, rate = _decoded(data_uri(tone, RATE))
    assert rate == RATE
    assert abs(len(audio) / rate - 2.0) < 0.15  # MP3 adds some padding
    spectrum = np.abs(np.fft.rfft(audio))
    assert abs(np.argmax(spectrum) * rate / len(audio) - 440) < 2
    assert 0.2 < np.abs(audio[RATE // 2 : RATE]).max() < 0.5


def test_very_short_and_long_clips() -> None:
    """One sample would crash the encoder; a 10-minute clip would make a page of 100 MB."""
    audio, _ = _decoded(data_uri(np.array([1000], np.int16), RATE))
    assert len(audio) == 1
    audio, rate = _decoded(data_uri(np.ones(60 * RATE, np.int16), RATE, max_seconds=3))
    assert len(audio) / rate < 3.2
