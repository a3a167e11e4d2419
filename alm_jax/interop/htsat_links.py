"""Where the tensors of an official HTSAT go; the audio side of LAION-CLAP's and HF's checkpoints.

Source: HTS-AT `model/htsat.py`, LAION-CLAP `clap_module/htsat.py`, `feature_fusion.py`, Hugging
Face `modeling_clap.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.interop.importing import Checkpoint
from alm_jax.interop.links import (
    ANYTHING,
    SWAP,
    Buffer,
    Change,
    Link,
    Links,
    patch_kernel,
    slots,
    table,
    torch_linear,
    torch_norm,
)
from alm_jax.models.htsat import LOCAL_PATCH, HtsatConfig
from alm_jax.models.swin import relative_index
from alm_jax.models.windows import WindowGrid

# A convolution of 1 x 1 is a linear layer: [outputs, inputs, 1, 1] <-> [inputs, outputs].
_POINTWISE = Change(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
# Places of the layers in the official sequences: Dense, norm, Dense, norm. The branch that looks at
# the whole picture pools it first.
_SQUEEZE = {"local": ("local_att", (0, 1, 3, 4)), "whole": ("global_att", (1, 2, 4, 5))}


@dataclasses.dataclass(frozen=True)
class Names:
    """How a code base calls the parts of a block; `query_key_value` is one name or three."""

    input_norm: str
    norm1: str
    norm2: str
    attention: str
    query_key_value: tuple[str, ...]
    output: str
    up: str
    down: str


OFFICIAL = Names("bn0", "norm1", "norm2", "attn", ("attn.qkv",), "attn.proj", "mlp.fc1", "mlp.fc2")
HUGGING_FACE = Names(
    "batch_norm",
    "layernorm_before",
    "layernorm_after",
    "attention.self",
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)


def htsat_sizes(audio: ConfigDict, checkpoint: Checkpoint, prefix: str, names: Names) -> None:
    """Sets the fields of `model.audio` that the tensors tell: all but drop path and epsilon.

    Args:
      audio: `config.model.audio` of the tower "htsat".
      checkpoint: what holds the tensors.
      prefix: of their names, with its dot.
      names: how they are called.

    Raises:
      UserError: no HTSAT, or one of other patches.
    """
    audio.dim, _, rows, columns = checkpoint.shape(f"{prefix}patch_embed.proj.weight")
    if rows != columns:
        raise UserError(
            f"{checkpoint.path}: patches of {rows} x {columns}; only square ones can be imported"
        )
    audio.patch = rows
    start = prefix.replace(".", r"\.")
    depths, heads = [], []
    for stage in range(checkpoint.count(rf"{start}layers\.(\d+)\.")):
        layers = f"layers.{stage}.blocks"
        depths.append(checkpoint.count(rf"{start}layers\.{stage}\.blocks\.(\d+)\."))
        bias = f"{prefix}{layers}.0.{names.attention}.relative_position_bias_table"
        entries, per_stage = checkpoint.shape(bias)
        heads.append(per_stage)
        if stage == 0:
            audio.window = (math.isqrt(entries) + 1) // 2
            hidden, width = checkpoint.shape(f"{prefix}{layers}.0.{names.up}.weight")
            audio.mlp_ratio = hidden // width
    audio.depths, audio.heads = tuple(depths), tuple(heads)
    fused = f"{prefix}patch_embed.mel_conv2d.weight" in checkpoint.tensors
    audio.fusion = "aff_2d" if fused else "none"


def htsat_links(prefix: str, ours: str, config: HtsatConfig, names: Names) -> Links:
    """The table of an HTSAT without its classifier.

    Args:
      prefix: of the official names, with its dot.
      ours: name of the tower.
      config: its fields.
      names: how the official code calls its parts.
    """
    links: Links = []
    links += batch_norm(f"{prefix}{names.input_norm}", f"{ours}.input_norm")
    embed = f"{prefix}patch_embed"
    links += _patches(f"{embed}.proj", f"{ours}.embed", config.dim, config.patch, config.patch)
    links += torch_norm(f"{embed}.norm", f"{ours}.embed_norm")
    if config.fusion != "none":
        links += _patches(f"{embed}.mel_conv2d", f"{ours}.excerpt_embed", config.dim, *LOCAL_PATCH)
        for branch, (official, places) in _SQUEEZE.items():
            there, here = f"{embed}.fusion_model.{official}", f"{ours}.fusion.{branch}"
            for layer, place in zip(("down", "up"), places[::2], strict=True):
                links += [
                    Link(f"{there}.{place}.weight", slots(f"{here}.{layer}.kernel"), _POINTWISE)
                ]
                links += table(f"{there}.{place}.bias", f"{here}.{layer}.bias")
            for layer, place in zip(("down_norm", "up_norm"), places[1::2], strict=True):
                links += batch_norm(f"{there}.{place}", f"{here}.{layer}")
    side = config.picture // config.patch
    for stage, depth in enumerate(config.depths):
        window = min(config.window, side)
        for block in range(depth):
            there, here = f"{prefix}layers.{stage}.blocks.{block}", f"{ours}.stage{stage}.blocks"
            links += _block(there, here, block, window, names)
        if stage + 1 < len(config.depths):
            there, here = f"{prefix}layers.{stage}.downsample", f"{ours}.merge{stage}"
            links += [Link(f"{there}.reduction.weight", slots(f"{here}.reduce.kernel"), SWAP)]
            links += torch_norm(f"{there}.norm", f"{here}.norm")
            side //= 2
    links += torch_norm(f"{prefix}norm", f"{ours}.norm")
    return links


def moved_masks(prefix: str, config: HtsatConfig) -> Links:
    """The official code's constants of moved windows: what is added to their logits.

    Where one window spans the grid, none moves and the blocks have no such table.
    """
    links: Links = []
    side = config.picture // config.patch
    for stage, depth in enumerate(config.depths):
        if side > config.window:
            for block in range(1, depth, 2):
                name = f"{prefix}layers.{stage}.blocks.{block}.attn_mask"
                links.append(Buffer(name, functools.partial(_moved, side, config.window)))
        side //= 2
    return links


def _moved(side: int, window: int) -> np.ndarray:
    """[windows, K, K] of a square grid."""
    grid = WindowGrid(side, side, (window, window), (window // 2, window // 2))
    bias = grid.moved_bias  # [groups along the second axis, windows along the first, K, K]
    return bias.swapaxes(0, 1).reshape(-1, *bias.shape[2:])


def batch_norm(official: str, ours: str) -> Iterator[Link | Buffer]:
    """A PyTorch BatchNorm; its counter of batches decides nothing."""
    yield from torch_norm(official, ours)
    yield Link(f"{official}.running_mean", slots(f"{ours}.mean"))
    yield Link(f"{official}.running_var", slots(f"{ours}.var"))
    yield Buffer(
        f"{official}.num_batches_tracked", lambda: np.zeros((), np.int64), tolerance=ANYTHING
    )


def _patches(official: str, ours: str, width: int, rows: int, columns: int) -> Iterator[Link]:
    """A convolution over patches of a picture of one channel."""
    kernel = patch_kernel(width, 1, rows, columns)
    yield Link(f"{official}.weight", slots(f"{ours}.kernel"), kernel)
    yield from table(f"{official}.bias", f"{ours}.bias")


def _block(there: str, here: str, block: int, window: int, names: Names) -> Iterator[Link | Buffer]:
    yield from torch_norm(f"{there}.{names.norm1}", f"{here}.attention_norm", block)
    qkv = [f"{here}.attention.{name}" for name in ("query", "key", "value")]
    if len(names.query_key_value) == 1:
        yield from torch_linear(f"{there}.{names.query_key_value[0]}", *qkv, layer=block)
    else:
        for official, ours in zip(names.query_key_value, qkv, strict=True):
            yield from torch_linear(f"{there}.{official}", ours, layer=block)
    bias = f"{there}.{names.attention}.relative_position_bias_table"
    yield from table(bias, f"{here}.attention.relative_bias", block)
    yield Buffer(
        f"{there}.{names.attention}.relative_position_index",
        lambda: relative_index(window).astype(np.int64),
    )
    yield from torch_linear(f"{there}.{names.output}", f"{here}.attention.out", layer=block)
    yield from torch_norm(f"{there}.{names.norm2}", f"{here}.mlp_norm", block)
    yield from torch_linear(f"{there}.{names.up}", f"{here}.mlp.up", layer=block)
    yield from torch_linear(f"{there}.{names.down}", f"{here}.mlp.down", layer=block)
