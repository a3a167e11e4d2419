"""Masking as a gather on patches: one operation for MAE, FLAP and Cacophony's patch drop.

`mask_view` splits the patches of each clip into a visible and a dropped set. Every draw comes from
the clip's own key, so it depends neither on the batch it is in nor on the number of devices.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from alm_jax.audio.patches import Patches, take

KINDS = ("random", "random_2d")


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """How many patches of a clip the audio tower sees in training.

    Attributes:
      kind: "random" draws patches uniformly (AudioMAE 1-D, FLAP 1-D); "random_2d" drops whole
        time columns and whole frequency rows (AudioMAE and FLAP 2-D).
      ratio: share of a clip's patches that is dropped ("random").
      time_ratio: share of time columns that is dropped ("random_2d").
      freq_ratio: share of frequency rows that is dropped ("random_2d").
      budget: patches of a clip that take part at all, a random subset of longer clips
        (Cacophony's `patches_seq_len`); 0 means all.
    """

    kind: str = "random"
    ratio: float = 0.0
    time_ratio: float = 0.0
    freq_ratio: float = 0.0
    budget: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"masking.kind is {self.kind!r}; it must be one of {KINDS}")
        for name in ("ratio", "time_ratio", "freq_ratio"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"masking.{name} is {getattr(self, name)}; it must be in [0, 1)")

    @property
    def keep_share(self) -> float:
        """Share of patches that stays visible."""
        if self.kind == "random_2d":
            return (1.0 - self.time_ratio) * (1.0 - self.freq_ratio)
        return 1.0 - self.ratio


class View(NamedTuple):
    """The visible and the dropped patches of each clip, both in the clip's order."""

    visible: Patches
    dropped: Patches | None


def example_keys(key: jax.Array, example_id: jax.Array) -> jax.Array:
    """One key per example, a function of `key` and the example's id [B] alone."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(example_id)


def mask_view(keys: jax.Array, patches: Patches, config: MaskingConfig) -> View:
    """Splits each clip's patches into visible and dropped ones.

    Args:
      keys: [B] PRNG keys, one a clip.
      patches: the clips' patches, N slots.
      config: what to drop.

    Returns:
      A `View`; `dropped` is None when nothing is masked. A clip always keeps at least one patch.
    """
    slots = patches.mask.shape[1]
    budget = min(config.budget or slots, slots)
    if budget == slots and config.keep_share == 1.0:
        return View(patches, None)
    noise = _noise(keys, patches, config)
    order = jnp.argsort(noise, axis=1)
    total = patches.mask.sum(axis=1)
    visible_slots = max(1, math.floor(budget * config.keep_share + 1e-4))
    if config.kind == "random":
        count = jnp.minimum(total, budget)
        kept = jnp.maximum(jnp.floor(count * config.keep_share + 1e-4).astype(jnp.int32), 1)
        dropped_slots = budget - visible_slots + 1
    else:
        # Whole rows and columns are fewer patches than the product of the shares: 3 of 7 columns
        # and 4 of 8 rows are 12 of 56, not 14.
        kept = (noise < 0.5).sum(axis=1)
        dropped_slots = budget
    keep = jnp.minimum(kept, visible_slots)
    visible = _ranked(patches, order, jnp.zeros_like(keep), keep, visible_slots)
    if config.keep_share == 1.0:
        return View(visible, None)
    end = jnp.minimum(total, kept + budget - keep)
    return View(visible, _ranked(patches, order, kept, end, dropped_slots))


def _noise(keys: jax.Array, patches: Patches, config: MaskingConfig) -> jax.Array:
    """[B, N] sort keys: the lowest stay visible (2-D: those below 0.5), padding comes last."""
    slots = patches.mask.shape[1]
    noise = jax.vmap(lambda k: jax.random.uniform(k, (slots,)))(keys)
    if config.kind == "random_2d":
        noise = noise * 0.5 + jax.vmap(_dropped_2d, in_axes=(0, 0, 0, 0, None))(
            keys, patches.time, patches.freq, patches.mask, config
        )
    return jnp.where(patches.mask, noise, jnp.inf)


def _dropped_2d(
    key: jax.Array, time: jax.Array, freq: jax.Array, mask: jax.Array, config: MaskingConfig
) -> jax.Array:
    """[N] 1.0 where the patch lies in a dropped time column or frequency row of this clip."""
    slots = time.shape[0]
    time_key, freq_key = jax.random.split(jax.random.fold_in(key, 1))
    columns = jnp.max(jnp.where(mask, time, 0)) + 1
    rows = jnp.max(jnp.where(mask, freq, 0)) + 1

    def dropped(axis_key: jax.Array, size: jax.Array, ratio: float) -> jax.Array:
        noise = jnp.where(jnp.arange(slots) < size, jax.random.uniform(axis_key, (slots,)), jnp.inf)
        rank = jnp.argsort(jnp.argsort(noise))
        return rank >= jnp.maximum(jnp.floor(size * (1.0 - ratio) + 1e-4), 1)

    lost = dropped(time_key, columns, config.time_ratio)[time]
    lost |= dropped(freq_key, rows, config.freq_ratio)[freq]
    return lost.astype(jnp.float32)


def _ranked(
    patches: Patches, order: jax.Array, first: jax.Array, end: jax.Array, slots: int
) -> Patches:
    """The patches of rank first..end-1 in `order`, put back into the clip's own order."""
    rank = first[:, None] + jnp.arange(slots)[None, :]
    valid = rank < end[:, None]
    index = jnp.take_along_axis(order, jnp.minimum(rank, order.shape[1] - 1), axis=1)
    index = jnp.where(valid, index, order.shape[1])
    index = jnp.sort(index, axis=1)
    valid = index < order.shape[1]
    return take(patches, jnp.minimum(index, order.shape[1] - 1), valid)
