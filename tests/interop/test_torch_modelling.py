"""The PyTorch front end and patches against JAX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from alm_jax.audio import mel
from alm_jax.audio.frontend import FLAVOURS, log_mel, num_frames, output_frames
from alm_jax.audio.patches import patchify
from alm_jax.interop.torch_modelling import front_end, patches

LENGTHS = (1, 399, 5000, 12345)
# 10 log10 of a power in float32, in dB.
TOLERANCE_DB = 2e-4


def noise(seed: int) -> np.ndarray:
    """float32 [B, S] noise of several lengths with a tone; random values in the padding."""
    rng = np.random.default_rng(seed)
    audio = 0.1 * rng.standard_normal((len(LENGTHS), max(LENGTHS)))
    audio += 0.3 * np.sin(np.arange(max(LENGTHS)) * 0.2)
    return np.clip(audio, -1, 1).astype(np.float32)


# The other flavours differ from these in numbers only.
@pytest.mark.parametrize(
    "flavour",
    ["cacophony", "kaldi_fbank", "laion_clap", "laion_clap_fusion", "msclap2023", "m2d", "whisper"],
)
def test_front_end_equals_jax(flavour):
    """The torch model would hear something else than the model that was trained."""
    cfg = FLAVOURS[flavour]
    if cfg.fixed_samples:
        cfg = dataclasses.replace(cfg, fixed_samples=8000)  # 30 s would only take time
    audio, lengths = noise(0), np.asarray(LENGTHS)
    wanted = np.asarray(jax.jit(lambda a, n: log_mel(a, cfg, length=n))(audio, lengths))
    frontend = front_end.LogMel(dataclasses.asdict(cfg))
    found = frontend(torch.from_numpy(audio), torch.from_numpy(lengths)).numpy()
    assert found.shape == wanted.shape == (4, output_frames(audio.shape[1], cfg), cfg.num_mels)
    counts = [num_frames(n, cfg) for n in LENGTHS]
    assert frontend.num_frames(torch.from_numpy(lengths)).tolist() == counts
    scale = 1.0 if cfg.log == "ln" else 10.0
    np.testing.assert_allclose(found, wanted, atol=scale * TOLERANCE_DB / 10, rtol=2e-6)


def test_quickstart_front_end_is_equal_to_the_last_bits():
    """Pure tones have bands 100 dB below the loudest: rounding there must be the same too."""
    seconds = np.arange(16000) / 16000
    tone = np.rint(16000 * np.sin(2 * np.pi * (50 * seconds + 2000 * seconds**2)))
    audio = (tone[None] / 32767).astype(np.float32)
    cfg = FLAVOURS["cacophony"]
    wanted = np.asarray(jax.jit(lambda a: log_mel(a, cfg))(audio))
    found = front_end.LogMel(dataclasses.asdict(cfg))(torch.from_numpy(audio)).numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("triangle", ["mel", "hz"])
@pytest.mark.parametrize("norm", [None, "slaney"])
def test_mel_filters_equal_jax(scale, triangle, norm):
    """Any config's filter bank goes out, not only the shipped flavours'."""
    fields = {"mel_scale": scale, "triangle": triangle, "filter_norm": norm}
    cfg = dataclasses.replace(FLAVOURS["cacophony"], fmin=30.0, fmax=9000.0, **fields)
    found = front_end.mel_filters(dataclasses.asdict(cfg))
    wanted = mel.mel_filter_bank(
        sample_rate=16000, fft_length=512, num_mels=128, fmin=30.0, fmax=9000.0,
        scale=scale, shape=triangle, norm=norm,
    )  # fmt: skip
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("tail", ["drop", "keep"])
@pytest.mark.parametrize("frames", [1, 4, 11, 12])
def test_patches_equal_jax(tail, frames):
    """Patches in another order, or another tail, would scramble every spectrogram."""
    rng = np.random.default_rng(1)
    spectrogram = rng.standard_normal((3, frames, 128)).astype(np.float32)
    counts = np.minimum([1, 7, 12], frames)
    cfg = FLAVOURS["kaldi_fbank"]
    silence = float(cfg.normalise(cfg.padding_log_value))
    cut = functools.partial(patchify, patch_time=4, patch_freq=16, tail=tail, silence=silence)
    wanted = jax.jit(cut)(spectrogram, jnp.asarray(counts))
    config = {"time": 4, "freq": 16, "tail": tail}
    spectrogram, counts = torch.from_numpy(spectrogram), torch.from_numpy(counts)
    found = patches.cut(spectrogram, counts, config, silence)
    for name in ("values", "time", "freq", "mask"):
        np.testing.assert_array_equal(
            getattr(found, name).numpy(), np.asarray(getattr(wanted, name)), err_msg=name
        )
