"""All pairs of the rows of a batch, which is spread over devices, without a B x B matrix.

Every device keeps its rows, the hosts, while copies of everybody's rows, the guests, travel from
device to device until each has met all hosts. A meeting adds to sums that belong to the hosts and
stay, and to sums that belong to the guests and travel with them, so that one round serves both
directions. Within a device the hosts come in tiles. What a device holds is linear in its rows.
Shapes: B rows of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from alm_jax.parallel.mesh import BATCH_AXES, batch_devices

# Hosts that meet all guests of a device at once. More cost memory, fewer leave the TPU's matrix
# unit idle.
TILE_ROWS = 512

Meeting = Callable[[Any, Any, Any, Any, Any], tuple[Any, Any]]


def _over_tiles(meet: Callable[[Any, Any], tuple[Any, Any]], carry: Any, rows: Any) -> Any:
    """`lax.scan` of `meet` over tiles of the rows, the last of them smaller if need be."""
    count = jax.tree.leaves(rows)[0].shape[0]
    if count <= TILE_ROWS:
        return meet(carry, rows)
    tiles, rest = divmod(count, TILE_ROWS)
    even = jax.tree.map(
        lambda x: x[: tiles * TILE_ROWS].reshape(tiles, TILE_ROWS, *x.shape[1:]), rows
    )
    carry, done = jax.lax.scan(meet, carry, even)
    done = jax.tree.map(lambda x: x.reshape(tiles * TILE_ROWS, *x.shape[2:]), done)
    if rest:
        carry, last = meet(carry, jax.tree.map(lambda x: x[-rest:], rows))
        done = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), done, last)
    return carry, done


def all_pairs(
    meeting: Meeting, shared: Any, hosts: Any, host_sums: Any, guests: Any, guest_sums: Any
) -> tuple[Any, Any]:
    """Lets every host meet every guest, in an order that depends on the device.

    Not to be differentiated: its callers have their own gradients, which need the pairs once more
    instead of what each meeting computed.

    Args:
      meeting: of (shared, hosts, host_sums, guests, guest_sums), for some hosts and some guests;
        returns both sums with these pairs added.
      shared: pytree of what all meetings read, such as a temperature.
      hosts: pytree of arrays [B, ...].
      host_sums: pytree of arrays [B, ...], the sums to start from.
      guests: as hosts.
      guest_sums: as host_sums.

    Returns:
      Both sums over all pairs.
    """
    size = batch_devices(jax.tree.leaves(hosts)[0].shape[0])

    def here(shared: Any, hosts: Any, host_sums: Any, guests: Any, guest_sums: Any) -> Any:
        """The hosts of a device meet the guests that are there."""

        def tile(guest_sums: Any, rows: Any) -> tuple[Any, Any]:
            some_hosts, sums = rows
            sums, guest_sums = meeting(shared, some_hosts, sums, guests, guest_sums)
            return guest_sums, sums

        guest_sums, host_sums = _over_tiles(tile, guest_sums, (hosts, host_sums))
        return host_sums, guest_sums

    if size == 1:
        return here(shared, hosts, host_sums, guests, guest_sums)
    onwards = [(place, (place + 1) % size) for place in range(size)]

    def travel(shared: Any, hosts: Any, host_sums: Any, guests: Any, guest_sums: Any) -> Any:
        def turn(carry: Any, _: None) -> tuple[Any, None]:
            host_sums, guests, guest_sums = carry
            # Asked for before it is needed, so that sending hides behind the meeting.
            arriving = jax.lax.ppermute(guests, BATCH_AXES, onwards)
            host_sums, guest_sums = here(shared, hosts, host_sums, guests, guest_sums)
            return (host_sums, arriving, jax.lax.ppermute(guest_sums, BATCH_AXES, onwards)), None

        # After as many turns as there are devices the sums of the guests are home.
        done, _ = jax.lax.scan(turn, (host_sums, guests, guest_sums), length=size)
        return done[0], done[2]

    rows = PartitionSpec(BATCH_AXES)
    return jax.shard_map(
        travel, in_specs=(PartitionSpec(), rows, rows, rows, rows), out_specs=(rows, rows)
    )(shared, hosts, host_sums, guests, guest_sums)
