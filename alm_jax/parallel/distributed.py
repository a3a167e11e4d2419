"""Joins the processes of one job into one JAX; on a single machine it does nothing.

A cluster is recognised by what it puts into the environment of its processes: Slurm, Open MPI, a
Cloud TPU pod, TPUs on GKE. Anything else, several processes on one machine among them, is described
by ALM_COORDINATOR_ADDRESS, ALM_PROCESS_COUNT and ALM_PROCESS_ID, or by `config.distributed`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import glob
import json
import logging
import os
import sys
import threading
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from alm_jax.errors import UserError

log = logging.getLogger("alm_jax")

_ADDRESS, _COUNT, _ID = "ALM_COORDINATOR_ADDRESS", "ALM_PROCESS_COUNT", "ALM_PROCESS_ID"
# Where launchers leave a process's number and their count, for those that name no coordinator.
_RANKS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("SLURM_NTASKS", "SLURM_PROCID"),
    ("PMI_SIZE", "PMI_RANK"),
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that a job consists of.

    Attributes:
      name: what started them, for messages.
      process_count: how many there are, at least 2.
      arguments: for `jax.distributed.initialize`; empty where JAX finds them itself.
    """

    name: str
    process_count: int
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


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


def find_cluster(
    config: ConfigDict,
    environ: Mapping[str, str] = os.environ,
    metadata: Callable[[str], str] | None = None,
) -> Cluster | None:
    """The cluster that this process is a part of; None on a single machine.

    Args:
      config: `config.distributed`; its process count, where above 0, must be the cluster's.
      environ: environment variables; those of this project win over the config's fields.
      metadata: attribute of a Cloud TPU VM -> its text, "" if there is none.

    Raises:
      UserError: a bad or missing value, or another process count than wanted.
    """
    address = environ.get(_ADDRESS, "") or config.coordinator_address
    wanted = _number(environ, _COUNT, int(config.process_count))
    if address:
        return _described(address, wanted, int(config.process_id), environ)
    if environ.get(_ID):
        raise UserError(
            f"{_ID}={environ[_ID]} without {_ADDRESS}: set it to host:port of process 0"
        )
    found = _slurm(environ) or _open_mpi(environ) or _tpu(environ, metadata or _tpu_metadata)
    count = found.process_count if found else 1
    if wanted and count != wanted:
        raise UserError(
            f"{wanted} processes must take part ({_COUNT} or distributed.process_count), but"
            f" {found.name if found else 'this machine'} has {count}. Start all of them, or"
            f" describe them by {_ADDRESS}, {_COUNT} and {_ID}"
        )
    return found


def _described(
    address: str, count: int, process_id: int, environ: Mapping[str, str]
) -> Cluster | None:
    process_id = _number(environ, _ID, process_id)
    for size, rank in _RANKS:
        if environ.get(size) and environ.get(rank):
            count = count or _number(environ, size, 0)
            process_id = process_id if process_id >= 0 else _number(environ, rank, -1)
    missing = [n for n, given in ((_COUNT, count > 0), (_ID, process_id >= 0)) if not given]
    if missing:
        raise UserError(f"{_ADDRESS}={address} also needs {' and '.join(missing)}")
    if process_id >= count:
        raise UserError(f"{_ID}={process_id} with {_COUNT}={count}: must be 0 to {count - 1}")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"{_ADDRESS}={address}: must be host:port, the port free on process 0")
    if count == 1:
        return None
    arguments = dict(coordinator_address=address, num_processes=count, process_id=process_id)
    return Cluster(f"{count} processes at {address}", count, arguments | _NO_DETECTION)


_NO_DETECTION = dict(cluster_detection_method="deactivate")


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
    # Set by srun alone: in the batch script itself there is one process, whatever was allocated.
    if not all(environ.get(f"SLURM_{n}") for n in ("STEP_NODELIST", "PROCID", "LOCALID")):
        return None
    count = _number(environ, "SLURM_STEP_NUM_TASKS", _number(environ, "SLURM_NTASKS", 1))
    if count < 2:
        return None
    gpus = _number(environ, "SLURM_GPUS_ON_NODE", 0)
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0].split(",")[0]
    if gpus and tasks.isdigit() and int(tasks) < gpus:
        log.warning(
            "Slurm: %d GPUs but %s tasks on this node, and a task takes one GPU: start srun with "
            "--ntasks-per-node=%d",
            gpus,
            tasks,
            gpus,
        )
    return Cluster("Slurm", count)


def _open_mpi(environ: Mapping[str, str]) -> Cluster | None:
    count = _number(environ, "OMPI_COMM_WORLD_SIZE", 1)
    if count < 2:
        return None
    if not environ.get("OMPI_MCA_orte_hnp_uri"):  # since version 5
        raise UserError(
            f"Open MPI started {count} processes but does not say where the first one is: set"
            f" {_ADDRESS}=HOST:PORT for all of them (mpirun -x {_ADDRESS}=...)"
        )
    return Cluster("Open MPI", count)


def _tpu(environ: Mapping[str, str], metadata: Callable[[str], str]) -> Cluster | None:
    slices = _number(environ, "MEGASCALE_NUM_SLICES", 1)
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    name = "TPUs on GKE"
    if not hosts and environ.get("TPU_SKIP_MDS_QUERY") is None:
        hosts, name = metadata("worker-network-endpoints"), "Cloud TPU pod"
    count = len([host for host in hosts.split(",") if host]) * slices
    return Cluster(name, count) if count > 1 else None


def _tpu_metadata(name: str) -> str:
    """An attribute that a TPU VM finds out about itself; "" anywhere else."""
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
        return ""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isdigit():
        raise UserError(f"{name}={text!r}: must be a whole number")
    return int(text)


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
