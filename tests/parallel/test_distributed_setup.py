"""Which cluster a process finds itself in, and which rows it loads; no job is started."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.parallel import distributed, preemption
from alm_jax.parallel.cluster import find_cluster
from alm_jax.parallel.distributed import from_first, row_share

ROOT = Path(__file__).parents[2]
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}
ALM = {
    "ALM_COORDINATOR_ADDRESS": "10.0.0.1:8476",
    "ALM_PROCESS_COUNT": "4",
    "ALM_PROCESS_ID": "3",
}
OMPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}


def config(**fields):
    found = load_config("quickstart").distributed.copy_and_resolve_references().unlock()
    found.update(fields)
    return found


def nothing(name):
    return ""


@pytest.mark.parametrize(
    ("environ", "name", "count"),
    [
        (SLURM, "Slurm", 16),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "8"}, "Slurm", 8),
        (OMPI | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}, "Open MPI", 2),
        ({"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, "TPUs on GKE", 4),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "MEGASCALE_NUM_SLICES": "2"}, "TPUs on GKE", 4),
    ],
)
def test_clusters_are_recognised(environ, name, count):
    """Every host would train a run of its own, all writing to one workdir."""
    found = find_cluster(config(), environ, nothing)
    assert found is not None
    assert (found.name, found.process_count, found.arguments) == (name, count, {})


def test_tpu_pod_is_recognised_by_its_metadata():
    """As above, on TPU VMs, which set no variable."""
    hosts = {"worker-network-endpoints": "a:1:10.0.0.1,b:2:10.0.0.2"}.get
    found = find_cluster(config(), {}, hosts)
    assert found is not None
    assert (found.name, found.process_count) == ("Cloud TPU pod", 2)
    found = find_cluster(config(), {"MEGASCALE_NUM_SLICES": "3"}, hosts)
    assert found is not None
    assert found.process_count == 6


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16", "SLURM_PROCID": "0"},  # a batch script
        SLURM | {"SLURM_NTASKS": "1"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
        {"OMPI_COMM_WORLD_SIZE": "1"},
        ALM | {"ALM_PROCESS_COUNT": "1", "ALM_PROCESS_ID": "0"},
    ],
)
def test_single_machine_is_left_alone(environ):
    """`alm train` on a laptop, or in an allocation's shell, would wait for others."""
    assert find_cluster(config(), environ, nothing) is None


def test_description_wins_over_detection_and_config():
    """There would be no way to start a job where the detection is wrong."""
    arguments = dict(
        coordinator_address="10.0.0.1:8476",
        num_processes=4,
        process_id=3,
        cluster_detection_method="deactivate",
    )
    found = find_cluster(config(process_id=1), SLURM | ALM, nothing)
    assert found is not None
    assert found.arguments == arguments
    fields = config(coordinator_address="10.0.0.1:8476", process_count=4, process_id=3)
    found = find_cluster(fields, {}, nothing)
    assert found is not None
    assert found.arguments == arguments
    found = find_cluster(config(), OMPI | {"ALM_COORDINATOR_ADDRESS": "h:1"}, nothing)
    assert found is not None
    assert (found.arguments["num_processes"], found.arguments["process_id"]) == (2, 1)


@pytest.mark.parametrize(
    ("environ", "fields", "message"),
    [
        ({"ALM_COORDINATOR_ADDRESS": "h:1"}, {}, "also needs ALM_PROCESS_COUNT and ALM_PROCESS_ID"),
        ({"ALM_PROCESS_ID": "1"}, {}, "without ALM_COORDINATOR_ADDRESS"),
        (ALM | {"ALM_PROCESS_ID": "4"}, {}, "must be 0 to 3"),
        (ALM | {"ALM_PROCESS_COUNT": "four"}, {}, "ALM_PROCESS_COUNT='four'"),
        (ALM | {"ALM_COORDINATOR_ADDRESS": "host"}, {}, "must be host:port"),
        (OMPI, {}, "set ALM_COORDINATOR_ADDRESS=HOST:PORT"),
        (SLURM, dict(process_count=32), "32 processes must take part.*Slurm has 16"),
        ({}, dict(process_count=2), "this machine has 1"),
    ],
)
def test_what_does_not_fit_is_named(environ, fields, message):
    """Half a pod would train, or all of it would hang."""
    with pytest.raises(UserError, match=message):
        find_cluster(config(**fields), environ, nothing)


