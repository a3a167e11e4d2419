"""Where a patch is, as a vector added to it: fixed, learned, or stored.

Sources: Cacophony `src/caco/audio_models/mae.py` (sincos_time), AudioMAE `util/pos_embed.py`
(sincos_2d, sincos_2d_official).
Shapes: B batch, N patches, D width, C columns of patches (time), R rows (frequency).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alm_jax.errors import UserError
from alm_jax.models.layers import embedding, sincos_positions
from alm_jax.models.linear import lookup

FIXED = ("sincos_2d", "sincos_2d_official")
POSITIONS = ("sincos_time", *FIXED, "table")


@dataclasses.dataclass(frozen=True)
class PatchShape:
    """What a tower must know of its patches.

    Attributes:
      pixels: P, values of one.
      freq_rows: R.
      columns: C if all clips have as many (`patches.frames`), else 0.
    """

    pixels: int
    freq_rows: int
    columns: int = 0


class PatchPositions(nnx.Module):
    """Adds the place of each patch: fixed sin/cos in time, a learned table in frequency."""

    def __init__(self, width: int, freq_rows: int, *, rngs: nnx.Rngs):
        self.width = width
        self.freq = embedding(freq_rows, width, None, std=0.02, rngs=rngs)

    def __call__(self, time: jax.Array, freq: jax.Array) -> jax.Array:
        """Positions [B, N, D] float32 of the patches at (time, freq), both [B, N]."""
        return sincos_positions(time, self.width) + lookup(self.freq, freq)

    def of_class_token(self) -> jax.Array:
        """[D]: the class token is nowhere."""
        return jnp.zeros((self.width,), jnp.float32)


class FixedPositions(nnx.Module):
    """Half of the vector is the sin/cos code of one coordinate, half that of the other.

    "sincos_2d" codes frequency, then time. "sincos_2d_official" is what AudioMAE does with patches
    side by side: its table is made for R rows of C columns and then read by tokens that are C rows
    of R. Every patch still has a vector of its own, but neighbours are not alike.
    """

    def __init__(self, kind: str, width: int, shape: PatchShape):
        self.kind = kind
        self.width = width
        self.shape = shape

    def __call__(self, time: jax.Array, freq: jax.Array) -> jax.Array:
        """Positions [B, N, D] float32 of the patches at (time, freq), both [B, N]."""
        first, second = freq, time
        if self.kind == "sincos_2d_official":
            token = time * self.shape.freq_rows + freq
            first, second = token % self.shape.columns, token // self.shape.columns
        halves = [sincos_positions(place, self.width // 2) for place in (first, second)]
        return jnp.concatenate(halves, axis=-1)

    def of_class_token(self) -> jax.Array:
        """[D]: the class token is nowhere."""
        return jnp.zeros((self.width,), jnp.float32)


class TablePositions(nnx.Module):
    """A parameter [1 + C * R, D]: the class token's row, then the patches', time outermost."""

    def __init__(self, width: int, shape: PatchShape):
        self.rows = shape.freq_rows
        self.table = nnx.Param(
            jnp.asarray(fixed_table("sincos_2d", width, shape)), axes=(None, "embed")
        )

    def __call__(self, time: jax.Array, freq: jax.Array) -> jax.Array:
        """Positions [B, N, D] float32 of the patches at (time, freq), both [B, N]."""
        return lookup(self.table, 1 + time * self.rows + freq)

    def of_class_token(self) -> jax.Array:
        """[D], the first row."""
        return self.table.get_value()[0]


Positions = PatchPositions | FixedPositions | TablePositions


def make_positions(kind: str, width: int, shape: PatchShape, *, rngs: nnx.Rngs) -> Positions:
    """The positions that a config names.

    Args:
      kind: one of `POSITIONS`: "sincos_time" (Cacophony), "sincos_2d", "sincos_2d_official"
        (AudioMAE's layout, for its checkpoints) or "table", which training changes and which
        starts as "sincos_2d".
      width: D.
      shape: of the patches.
      rngs: source of the initial parameters.

    Raises:
      UserError: an unknown kind, or one that needs clips of one length or another width.
    """
    if kind not in POSITIONS:
        raise UserError(f"positions is {kind!r}; it must be one of {list(POSITIONS)}")
    if kind == "sincos_time":
        return PatchPositions(width, shape.freq_rows, rngs=rngs)
    if width % 4:
        raise UserError(f"positions {kind!r} need a width that 4 divides, not {width}")
    if kind != "sincos_2d" and not shape.columns:
        raise UserError(
            f"positions {kind!r} need clips of one length: set patches.frames (AudioMAE: 1024), or"
            " take 'sincos_2d'"
        )
    return TablePositions(width, shape) if kind == "table" else FixedPositions(kind, width, shape)


def fixed_table(kind: str, width: int, shape: PatchShape) -> np.ndarray:
    """The official way to make a fixed table, [1 + C * R, D] float32 from float64.

    The first row, the class token's, is zero.

    Args:
      kind: "sincos_2d" or "sincos_2d_official".
      width: D, a multiple of 4.
      shape: of the patches, with `columns`.
    """
    token = np.arange(shape.columns * shape.freq_rows)
    inner = shape.columns if kind == "sincos_2d_official" else shape.freq_rows
    quarter = width // 4
    rate = 1.0 / 10000 ** (np.arange(quarter, dtype=np.float64) / quarter)
    parts = [np.zeros((1 + len(token), quarter)) for _ in range(4)]
    for half, place in enumerate((token % inner, token // inner)):
        angle = place[:, None].astype(np.float64) * rate
        parts[2 * half][1:], parts[2 * half + 1][1:] = np.sin(angle), np.cos(angle)
    return np.concatenate(parts, axis=1).astype(np.float32)
