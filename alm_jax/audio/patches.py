"""Log-mel spectrograms as sets of patches that know their time and frequency place.

Source: Cacophony `src/caco/dataset.py` (token order, padding rule), AudioMAE section 3 (16 x 16)
and `util/patch_embed.py` (overlapping patches, stride 10).
Shapes: B batch, T frames, F mel bins, N patches, P patch pixels, C columns, R rows of patches.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

TAILS = ("drop", "keep")


class Patches(NamedTuple):
    """A batch of patch sets; slots where `mask` is False hold zeros and place (0, 0).

    Attributes:
      values: [B, N, P] float32 pixels of each patch, flattened time-major.
      time: [B, N] int32 index of the patch along time.
      freq: [B, N] int32 index of the patch along frequency.
      mask: [B, N] bool, True where the slot holds a patch of the clip.
      packing: an `alm_jax.audio.packing.Packing` by which a transformer computes several clips in
        one row; None gives each a row of its own.
    """

    values: jax.Array
    time: jax.Array
    freq: jax.Array
    mask: jax.Array
    packing: Any = None


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    """How a spectrogram becomes patches.

    Attributes:
      time: frames a patch spans.
      freq: mel bins a patch spans.
      tail: what happens to frames that do not fill a last patch: "drop" them (Cacophony), or
        "keep" them in a patch completed with silence. A clip shorter than one patch always keeps
        that one, since a clip without patches has no embedding.
      time_stride: frames from one patch's start to the next; 0 is `time`, patches side by side.
        AudioMAE's and AST's overlapping patches have 10.
      freq_stride: mel bins from one patch's start to the next; 0 is `freq`, which then must divide
        the mel bins. Bins that fill no overlapping patch are dropped, as by a convolution.
      frames: every spectrogram is cut to this length, or completed with silence that counts as
        sound, so that all clips have the same grid of patches (AudioMAE: 1,024); 0 is as long as
        the clip.
    """

    time: int = 16
    freq: int = 16
    tail: str = "drop"
    time_stride: int = 0
    freq_stride: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        if self.tail not in TAILS:
            raise ValueError(f"patches.tail is {self.tail!r}; it must be one of {TAILS}")
        for name, low in (("time", 1), ("freq", 1), ("time_stride", 0), ("freq_stride", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"patches.{name} is {getattr(self, name)}; at least {low}")
        if self.frames and self.frames < self.time:
            raise ValueError(
                f"patches.frames={self.frames} are less than one patch; give at least {self.time}"
            )

    @property
    def pixels(self) -> int:
        """P."""
        return self.time * self.freq

    @property
    def strides(self) -> tuple[int, int]:
        """Frames and mel bins from one patch to the next."""
        return self.time_stride or self.time, self.freq_stride or self.freq

    def rows(self, num_mels: int) -> int:
        """R: patches along frequency."""
        stride = self.strides[1]
        if stride == self.freq and num_mels % stride:
            raise ValueError(f"patches.freq={self.freq} does not divide the {num_mels} mel bins")
        if num_mels < self.freq:
            raise ValueError(f"patches.freq={self.freq} is more than the {num_mels} mel bins")
        return (num_mels - self.freq) // stride + 1

    def columns(self, frames: int | jax.Array) -> int | jax.Array:
        """Patches along time in `frames` frames; 0 or less for clips shorter than a patch."""
        over = frames - self.time
        stride = self.strides[0]
        return (-(-over // stride) if self.tail == "keep" else over // stride) + 1

    @property
    def fixed_columns(self) -> int:
        """C if every clip has the same number of columns, else 0."""
        return int(self.columns(self.frames)) if self.frames else 0


def grid_size(frames: int, num_mels: int, patch_time: int, patch_freq: int, tail: str) -> int:
    """Number of patch slots that `patchify` makes of a [frames, num_mels] spectrogram."""
    config = PatchConfig(patch_time, patch_freq, tail)
    return max(1, int(config.columns(frames))) * config.rows(num_mels)


def patchify(
    mel: jax.Array,
    num_frames: jax.Array,
    *,
    patch_time: int,
    patch_freq: int,
    tail: str = "drop",
    silence: float = 0.0,
) -> Patches:
    """As `cut`, for patches side by side."""
    return cut(mel, num_frames, PatchConfig(patch_time, patch_freq, tail), silence=silence)


def cut(
    mel: jax.Array, num_frames: jax.Array, config: PatchConfig, *, silence: float = 0.0
) -> Patches:
    """Cuts spectrograms into patches, time outermost, frequency innermost.

    Args:
      mel: [B, T, F] float32; frames past `num_frames` hold the front end's value of silence.
      num_frames: [B] int32 frames that belong to the clip.
      config: sizes and what happens at the clip's end.
      silence: value that completes the last patch where the array ends; the one that `mel` holds
        past `num_frames`, so that an embedding does not depend on how far its batch was padded.

    Returns:
      `Patches` with N = columns * rows and P = config.pixels.

    Raises:
      ValueError: if the patches do not cover the F mel bins.
    """
    batch, length, num_mels = mel.shape
    rows = config.rows(num_mels)
    if config.frames:
        length, num_frames = config.frames, jnp.full_like(num_frames, config.frames)
    columns = max(1, int(config.columns(length)))
    stride, freq_step = config.strides
    wanted = (columns - 1) * stride + config.time
    if wanted > mel.shape[1]:
        missing = wanted - mel.shape[1]
        mel = jnp.pad(mel, ((0, 0), (0, missing), (0, 0)), constant_values=silence)
    mel = mel[:, :wanted]
    if (stride, freq_step) == (config.time, config.freq):
        grid = mel.reshape(batch, columns, config.time, rows, config.freq)
    else:
        in_time = stride * jnp.arange(columns)[:, None] + jnp.arange(config.time)
        in_freq = freq_step * jnp.arange(rows)[:, None] + jnp.arange(config.freq)
        grid = mel[:, in_time][..., in_freq]
    values = grid.transpose(0, 1, 3, 2, 4).reshape(batch, columns * rows, config.pixels)
    valid_columns = jnp.clip(config.columns(num_frames), 1, columns)
    time = jnp.repeat(jnp.arange(columns, dtype=jnp.int32), rows)
    freq = jnp.tile(jnp.arange(rows, dtype=jnp.int32), columns)
    mask = time[None, :] < valid_columns[:, None]
    return Patches(
        values=jnp.where(mask[..., None], values, 0.0),
        time=jnp.where(mask, time[None, :], 0),
        freq=jnp.where(mask, freq[None, :], 0),
        mask=mask,
    )


def take(patches: Patches, index: jax.Array, valid: jax.Array) -> Patches:
    """Gathers slots `index` [B, K] of each row; slots where `valid` is False become padding."""
    valid = valid & jnp.take_along_axis(patches.mask, index, axis=1)
    gathered = jnp.take_along_axis(patches.values, index[..., None], axis=1)
    return Patches(
        values=jnp.where(valid[..., None], gathered, 0.0),
        time=jnp.where(valid, jnp.take_along_axis(patches.time, index, axis=1), 0),
        freq=jnp.where(valid, jnp.take_along_axis(patches.freq, index, axis=1), 0),
        mask=valid,
    )
