"""LAION-CLAP's official checkpoints (.pt): HTSAT, fused or not, and RoBERTa.

What the released models do not compute with (AudioSet classifier, the MLPs of the four-way loss,
the second logit scale) is kept beside the model for the way back. A model that was trained here has
none of it, and the official code refuses a file without: zeros are written, and the second logit
scale at its first value. Embeddings do not depend on them; the official `forward` returns zeros as
its third and fourth output, and one half as the probability of each AudioSet class.
Source: LAION-AI/CLAP `clap_module/model.py`, `htsat.py`, `feature_fusion.py`.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from ml_collections import ConfigDict

from alm_jax.audio.frontend import FLAVOURS
from alm_jax.audio.mel import mel_filter_bank
from alm_jax.errors import UserError
from alm_jax.interop.clap_text import text_links, text_sizes
from alm_jax.interop.htsat_links import (
    OFFICIAL,
    htsat_links,
    htsat_sizes,
    moved_masks,
)
from alm_jax.interop.importing import Checkpoint, Format, shipped_config
from alm_jax.interop.links import ANYTHING, Buffer, Links, table, torch_linear
from alm_jax.models.htsat import HtsatConfig

_AUDIO, _TEXT = "audio_branch.", "text_branch."
_CLASSES = 527  # of AudioSet


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
    links += _unused(config)
    rows = config.model.max_positions
    # Until transformers 4.31 the official code asks for it, later versions leave it out.
    links.append(
        Buffer(f"{_TEXT}embeddings.position_ids", lambda: np.arange(rows, dtype=np.int64)[None])
    )
    links += moved_masks(_AUDIO, audio)
    return links + _frontend()


def _unused(config: ConfigDict) -> Links:
    """The AudioSet classifier, and the MLPs behind the embeddings: linear layers 0 and 3."""
    joint, audio = config.model.embed_dim, config.model.audio
    shrunk = 2 ** (len(audio.depths) - 1)
    folds = audio.picture // config.frontend.num_mels
    classifier = (_CLASSES, audio.dim * shrunk, audio.picture // audio.patch // shrunk // folds, 3)
    weights = {f"{_AUDIO}tscam_conv": classifier, f"{_AUDIO}head": (_CLASSES, _CLASSES)}
    for side in ("audio", "text"):
        for layer in (0, 3):
            weights[f"{side}_transform.sequential.{layer}"] = (joint, joint)
    links: Links = []
    for name, shape in weights.items():
        for leaf, size in (("weight", shape), ("bias", shape[:1])):
            zeros = functools.partial(np.zeros, size, np.float32)
            links.append(Buffer(f"{name}.{leaf}", zeros, tolerance=ANYTHING))
    return links


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
