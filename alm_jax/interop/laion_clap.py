"""LAION-CLAP's official checkpoints (.pt): HTSAT, fused or not, and RoBERTa.

What the released models do not compute with (AudioSet classifier, the MLPs of the four-way loss,
the second logit scale) is kept beside the model for the way back.
Source: LAION-AI/CLAP `clap_module/model.py`, `htsat.py`, `feature_fusion.py`.
"""

from __future__ import annotations

import math

import numpy as np
from ml_collections import ConfigDict

from alm_jax.audio.frontend import FLAVOURS
from alm_jax.audio.mel import mel_filter_bank
from alm_jax.errors import UserError
from alm_jax.interop.clap_text import text_links, text_sizes
from alm_jax.interop.htsat_links import (
    ANYTHING,
    OFFICIAL,
    htsat_links,
    htsat_sizes,
    moved_masks,
)
from alm_jax.interop.importing import Checkpoint, Format, shipped_config
from alm_jax.interop.links import Buffer, Links, table, torch_linear
from alm_jax.models.htsat import HtsatConfig

_AUDIO, _TEXT = "audio_branch.", "text_branch."
_UNUSED = (
    *(f"{_AUDIO}{name}.{leaf}" for name in ("tscam_conv", "head") for leaf in ("weight", "bias")),
    *(
        f"{side}_transform.sequential.{layer}.{leaf}"
        for side in ("audio", "text")
        for layer in (0, 3)
        for leaf in ("weight", "bias")
    ),
)


def _configure(checkpoint: Checkpoint) -> ConfigDict:
    if f"{_AUDIO}conv_block1.conv1.weight" in checkpoint.tensors:
        raise UserError(
            f"{checkpoint.path} has a PANN as its audio tower; only HTSAT can be imported"
        )
    fused = f"{_AUDIO}patch_embed.mel_conv2d.weight" in checkpoint.tensors
    config = shipped_config("laion_clap:fusion" if fused else "laion_clap")
    config.model.dtype = "float32"  # as the official code runs
    htsat_sizes(config.model.audio, checkpoint, _AUDIO, OFFICIAL)
    text_sizes(config, checkpoint, _TEXT)
    config.model.embed_dim = checkpoint.shape("audio_projection.2.weight")[0]
    return config


def _links(config: ConfigDict) -> Links:
    audio = HtsatConfig(**config.model.audio)
    links = htsat_links(_AUDIO, "audio", audio, OFFICIAL)
    links += text_links(_TEXT, config)
    for side in ("audio", "text"):
        links += torch_linear(f"{side}_projection.0", f"{side}_proj.up")
        links += torch_linear(f"{side}_projection.2", f"{side}_proj.down")
    links += table("logit_scale_a", "logit_scale")
    links.append(unused_scale())
    links += [Buffer(name) for name in _UNUSED]
    links.append(Buffer(f"{_TEXT}embeddings.position_ids", required=False))
    links += moved_masks(_AUDIO, audio)
    return links + _frontend()


def unused_scale() -> Buffer:
    """The second logit scale: no loss reads it, so that it stays at its first value."""
    first = np.asarray(math.log(1 / 0.07), np.float32)
    return Buffer("logit_scale_t", lambda: first, tolerance=ANYTHING)


def _frontend() -> Links:
    """The log-mel that lies inside the official model; the fused ones hold it too, unused."""
    flavour = FLAVOURS["laion_clap"]
    fft = flavour.fft_length

    def filters() -> np.ndarray:
        bank = mel_filter_bank(
            sample_rate=flavour.sample_rate,
            fft_length=fft,
            num_mels=flavour.num_mels,
            fmin=flavour.fmin,
            fmax=flavour.fmax,
            scale=flavour.mel_scale,
            shape=flavour.triangle,
            norm=flavour.filter_norm,
        )
        return bank.astype(np.float32)

    def transform(imaginary: bool) -> np.ndarray:
        angle = 2 * np.pi / fft * np.outer(np.arange(fft // 2 + 1), np.arange(fft))
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft) / fft)
        values = (-np.sin(angle) if imaginary else np.cos(angle)) * window
        return values[:, None].astype(np.float32)

    stft = f"{_AUDIO}spectrogram_extractor.stft"
    return [
        Buffer(f"{_AUDIO}logmel_extractor.melW", filters, tolerance=1e-5),
        Buffer(f"{stft}.conv_real.weight", lambda: transform(False), tolerance=1e-4),
        Buffer(f"{stft}.conv_imag.weight", lambda: transform(True), tolerance=1e-4),
    ]


FORMAT = Format(
    "laion_clap",
    "LAION-CLAP's .pt: HTSAT (fused or not) and RoBERTa",
    _configure,
    _links,
    wrapper=r"module\.",
)
