"""Several clips in one row of a transformer, so that short clips cost no padding.

A batch of B clips has B rows of N tokens, most of them padding where clips differ in length.
Packing computes a stack over fewer rows of N tokens: clips of one row do not see each other (a
block-diagonal mask), and afterwards every state goes back to its clip's slot. Positions belong to
the patches, so nothing else has to know. Shapes stay static: `share` says how many rows a group of
clips gets.

Shapes: B clips (or their views), N slots of a clip, G groups, C clips and R rows of a group,
D width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from alm_jax.audio.masking import View
from alm_jax.audio.patches import Patches
from alm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """How clips share rows in training.

    Attributes:
      share: rows of the transformer, as a share of the clips; 0 gives every clip a row of its own.
        What finds no room is left out of the clip and counted in the metric `packing_lost`.
      clips: clips (views) that share the rows of one group. More fill them better; as they should
        lie on one device, no more than a device's part of the batch.
    """

    share: float = 0.0
    clips: int = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise UserError(f"packing.share={self.share}: must be between 0 (off) and 1")
        if self.clips < 1:
            raise UserError(f"packing.clips={self.clips}: must be at least 1")


def check_packing(config: ConfigDict) -> None:
    """Refuses to pack where the model does not allow it, or where it would gain nothing.

    Raises:
      UserError: names the field.
    """
    model = config.model
    decoder = model.get("mae_decoder")
    if model.audio.get("tower", "vit") != "vit":
        problem = (
            f"the tower {model.audio.tower!r} reads whole pictures; take model.audio.tower='vit'"
        )
    elif config.patches.frames:
        problem = "all clips have as many patches (patches.frames); there is no padding to save"
    elif decoder is not None and decoder.get("decoder", "concatenated") == "swin":
        problem = "model.mae_decoder.decoder='swin' reads whole pictures; take 'vit'"
    elif model.audio.get("drop_path") or (decoder is not None and decoder.get("drop_path")):
        problem = "drop_path drops whole rows, which would be several clips; set it to 0"
    else:
        return
    raise UserError(f"packing.share={config.packing.share:g}, but {problem}")


class Packing(flax.struct.PyTreeNode):
    """Which row of its group each clip is in.

    Attributes:
      row: int32 [B], 0..R-1.
      clips: C.
      rows: R.
    """

    row: jax.Array
    clips: int = flax.struct.field(pytree_node=False)
    rows: int = flax.struct.field(pytree_node=False)

    def __call__(self, stack: Callable[..., jax.Array], x: jax.Array, mask: jax.Array) -> jax.Array:
        """Runs a stack over packed rows.

        Args:
          stack: (x [G * R, N, D], mask [G * R, N, N]) -> [G * R, N, D].
          x: [B, N, D] tokens of clips.
          mask: [B, N] bool; the tokens of a row's clips together must be at most N.

        Returns:
          [B, N, D], what the stack gives for each token of `mask`, zeros elsewhere.
        """
        batch, slots, width = x.shape
        groups = batch // self.clips
        row = self.row.reshape(groups, self.clips)
        mask = mask.reshape(groups, self.clips, slots)
        count = mask.sum(axis=2)
        earlier = (row[:, :, None] == row[:, None, :]) & np.tri(self.clips, k=-1, dtype=bool)
        first = jnp.sum(jnp.where(earlier, count[:, None, :], 0), axis=2)
        within = first[..., None] + jnp.cumsum(mask, axis=2, dtype=jnp.int32) - 1
        # A class token of a clip without room must not get into the next row.
        held = mask & (within < slots)
        place = jnp.where(held, row[..., None] * slots + within, -1).reshape(groups, -1)
        source = _inverse(place, self.rows * slots)
        packed = _gather(x.reshape(groups, -1, width), source, place)
        clip = jnp.where(source >= 0, source // slots, -1).reshape(-1, slots)
        same = (clip[:, :, None] == clip[:, None, :]) & (clip >= 0)[:, None, :]
        y = stack(packed.reshape(-1, slots, width), mask=same)
        return _gather(y.reshape(groups, -1, width), place, source).reshape(batch, slots, width)


def pack_view(view: View, config: PackingConfig, extra: int) -> tuple[View, dict[str, jax.Array]]:
    """Decides which clips share a row, and leaves out what finds no room.

    The longest clips choose first, each the emptiest row. Both stacks, that of the visible patches
    and a decoder's of all, use the same rows.

    Args:
      view: visible and dropped patches of B clips.
      config: `share` above 0.
      extra: tokens that a stack has for each clip besides its patches (class token).

    Returns:
      The view, its `visible` with `packing`; and for each clip the number of its `patches` [B], and
      of those `lost` [B] because they found no room.
    """
    visible, dropped = view
    batch, slots = visible.mask.shape
    clips = math.gcd(batch, config.clips)
    rows = math.ceil(config.share * clips)
    seen = visible.mask.sum(axis=1)
    hidden = jnp.zeros_like(seen) if dropped is None else dropped.mask.sum(axis=1)
    every = slots + (0 if dropped is None else dropped.mask.shape[1])
    room = jnp.tile(jnp.array([slots + extra, every + extra], jnp.int32), (rows, 1))

    def place(
        free: jax.Array, clip: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        seen, hidden = clip
        wanted = jnp.stack([seen, seen + hidden]) + extra
        fits = jnp.all(free >= wanted, axis=1)
        row = jnp.argmax(jnp.where(fits, every + extra + 1, 0) + free[:, 1])
        left = jnp.maximum(free[row] - extra, 0)
        seen = jnp.minimum(seen, jnp.minimum(left[0], left[1]))
        hidden = jnp.minimum(hidden, left[1] - seen)
        taken = jnp.stack([seen, seen + hidden]) + extra
        return free.at[row].set(jnp.maximum(free[row] - taken, 0)), (row, seen, hidden)

    def place_group(seen: jax.Array, hidden: jax.Array) -> tuple[jax.Array, ...]:
        order = jnp.argsort(-(seen + hidden))
        _, placed = jax.lax.scan(place, room, (seen[order], hidden[order]))
        back = jnp.argsort(order)
        return tuple(values[back] for values in placed)

    grouped = (count.astype(jnp.int32).reshape(-1, clips) for count in (seen, hidden))
    row, kept_seen, kept_hidden = (x.reshape(batch) for x in jax.vmap(place_group)(*grouped))
    patches = seen + hidden
    counts = {"patches": patches, "lost": patches - kept_seen - kept_hidden}
    packing = Packing(row.astype(jnp.int32), clips, rows)
    visible = _first(visible, kept_seen)._replace(packing=packing)
    return View(visible, None if dropped is None else _first(dropped, kept_hidden)), counts


def run_packed(
    stack: Callable[..., jax.Array],
    x: jax.Array,
    mask: jax.Array,
    patches: Patches,
    key: jax.Array | None,
) -> jax.Array:
    """A stack (x, mask, key) over tokens x [B, N, D] with mask [B, N], packed as `patches` are."""
    if patches.packing is None:
        return stack(x, mask=mask, key=key)
    return patches.packing(lambda x, mask: stack(x, mask=mask, key=key), x, mask)


def _first(patches: Patches, count: jax.Array) -> Patches:
    """The first `count` [B] patches of each clip."""
    mask = patches.mask & (jnp.cumsum(patches.mask, axis=1) <= count[:, None])
    return Patches(
        values=jnp.where(mask[..., None], patches.values, 0.0),
        time=jnp.where(mask, patches.time, 0),
        freq=jnp.where(mask, patches.freq, 0),
        mask=mask,
    )


def _inverse(place: jax.Array, size: int) -> jax.Array:
    """[G, size] with inverse[place[i]] = i; -1 where nothing points, and -1 points nowhere."""
    numbers = jnp.arange(place.shape[1], dtype=jnp.int32)
    empty = jnp.full(size, -1, jnp.int32)

    def of_group(place: jax.Array) -> jax.Array:
        return empty.at[jnp.where(place < 0, size, place)].set(numbers, mode="drop")

    return jax.vmap(of_group)(place)


@jax.custom_vjp
def _gather(x: jax.Array, index: jax.Array, inverse: jax.Array) -> jax.Array:
    """[G, M, D] of x [G, K, D] at index [G, M], zeros where that is -1.

    The gradient is a gather by the inverse index, where that of an indexing would be a scatter.
    """
    del inverse
    found = jnp.take_along_axis(x, jnp.maximum(index, 0)[..., None], axis=1)
    return jnp.where(index[..., None] >= 0, found, 0)


def _gather_forward(
    x: jax.Array, index: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _gather(x, index, inverse), (index, inverse)


def _gather_backward(
    saved: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, None, None]:
    index, inverse = saved
    return _gather(grad, inverse, index), None, None


_gather.defvjp(_gather_forward, _gather_backward)
