"""Which cluster a process is a part of, as the environment of its processes tells."""

from __future__ import annotations

import dataclasses
import glob
import logging
import os
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

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
