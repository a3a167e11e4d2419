"""Devices to compile for that this machine does not have: `v5e:16x16`, `v5e:4x4*2`, `cpu:8`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

from alm_jax.errors import UserError
from alm_jax.perf.chips import CHIPS, Chip

# libtpu would ask the network which machine this is, and allow one process at a time. What it
# compiles for is said by the topology, not by this machine's type.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
# libtpu 0.0.42.1 emits instructions on threads with a stack of 64 KiB. What a matrix product costs
# is estimated by a function that calls itself for products fused into that one, and at the third
# level, in the gradient of cacophony's step with fsdp=8, it was a segmentation fault.
_COMPILER_FLAGS = {"fibers_default_thread_stack_size": 2**20}
_SPELLING = re.compile(r"(?P<chip>[a-z0-9]+):(?P<shape>\d+(?:x\d+)*)(?:\*(?P<slices>\d+))?")


@dataclasses.dataclass(frozen=True)
class Topology:
    """A kind of chip and how many of them.

    Attributes:
      name: as given.
      chip: its figures; None for simulated CPU devices.
      shape: chips along each axis of a slice, "16x16"; for the CPU their number.
      slices: number of slices, joined by the data centre's network.
    """

    name: str
    chip: Chip | None
    shape: str
    slices: int = 1

    def devices(self) -> list[Any]:
        """Descriptions of the devices; nothing runs on those of a TPU.

        Raises:
          UserError: libtpu is absent, or knows no such topology.
        """
        if self.chip is None:
            return _cpu_devices(int(self.shape))
        from jax.experimental import topologies

        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"--topology={self.name} needs the TPU compiler: pip install 'alm_jax[tpu]' (libtpu"
                " and what it takes, 700 MB), or plan for simulated devices with --topology=cpu:8"
            )
        set_environment()
        options: dict[str, Any] = dict(self.chip.options)
        if self.slices > 1:
            options["num_slices"] = self.slices
        name = f"{self.chip.name}:{self.shape}"
        try:
            return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)
        except Exception as error:  # jaxlib raises more kinds than it documents
            raise UserError(
                f"--topology={self.name}: the TPU compiler does not know it ("
                f"{str(error).splitlines()[0]}); v5e and v6e have two axes, as in v5e:4x4, v4 and"
                " v5p three, as in v5p:2x2x2"
            ) from error


def parse(name: str, num_slices: int = 1) -> Topology:
    """Reads `KIND:SHAPE` or `KIND:SHAPE*SLICES`.

    Args:
      name: such as "v5e:16x16", "v5p:4x4x4", "v5e:4x4*2", "cpu:8".
      num_slices: for a name that says nothing of slices.

    Raises:
      UserError: another spelling, or an unknown kind.
    """
    found = _SPELLING.fullmatch(name)
    kinds = [*CHIPS, "cpu"]
    if found is None or found["chip"] not in kinds:
        raise UserError(
            f"--topology={name}: write KIND:SHAPE, such as v5e:16x16, v5p:4x4x4, v5e:4x4*2 for two"
            f" slices, or cpu:8; the kinds are {', '.join(kinds)}"
        )
    slices = int(found["slices"] or num_slices)
    if found["chip"] == "cpu":
        if "x" in found["shape"] or slices > 1 or int(found["shape"]) < 1:
            raise UserError(f"--topology={name}: the CPU's devices are just a number, as in cpu:8")
        return Topology(name, None, found["shape"])
    if slices < 1:
        raise UserError(f"--topology={name}: the number of slices must be at least 1")
    full = f"{found['chip']}:{found['shape']}" + (f"*{slices}" if slices > 1 else "")
    return Topology(full, CHIPS[found["chip"]], found["shape"], slices)


def simulate(topologies: list[Topology]) -> None:
    """Keeps JAX on the CPU, with as many simulated devices as the topologies ask for.

    To be called before JAX makes its first array.
    """
    jax.config.update("jax_platforms", "cpu")
    wanted = max((int(t.shape) for t in topologies if t.chip is None), default=0)
    if wanted > 1 and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", wanted)


def set_environment() -> None:
    """What libtpu reads when it is loaded; what the user has set stays."""
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    ours = [f"--{name}={value}" for name, value in _COMPILER_FLAGS.items() if name not in given]
    os.environ["LIBTPU_INIT_ARGS"] = " ".join([*given.split(), *ours])


def _cpu_devices(count: int) -> list[Any]:
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(
            f"--topology=cpu:{count}: this process has {len(devices)} devices; XLA_FLAGS sets their"
            f" number, raise it with --xla_force_host_platform_device_count={count}"
        )
    return devices[:count]
