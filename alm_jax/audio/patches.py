"""Log-mel spectrograms as sets of patches that know their time and frequency place.

Source: Cacophony `src/caco/dataset.py` (token order, padding rule), AudioMAE section 3 (16 x 16).
Shapes: B batch, T frames, F mel bins, N patches, P patch pixels.
"""

from __future__ import annotations

from typing import NamedTuple

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
    """

    values: jax.Array
    time: jax.Array
    freq: jax.Array
    mask: jax.Array


def grid_size(frames: int, num_mels: int, patch_time: int, patch_freq: int, tail: str) -> int:
    """Number of patch slots that `patchify` makes of a [frames, num_mels] spectrogram."""
    columns = -(-frames // patch_time) if tail == "keep" else max(1, frames // patch_time)
    return columns * (num_mels // patch_freq)


def patchify(
    mel: jax.Array,
    num_frames: jax.Array,
    *,
    patch_time: int,
    patch_freq: int,
    tail: str = "drop",
    silence: float = 0.0,
) -> Patches:
    """Cuts spectrograms into non-overlapping patches, time outermost, frequency innermost.

    Args:
      mel: [B, T, F] float32; frames past `num_frames` hold the front end's value of silence.
      num_frames: [B] int32 frames that belong to the clip.
      patch_time: frames a patch spans.
      patch_freq: mel bins a patch spans; must divide F.
      tail: what happens to frames that do not fill a last patch: "drop" them (Cacophony), or
        "keep" them in a patch completed with silence. A clip shorter than one patch always keeps
        that one, since a clip without patches has no embedding.
      silence: value that completes the last patch where the array ends; the one that `mel` holds
        past `num_frames`, so that an embedding does not depend on how far its batch was padded.

    Returns:
      `Patches` with N = `grid_size(T, F, ...)` and P = patch_time * patch_freq.

    Raises:
      ValueError: if `tail` is unknown or `patch_freq` does not divide F.
    """
    if tail not in TAILS:
        raise ValueError(f"patches.tail is {tail!r}; it must be one of {TAILS}")
    batch, frames, num_mels = mel.shape
    if num_mels % patch_freq:
        raise ValueError(f"patches.freq={patch_freq} does not divide the {num_mels} mel bins")
    rows = num_mels // patch_freq
    columns = grid_size(frames, num_mels, patch_time, patch_freq, tail) // rows
    wanted = columns * patch_time
    if wanted > frames:
        mel = jnp.pad(mel, ((0, 0), (0, wanted - frames), (0, 0)), constant_values=silence)
    mel = mel[:, :wanted]
    grid = mel.reshape(batch, columns, patch_time, rows, patch_freq).transpose(0, 1, 3, 2, 4)
    values = grid.reshape(batch, columns * rows, patch_time * patch_freq)
    whole = (
        (num_frames + patch_time - 1) // patch_time if tail == "keep" else num_frames // patch_time
    )
    valid_columns = jnp.clip(whole, 1, columns)
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
