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
      views: masks drawn for each clip (FLAP); what reads the views sees B * views rows, a clip's
        views side by side.
    """

    kind: str = "random"
    ratio: float = 0.0
    time_ratio: float = 0.0
    freq_ratio: float = 0.0
    budget: int = 0
    views: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"masking.kind is {self.kind!r}; it must be one of {KINDS}")
        for name in ("ratio", "time_ratio", "freq_ratio"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"masking.{name} is {getattr(self, name)}; it must be in [0, 1)")
        if self.views < 1 or (self.views > 1 and self.keep_share == 1.0):
            raise ValueError(
                f"masking.views is {self.views}: it must be 1, or more where patches are dropped "
                "(masking.ratio), since views that drop nothing are all alike"
            )

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


class Noise(NamedTuple):
    """Random numbers in [0, 1) that decide what is dropped: what has the lowest ones stays.

    Attributes:
      patch: [B, N] of each patch slot.
      time: [B, K] of each time column, K at least their number; only for "random_2d".
      freq: [B, K] of each frequency row.
    """

    patch: jax.Array
    time: jax.Array | None = None
    freq: jax.Array | None = None


def mask_view(keys: jax.Array, patches: Patches, config: MaskingConfig) -> View:
    """Splits each clip's patches into visible and dropped ones.

    Args:
      keys: [B] PRNG keys, one a clip.
      patches: the clips' patches, N slots.
      config: what to drop.

    Returns:
      A `View` of B * `views` rows; `dropped` is None when nothing is masked. A clip always keeps at
      least one patch.
    """
    if config.views > 1:
        keys = jax.vmap(lambda key: jax.random.split(key, config.views))(keys).reshape(-1)
        # Side by side, so that a clip's views stay on the device that holds the clip.
        patches = jax.tree.map(lambda x: jnp.repeat(x, config.views, axis=0), patches)
    if _keeps_all(patches, config):
        return View(patches, None)
    return split_view(draw_noise(keys, patches.mask.shape[1], config), patches, config)


def draw_noise(keys: jax.Array, slots: int, config: MaskingConfig) -> Noise:
    """The numbers that `split_view` needs, a function of each clip's key alone.

    Args:
      keys: [B] PRNG keys, one a clip.
      slots: N.
      config: its kind says what is needed.
    """

    def uniform(key: jax.Array) -> jax.Array:
        return jax.random.uniform(key, (slots,))

    def along_axes(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        time_key, freq_key = jax.random.split(jax.random.fold_in(key, 1))
        return uniform(time_key), uniform(freq_key)

    patch = jax.vmap(uniform)(keys)
    if config.kind != "random_2d":
        return Noise(patch)
    return Noise(patch, *jax.vmap(along_axes)(keys))


def split_view(noise: Noise, patches: Patches, config: MaskingConfig) -> View:
    """As `mask_view`, from given noise."""
    if _keeps_all(patches, config):
        return View(patches, None)
    slots = patches.mask.shape[1]
    budget = min(config.budget or slots, slots)
    rank = _sort_keys(noise, patches, config)
    order = jnp.argsort(rank, axis=1)
    total = patches.mask.sum(axis=1)
    visible_slots = max(1, math.floor(budget * config.keep_share + 1e-4))
    if config.kind == "random":
        count = jnp.minimum(total, budget)
        kept = jnp.maximum(jnp.floor(count * config.keep_share + 1e-4).astype(jnp.int32), 1)
        dropped_slots = budget - visible_slots + 1
    else:
        # Whole rows and columns are fewer patches than the product of the shares: 3 of 7 columns
        # and 4 of 8 rows are 12 of 56, not 14.
        kept = (rank < 0.5).sum(axis=1)
        dropped_slots = budget
    keep = jnp.minimum(kept, visible_slots)
    visible = _ranked(patches, order, jnp.zeros_like(keep), keep, visible_slots)
    if config.keep_share == 1.0:
        return View(visible, None)
    end = jnp.minimum(total, kept + budget - keep)
    return View(visible, _ranked(patches, order, kept, end, dropped_slots))


def _keeps_all(patches: Patches, config: MaskingConfig) -> bool:
    slots = patches.mask.shape[1]
    return config.keep_share == 1.0 and (config.budget or slots) >= slots


def _sort_keys(noise: Noise, patches: Patches, config: MaskingConfig) -> jax.Array:
    """[B, N] sort keys: the lowest stay visible (2-D: those below 0.5), padding comes last."""
    key = noise.patch
    if config.kind == "random_2d":
        assert noise.time is not None and noise.freq is not None
        time, freq, mask = patches.time, patches.freq, patches.mask
        lost = _dropped_lines(noise.time, time, mask, config.time_ratio)
        lost |= _dropped_lines(noise.freq, freq, mask, config.freq_ratio)
        key = key * 0.5 + lost
    return jnp.where(patches.mask, key, jnp.inf)


def _dropped_lines(noise: jax.Array, place: jax.Array, mask: jax.Array, ratio: float) -> jax.Array:
    """[B, N] bool: the patch at `place` [B, N] of one axis lies in a dropped line of its clip."""
    size = jnp.max(jnp.where(mask, place, 0), axis=1, keepdims=True) + 1
    noise = jnp.where(jnp.arange(noise.shape[1]) < size, noise, jnp.inf)
    rank = jnp.argsort(jnp.argsort(noise, axis=1), axis=1)
    dropped = rank >= jnp.maximum(jnp.floor(size * (1.0 - ratio) + 1e-4), 1)
    return jnp.take_along_axis(dropped, place, axis=1)


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
