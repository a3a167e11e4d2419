"""Joins the processes of one job into one JAX; on a single machine it does nothing.

A cluster is recognised by what it puts into the environment of its processes: Slurm, Open MPI, a
Cloud TPU pod, TPUs on GKE. Anything else, several processes on one machine among them, is described
by ALM_COORDINATOR_ADDRESS, ALM_PROCESS_COUNT and ALM_PROCESS_ID, or by `config.distributed`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.parallel.cluster import Cluster, find_cluster

log = logging.getLogger("alm_jax")


def connect(config: ConfigDict) -> None:
    """Joins this process to its job. To be called before JAX is used; later calls do nothing.

    Args:
      config: `config.distributed`.

    Raises:
      UserError: the description is incomplete, or there are other than `process_count` processes.
    """
    if jax.distributed.is_initialized():
        return
    cluster = find_cluster(config)
    if cluster is None:
        return
    seconds = float(config.connect_seconds)
    log.info("%s: joining %d processes", cluster.name, cluster.process_count)
    # A process whose main thread waits in a collective can still say where.
    faulthandler.enable()
    # JAX ends the process itself, without saying what to look at; so this comes first.
    alarm = threading.Timer(seconds, _not_all_came, (cluster, seconds))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            **cluster.arguments,
            initialization_timeout=int(seconds) + 5,
            heartbeat_timeout_seconds=int(config.heartbeat_seconds),
        )
        found = jax.process_count()
    finally:
        alarm.cancel()
    if found != cluster.process_count:
        raise UserError(
            f"{cluster.name}: {cluster.process_count} processes were started, but JAX sees {found}."
            " Every process must get the same coordinator address and count, and start on its own"
            " accelerators"
        )


def _not_all_came(cluster: Cluster, seconds: float) -> None:
    print(
        f"alm train: error: {cluster.name}: not all {cluster.process_count} processes came within "
        f"{seconds:g} s (distributed.connect_seconds). Look into the logs of the others, and "
        "whether they reach the coordinator's port",
        file=sys.stderr,
        flush=True,
    )
    os._exit(2)


@contextlib.contextmanager
def fails_together() -> Iterator[None]:
    """Ends this process at once when the body fails, so that no other one waits for it.

    The others notice a missing connection, or a missing heartbeat within
    `distributed.heartbeat_seconds`. An orderly end would first wait for them. In a job of one
    process the error passes through.
    """
    try:
        yield
    except BaseException as error:
        if not jax.distributed.is_initialized():
            raise
        number = f"process {jax.process_index()} of {jax.process_count()}"
        if isinstance(error, UserError):
            print(f"alm train: error: {error} ({number})", file=sys.stderr)
        else:
            traceback.print_exc()
            print(
                f"alm train: {number} stops here, and so do the others. If the error above is of a "
                "connection, look for the first error in the other logs: a host may have died. The "
                "same command goes on from the last checkpoint",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(2 if isinstance(error, UserError) else 1)


def from_first(make: Callable[[], bytes]) -> bytes:
    """Runs `make` on the first process and hands its result to all.

    Raises:
      UserError: on every process, if `make` raised one.
    """
    if jax.process_count() == 1:
        return make()
    result, error = b"", ""
    if jax.process_index() == 0:
        try:
            result = make()
        except (UserError, OSError) as problem:
            error = str(problem) or repr(problem)
    head = json.dumps([len(result), error]).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(head))))
    length, error = json.loads(_broadcast(head, size))
    if error:
        raise UserError(error)
    return _broadcast(result, length)


def _broadcast(data: bytes, size: int) -> bytes:
    mine = np.frombuffer(data, np.uint8) if len(data) == size else np.zeros(size, np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8).tobytes()


def row_share(sharding: jax.sharding.Sharding, rows: int) -> tuple[int, int]:
    """Which share of a batch this process has to load.

    Processes whose devices hold the same rows, because a tensor-parallel group spans them, load the
    same share.

    Args:
      sharding: of the batch, rows first.
      rows: of the global batch.

    Returns:
      Number of the share, and the number of shares, as `input_pipeline.loader.train_loader` takes
      them for `process_index` and `process_count`.

    Raises:
      UserError: the devices cannot share the rows evenly.
    """
    try:
        places: Mapping[Any, Any] = sharding.devices_indices_map((rows,))
    except ValueError:
        parts = len(sharding.device_set)
        raise UserError(
            f"a batch of {rows} rows cannot be shared evenly by {parts} devices; take a multiple of"
            " mesh.data * mesh.fsdp"
        ) from None
    held: dict[int, set[int]] = {}
    for device, (place,) in places.items():
        held.setdefault(device.process_index, set()).add(place.start or 0)
    shares = sorted({tuple(sorted(starts)) for starts in held.values()})
    mine = tuple(sorted(held[jax.process_index()]))
    if len(set().union(*shares)) != sum(map(len, shares)):
        raise UserError(
            "config.mesh lays some rows of a batch on processes that share only a part of their"
            " rows; let mesh.tensor divide the devices of a process, or be a multiple of them"
        )
    return shares.index(mine), len(shares)