def test_processes_that_never_come_end_in_a_message():
    """One host that fails to start would make the others wait without a word."""
    program = """
from alm_jax.config import load_config
from alm_jax.parallel.distributed import connect
c = load_config("quickstart").distributed.copy_and_resolve_references().unlock()
c.update(coordinator_address="localhost:8479", process_count=2, process_id=1, connect_seconds=2)
connect(c)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, timeout=120
    )
    assert result.returncode == 2
    assert "not all 2 processes came within 2 s" in result.stderr


@dataclasses.dataclass(frozen=True)
class Device:
    id: int
    process_index: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """A sharding over 2 processes of 2 devices each, by the first of every device's 2 rows."""

    starts: list[int]

    def devices_indices_map(self, shape):
        assert shape == (8,)
        return {
            Device(number, number // 2): (slice(start, start + 2),)
            for number, start in enumerate(self.starts)
        }


@pytest.mark.parametrize(
    ("starts", "shares"),
    [
        ([0, 2, 4, 6], [(0, 2), (1, 2)]),  # rows over all devices
        ([0, 0, 2, 2], [(0, 2), (1, 2)]),  # tensor parallel within a process
        ([0, 2, 0, 2], [(0, 1), (0, 1)]),  # and across: both load everything
        ([4, 6, 0, 2], [(1, 2), (0, 2)]),  # devices in another order than processes
        ([0, 4, 2, 6], [(0, 2), (1, 2)]),  # rows of a process apart from each other
    ],
)
def test_rows_to_load(starts, shares, monkeypatch):
    """With tensor parallelism across hosts, each would feed rows of its own as the same rows."""
    for process, share in enumerate(shares):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert row_share(Layout(starts), 8) == share


def test_overlapping_shares_are_refused(monkeypatch):
    """As above."""
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(UserError, match=r"mesh\.tensor"):
        row_share(Layout([0, 2, 2, 4]), 8)


def test_rows_that_devices_cannot_share_are_refused():
    """A traceback of JAX would stand where a number must be changed."""

    class Uneven:
        device_set = frozenset({Device(0, 0), Device(1, 0), Device(2, 0)})

        def devices_indices_map(self, shape):
            raise ValueError("what JAX says of 8 rows on 3 devices")

    with pytest.raises(UserError, match=r"8 rows cannot be shared evenly by 3 devices"):
        row_share(Uneven(), 8)
    assert row_share(jax.sharding.SingleDeviceSharding(jax.devices()[0]), 8) == (0, 1)


def test_single_process_needs_nobody():
    """Training on a laptop would wait for a coordinator, or end on every error by force."""
    assert from_first(lambda: b"x") == b"x"
    with pytest.raises(UserError), distributed.fails_together():
        raise UserError("mended by the user")
    assert not jax.distributed.is_initialized()
    assert not preemption.requested(1)


@pytest.mark.parametrize("several", [False, True])
def test_watchdog_shows_what_every_thread_does(several):
    """A step that hangs for hours would say nothing; on a pod, every host would wait for it."""
    program = f"""
import time
import jax
jax.distributed.is_initialized = lambda: {several}
from alm_jax.parallel.watchdog import Watchdog
dog = Watchdog(0.4)
dog.beat("step 7")
def the_place_that_hangs():
    time.sleep(1.5)
the_place_that_hangs()
dog.close()
print("goes on")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, timeout=120
    )
    assert "step 7 has taken" in result.stderr
    assert "the_place_that_hangs" in result.stderr
    assert result.stderr.count("train.stall_seconds=0.4") == 1, "once"
    assert result.stdout == ("" if several else "goes on\n")
    assert result.returncode == several
