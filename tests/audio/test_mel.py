"""Mel filter banks against the official matrices and against their definition."""

import pathlib

import numpy as np
import pytest

from alm_jax.audio.frontend_config import FLAVOURS
from alm_jax.audio.mel import hz_to_mel, mel_filter_bank, mel_to_hz

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "frontend.npz")


def bank(name: str) -> np.ndarray:
    cfg = FLAVOURS[name]
    return mel_filter_bank(
        sample_rate=cfg.filter_sample_rate or cfg.sample_rate,
        fft_length=cfg.fft_length,
        num_mels=cfg.num_mels,
        fmin=cfg.fmin,
        fmax=cfg.fmax,
        scale=cfg.mel_scale,
        shape=cfg.triangle,
        norm=cfg.filter_norm,
    )


@pytest.mark.parametrize(
    "name",
    [
        "cacophony",
        "kaldi_fbank",
        "laion_clap",
        "laion_clap_fusion",
        "msclap2022",
        "msclap2023",
        "panns",
        "m2d",
        "m2d_32k",
    ],
)
def test_equals_the_official_filters(name: str):
    """If this fails, imported checkpoints see energies in the wrong bands."""
    golden = GOLDEN[f"{name}/filters"]
    ours = bank(name)
    # Kaldi stores no Nyquist column. TensorFlow and Kaldi build the triangles in float32.
    assert np.abs(ours[: len(golden)] - golden).max() < 2e-5 * golden.max()
    assert not ours[len(golden) :].any()


def test_audiomae_has_one_band_without_a_bin():
    """If this fails, the fourth mel band of AudioMAE is not the constant it was trained on."""
    np.testing.assert_array_equal(np.flatnonzero(~bank("kaldi_fbank").any(axis=0)), [3])


@pytest.mark.parametrize("scale", ["htk", "slaney"])
def test_scales_are_inverse_and_increasing(scale):
    """If this fails, triangle corners land on the wrong frequencies."""
    hz = np.linspace(0, 24000, 997)
    mels = hz_to_mel(hz, scale)
    assert (np.diff(mels) > 0).all()
    np.testing.assert_allclose(mel_to_hz(mels, scale), hz, rtol=1e-12, atol=1e-9)


def test_scales_at_known_points():
    """If this fails, the two mel scales have been confused."""
    assert hz_to_mel(1000.0, "slaney") == pytest.approx(15.0)
    assert hz_to_mel(6400.0, "slaney") == pytest.approx(42.0)
    assert hz_to_mel(1000.0, "htk") == pytest.approx(1000.0, abs=0.02)
    assert mel_to_hz(3.0, "slaney") == pytest.approx(200.0)


def test_slaney_norm_gives_unit_area():
    """If this fails, wide (high) bands are louder than the checkpoints expect."""
    fft_length = 1 << 16
    weights = mel_filter_bank(
        sample_rate=32000,
        fft_length=fft_length,
        num_mels=40,
        fmin=50,
        fmax=14000,
        scale="slaney",
        shape="hz",
        norm="slaney",
    )
    np.testing.assert_allclose(weights.sum(axis=0) * 32000 / fft_length, 1.0, rtol=1e-3)


@pytest.mark.parametrize("shape", ["mel", "hz"])
def test_triangles_follow_their_definition(shape):
    """If this fails, triangles are straight on the wrong axis (TensorFlow against librosa)."""
    weights = mel_filter_bank(
        sample_rate=16000,
        fft_length=512,
        num_mels=20,
        fmin=100,
        fmax=7000,
        scale="htk",
        shape=shape,
        norm=None,
    )
    edges = np.linspace(1127 * np.log(1 + 100 / 700), 1127 * np.log(1 + 7000 / 700), 22)
    if shape == "hz":
        edges = 700 * (np.exp(edges / 1127) - 1)
    for k in range(1, 257):
        place = k * 31.25 if shape == "hz" else 1127 * np.log(1 + k * 31.25 / 700)
        for band in range(20):
            expected = np.interp(place, edges[band : band + 3], [0.0, 1.0, 0.0])
            assert weights[k, band] == pytest.approx(expected, abs=1e-9)


def test_bands_above_nyquist_are_empty():
    """If this fails, MusCALL's 11 kHz filter bank on 16 kHz audio cannot be built."""
    weights = mel_filter_bank(
        sample_rate=16000,
        fft_length=1024,
        num_mels=128,
        fmin=0,
        fmax=11025,
        scale="htk",
        shape="hz",
        norm=None,
    )
    centres = mel_to_hz(np.linspace(0, hz_to_mel(11025, "htk"), 130), "htk")
    assert not weights[:, centres[:-2] > 8000].any()
    assert weights[:, centres[2:] < 8000].any(axis=0).mean() > 0.9


def test_wrong_arguments_are_named():
    """If this fails, a typo in a config surfaces as a NaN loss."""
    good = {
        "sample_rate": 16000,
        "fft_length": 512,
        "num_mels": 8,
        "fmin": 0.0,
        "fmax": 8000.0,
        "scale": "htk",
        "shape": "mel",
        "norm": None,
    }
    for key, value in {"fmax": 0.0, "scale": "bark", "shape": "square", "norm": "area"}.items():
        with pytest.raises(ValueError, match=str(value)):
            mel_filter_bank(**{**good, key: value})
