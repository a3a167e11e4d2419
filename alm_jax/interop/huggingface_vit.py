"""A Vision Transformer from Hugging Face as the audio tower of a model that is yet to be trained.

    alm import --format=vit --checkpoint=vit-base-patch16-224 --output=runs/vit

The picture is the spectrogram with time to the right and frequency downwards, the lowest band on
top, as AST has it. A patch has one channel instead of three, so the three are added: a grey picture
gives the states that it gave. The table of positions is resampled to the grid of patches, linearly
and with anti-aliasing. The class token and its position are kept.
Source: transformers `modeling_vit.py`; AST (arXiv 2104.01778) section 2.2.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.interop.huggingface_text import hf_activation, hf_number
from alm_jax.interop.importing import Checkpoint, Format, Tensor, shipped_config
from alm_jax.interop.links import (
    Link,
    Links,
    patch_kernel,
    reshape,
    slots,
    table,
    torch_linear,
    torch_norm,
)
from alm_jax.models.towers import patch_shape

_PATCHES = "embeddings.patch_embeddings.projection"
_POSITIONS = "embeddings.position_embeddings"


def _configure(checkpoint: Checkpoint) -> ConfigDict:
    config = shipped_config("audiomae")
    config.name = "vit"
    config.model.mae_decoder = None
    del config.objectives.reconstruction
    config.masking.ratio = 0.0
    config.model.dtype = "float32"
    audio = config.model.audio
    width, _, height, length = checkpoint.shape(f"{_PATCHES}.weight")
    config.patches.time, config.patches.freq = length, height
    audio.update(width=width, positions="table", class_token=True)
    audio.depth = checkpoint.count(r"encoder\.layer\.(\d+)\.")
    audio.heads = hf_number(checkpoint, "num_attention_heads", width, base=12)
    audio.mlp_dim = checkpoint.shape("encoder.layer.0.intermediate.dense.weight")[0]
    audio.activation = hf_activation(checkpoint)
    audio.eps = float(checkpoint.config.get("layer_norm_eps", 1e-12))
    return config


def _prepare(checkpoint: Checkpoint, config: ConfigDict) -> Checkpoint:
    """One channel instead of three; positions of the spectrogram's grid, not the picture's."""
    tensors = dict(checkpoint.tensors)
    width = config.model.audio.width
    patches = tensors[f"{_PATCHES}.weight"]
    kernel = (width, config.patches.time, config.patches.freq)

    def one_channel() -> np.ndarray:
        return np.asarray(patches.read(), np.float32).sum(axis=1).transpose(0, 2, 1)

    tensors[f"{_PATCHES}.weight"] = Tensor(kernel, np.dtype(np.float32), one_channel)
    _, rows, _ = checkpoint.shape(_POSITIONS)
    side = math.isqrt(rows - 1)
    if side * side != rows - 1:
        raise UserError(
            f"{checkpoint.path}: {rows} positions are not a class token's and those of a square "
            "picture, so their places are not known"
        )
    shape = patch_shape(config, int(config.frontend.num_mels))
    positions = tensors[_POSITIONS]

    def resampled() -> np.ndarray:
        found = np.asarray(positions.read(), np.float32)[0]
        grid = found[1:].reshape(side, side, width)  # frequency, time
        wanted = (shape.freq_rows, shape.columns, width)
        grid = np.asarray(jax.image.resize(grid, wanted, "linear"))
        return np.concatenate([found[:1], grid.transpose(1, 0, 2).reshape(-1, width)])

    total = (1 + shape.columns * shape.freq_rows, width)
    tensors[_POSITIONS] = Tensor(total, np.dtype(np.float32), resampled)
    return dataclasses.replace(checkpoint, tensors=tensors)


def _links(config: ConfigDict) -> Links:
    audio = config.model.audio
    width = audio.width
    change = patch_kernel(width, config.patches.time, config.patches.freq)
    token = reshape((1, 1, width), (width,))
    links: Links = [
        Link("embeddings.cls_token", slots("audio.class_token"), token),
        Link(f"{_PATCHES}.weight", slots("audio.embed.kernel"), change),
        *table(f"{_PATCHES}.bias", "audio.embed.bias"),
        *table(_POSITIONS, "audio.positions.table"),
        *torch_norm("layernorm", "audio.norm"),
    ]
    here = "audio.transformer.blocks"
    for layer in range(audio.depth):
        there = f"encoder.layer.{layer}"
        for name in ("query", "key", "value"):
            source = f"{there}.attention.attention.{name}"
            links += torch_linear(source, f"{here}.attention.{name}", layer=layer)
        links += torch_linear(
            f"{there}.attention.output.dense", f"{here}.attention.out", layer=layer
        )
        links += torch_norm(f"{there}.layernorm_before", f"{here}.attention_norm", layer)
        links += torch_linear(f"{there}.intermediate.dense", f"{here}.mlp.up", layer=layer)
        links += torch_linear(f"{there}.output.dense", f"{here}.mlp.down", layer=layer)
        links += torch_norm(f"{there}.layernorm_after", f"{here}.mlp_norm", layer)
    return links


FORMAT = Format(
    "vit",
    "audio tower from a Hugging Face ViT folder, for init_from",
    _configure,
    _links,
    writable=False,
    wrapper=r"vit\.",
    ignored=r"(classifier|pooler|decoder)\..*|embeddings\.mask_token",
    choices=("patches.frames", "patches.tail", "frontend."),
    prepare=_prepare,
)
