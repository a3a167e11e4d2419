"""AudioMAE's official checkpoints: pretrained (`MaskedAutoencoderViT`) and fine-tuned.

Both are .pth files with the tensors under the key "model"; the arguments of the training run, if
they lie beside it, tell what no tensor's shape tells.
Source: facebookresearch/AudioMAE `models_mae.py`, `models_vit.py`, `util/patch_embed.py`,
`timm_patch/swin_transformer.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from ml_collections import ConfigDict, config_dict

from alm_jax.audio.frontend import LogMelConfig
from alm_jax.errors import UserError
from alm_jax.interop.importing import Checkpoint, Format, shipped_config
from alm_jax.interop.links import (
    Buffer,
    Link,
    Links,
    patch_kernel,
    reshape,
    slots,
    table,
    torch_linear,
    torch_norm,
)
from alm_jax.models.patch_positions import FIXED, PatchShape, fixed_table
from alm_jax.models.towers import patch_shape

# Widths of the published encoders -> heads, which no tensor's shape tells.
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
# Patches of the published grids -> frames and stride: AudioSet, ESC-50, SpeechCommands; the last
# three overlap. Other numbers of patches are taken as side by side.
_GRIDS = {
    512: (1024, 16),
    256: (512, 16),
    64: (128, 16),
    1212: (1024, 10),
    600: (512, 10),
    144: (128, 10),
}
_BANDS = 8  # rows of patches side by side: 128 mel bins


def _configure(checkpoint: Checkpoint) -> ConfigDict:
    pretrained = "decoder_embed.weight" in checkpoint.tensors
    config = shipped_config("audiomae" if pretrained else "audiomae:finetune")
    config.model.dtype = "float32"  # as the official code runs on a CPU
    width, _, patch_time, patch_freq = checkpoint.shape("patch_embed.proj.weight")
    _grid(config, checkpoint, patch_time, patch_freq)
    audio = config.model.audio
    _sizes(audio, checkpoint, "blocks", width)
    _heads(audio, _HEADS)
    audio.positions = _positions(checkpoint, "pos_embed", config)
    if not pretrained:
        config.model.classifier.classes = checkpoint.shape("head.weight")[0]
        return config
    swin = "decoder_blocks.0.attn.tau" in checkpoint.tensors
    if not swin:
        config.model.mae_decoder = shipped_config("audiomae:plain_decoder").model.mae_decoder
    decoder = config.model.mae_decoder
    _sizes(decoder, checkpoint, "decoder_blocks", checkpoint.shape("decoder_embed.weight")[0])
    decoder.positions = _positions(checkpoint, "decoder_pos_embed", config)
    if swin:
        decoder.heads = checkpoint.shape("decoder_blocks.0.attn.tau")[0]
        decoder.bias_hidden = checkpoint.shape("decoder_blocks.0.attn.meta_mlp.fc1.weight")[0]
        # Neither windows nor their shift are in the tensors. The official code has these two.
        if config.patches.time_stride:
            decoder.window = (6, 6)
        if checkpoint.config.get("no_shift"):
            decoder.shift = (0, 0)
    else:
        _heads(decoder, {512: 16})
    return config


def _grid(config: ConfigDict, checkpoint: Checkpoint, patch_time: int, patch_freq: int) -> None:
    count = checkpoint.shape("pos_embed")[1] - 1
    if count not in _GRIDS and count % _BANDS:
        raise UserError(
            f"{checkpoint.path}: pos_embed has places for {count} patches, which is no multiple of"
            f" {_BANDS} rows, and no published grid of overlapping patches {sorted(_GRIDS)}"
        )
    frames, stride = _GRIDS.get(count, (count // _BANDS * patch_time, patch_time))
    config.patches.update(time=patch_time, freq=patch_freq, frames=frames)
    if stride != patch_time:
        config.patches.update(time_stride=stride, freq_stride=stride)


def _sizes(part: ConfigDict, checkpoint: Checkpoint, blocks: str, width: int) -> None:
    part.width = width
    part.depth = checkpoint.count(rf"{blocks}\.(\d+)\.")
    part.mlp_dim = checkpoint.shape(f"{blocks}.0.mlp.fc1.weight")[0]


def _heads(part: ConfigDict, published: dict[int, int]) -> None:
    known = published.get(part.width)
    part.heads = config_dict.placeholder(int, required=True) if known is None else known


def _positions(checkpoint: Checkpoint, name: str, config: ConfigDict) -> str:
    """The fixed layout that a table of positions is, or "table"."""
    _, rows, width = checkpoint.shape(name)
    shape = _patch_shape(config)
    if rows != 1 + shape.columns * shape.freq_rows:
        raise UserError(
            f"{checkpoint.path}: {name} has {rows} rows, but a grid of {shape.columns} x"
            f" {shape.freq_rows} patches and the class token need"
            f" {1 + shape.columns * shape.freq_rows}"
        )
    found = np.asarray(checkpoint.tensors[name].read())[0]
    if width % 4 == 0:
        for kind in FIXED:
            if np.array_equal(found, fixed_table(kind, width, shape)):
                return kind
    return "table"


def _patch_shape(config: ConfigDict) -> PatchShape:
    return patch_shape(config, LogMelConfig(**config.frontend).num_mels)


def _links(config: ConfigDict) -> Links:
    model, shape = config.model, _patch_shape(config)
    width = model.audio.width
    patch = patch_kernel(width, 1, config.patches.time, config.patches.freq)
    links: Links = [
        _token("cls_token", "audio.class_token", width),
        Link("patch_embed.proj.weight", slots("audio.embed.kernel"), patch),
        *table("patch_embed.proj.bias", "audio.embed.bias"),
        _place("pos_embed", "audio", model.audio, shape),
        *_stack("blocks", "audio", model.audio),
    ]
    if model.mae_decoder is None:
        links += torch_norm("fc_norm", "classifier.norm")
        links += torch_linear("head", "classifier.predict")
        return links
    decoder = model.mae_decoder
    links += torch_norm("norm", "audio.norm")
    links += torch_linear("decoder_embed", "mae_decoder.embed")
    links += [_token("mask_token", "mae_decoder.mask_token", decoder.width)]
    links += [_place("decoder_pos_embed", "mae_decoder", decoder, shape)]
    links += _stack("decoder_blocks", "mae_decoder", decoder)
    links += torch_norm("decoder_norm", "mae_decoder.norm")
    links += torch_linear("decoder_pred", "mae_decoder.predict")
    return links


def _token(official: str, ours: str, width: int) -> Link:
    return Link(official, slots(ours), reshape((1, 1, width), (width,)))


def _place(official: str, part: str, size: ConfigDict, shape: PatchShape) -> Link | Buffer:
    """A table of positions: a parameter here, or a constant."""
    kind, width = size.positions, size.width
    if kind == "table":
        rows = (1 + shape.columns * shape.freq_rows, width)
        return Link(official, slots(f"{part}.positions.table"), reshape((1, *rows), rows))
    return Buffer(official, partial(_fixed, kind, width, shape))


def _fixed(kind: str, width: int, shape: PatchShape) -> np.ndarray:
    return fixed_table(kind, width, shape)[None]


def _stack(official: str, part: str, size: ConfigDict) -> Iterator[Link]:
    """Layers, one entry each there, stacked here; query, key and value are one matrix there."""
    here = f"{part}.transformer.blocks"
    attention = f"{here}.attention"
    qkv = [f"{attention}.{name}" for name in ("query", "key", "value")]
    for layer in range(size.depth):
        there = f"{official}.{layer}"
        yield from torch_norm(f"{there}.norm1", f"{here}.attention_norm", layer)
        yield from torch_linear(f"{there}.attn.qkv", *qkv, layer=layer)
        yield from torch_linear(f"{there}.attn.proj", f"{attention}.out", layer=layer)
        yield from torch_norm(f"{there}.norm2", f"{here}.mlp_norm", layer)
        yield from torch_linear(f"{there}.mlp.fc1", f"{here}.mlp.up", layer=layer)
        yield from torch_linear(f"{there}.mlp.fc2", f"{here}.mlp.down", layer=layer)
        if size.get("decoder") == "swin":
            yield from table(f"{there}.attn.tau", f"{attention}.tau", layer)
            network = f"{there}.attn.meta_mlp"
            yield from torch_linear(f"{network}.fc1", f"{attention}.bias_up", layer=layer)
            yield from torch_linear(f"{network}.fc2", f"{attention}.bias_down", layer=layer)


FORMAT = Format(
    "audiomae",
    "pretrained and fine-tuned .pth files of facebookresearch/AudioMAE",
    _configure,
    _links,
)
