"""The numpy log-mel and statistics that the linear baseline listens with."""

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.evaluators.linear.clip_statistics import (
    MEL_BINS,
    clip_statistics,
    log_mel,
    statistics_of_clips,
)


def noise(seconds, seed=0, level=3000):
    return (level * np.random.default_rng(seed).normal(size=round(16000 * seconds))).astype(
        np.int16
    )


def test_log_mel_equals_a_direct_transform():
    """The baseline would hear something else than the sound."""
    audio = noise(0.05)
    padded = np.pad(audio / 32767, 200)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    angle = np.exp(-2j * np.pi * np.outer(np.arange(400), np.arange(257)) / 512)
    mel = 2595 * np.log10(1 + np.arange(257) * 16000 / 512 / 700)
    edges = 700 * (
        10 ** (np.linspace(*(2595 * np.log10(1 + f / 700) for f in (40, 8000)), 66) / 2595) - 1
    )
    expected = []
    for start in range(0, len(audio) + 1, 160):
        power = np.abs((padded[start : start + 400] * window) @ angle) ** 2
        bands = []
        for low, middle, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
            hertz = np.arange(257) * 16000 / 512
            triangle = np.interp(hertz, [low, middle, high], [0, 1, 0])
            bands.append(np.log(triangle @ power + 1e-6))
        expected.append(bands)
    assert mel[0] == 0
    np.testing.assert_allclose(log_mel(audio), expected, atol=2e-4)


@pytest.mark.parametrize("hertz", [300, 1000, 4000])
def test_a_tone_lies_in_its_band(hertz):
    """Pitch would be off for every note."""
    tone = np.sin(2 * np.pi * hertz * np.arange(8000) / 16000)
    mel_of = lambda f: 2595 * np.log10(1 + f / 700)  # noqa: E731
    expected = (mel_of(hertz) - mel_of(40)) / (mel_of(8000) - mel_of(40)) * (MEL_BINS + 1) - 1
    assert abs(log_mel(tone)[10:-10].mean(axis=0).argmax() - expected) <= 1


def test_int16_and_float_are_the_same_sound():
    """The scale of samples would depend on who calls."""
    audio = noise(0.3)
    np.testing.assert_allclose(log_mel(audio), log_mel(audio / np.float32(32767)), atol=1e-5)


@pytest.mark.parametrize("samples", [1, 159, 160, 400, 16000])
def test_short_clips_have_finite_statistics(samples):
    """One 6-sample file (the corpora have them) would stop the baseline or fill it with NaN."""
    for clip in (noise(1)[:samples], np.zeros(samples, np.int16)):
        mel = log_mel(clip)
        assert mel.shape == (1 + samples // 160, MEL_BINS)
        row = clip_statistics(mel)
        assert row.shape == (11 * MEL_BINS + 256,)
        assert np.isfinite(row).all()


def test_statistics_are_what_they_are_called():
    """The documented layout would be wrong."""
    mel = log_mel(noise(0.7))
    row = clip_statistics(mel)
    np.testing.assert_allclose(row[:64], mel.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(row[64:128], mel.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(row[192:256], np.median(mel, axis=0), atol=0.05)
    assert row[-6:-4] == pytest.approx([np.log(len(mel)), len(mel) / 100])


def test_long_clips_are_cut_and_bad_ones_refused():
    """Ten minutes of sound would cost a minute; NaN samples would poison the regression."""
    assert len(log_mel(noise(12), max_seconds=2.0)) == 201
    with pytest.raises(UserError, match="NaN"):
        log_mel(np.array([0.0, np.nan]))
    with pytest.raises(UserError, match="mono"):
        log_mel(np.zeros((2, 100)))
    with pytest.raises(UserError, match="S >= 1"):
        log_mel(np.zeros(0))
    with pytest.raises(UserError, match="no clips"):
        statistics_of_clips([])
