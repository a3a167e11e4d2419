"""The mesh from a config, and what it says when the numbers do not fit the machine."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.parallel.mesh import arrange, batch_sharding, make_mesh, replicated


def sizes(**changed):
    return ConfigDict(dict(data=-1, fsdp=1, tensor=1) | changed)


def test_one_device_needs_no_setting():
    """The quickstart would ask a laptop for mesh sizes."""
    mesh = make_mesh(sizes(), jax.devices()[:1])
    assert mesh.shape == {"data": 1, "fsdp": 1, "tensor": 1}
    # With explicit axes every matmul of the models would need a sharding of its own.
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert batch_sharding(mesh).shard_shape((8, 5)) == (8, 5)
    assert replicated(mesh).is_fully_replicated


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(fsdp=-1), r"mesh\.data=-1, mesh\.fsdp=-1, mesh\.tensor=1: only one axis may be -1"),
        (dict(tensor=2), r"mesh\.tensor=2 needs 2 devices or a divisor of them, there are 1"),
        (dict(data=4), r"mesh\.data=4, .* there are 1"),
        (dict(fsdp=0), r"mesh\.fsdp=0.* there are 1"),
        (dict(data=-2, fsdp=-3), r"mesh\.data=-2"),
    ],
)
def test_sizes_that_do_not_fit_are_named(changed, message):
    """On a pod, the wrong number would be a traceback on every host."""
    with pytest.raises(UserError, match=message):
        make_mesh(sizes(**changed), jax.devices()[:1])


@dataclasses.dataclass(frozen=True)
class Device:
    """Two of four processes are a TPU slice, two devices are a process."""

    id: int
    platform: str = "tpu"
    device_kind: str = "of no known topology"

    @property
    def process_index(self):
        return self.id // 2

    @property
    def slice_index(self):
        return self.id // 4

    @property
    def coords(self):
        return (self.id % 4, 0, 0)

    core_on_chip = 0


def placed(platform, **changed):
    """Numbers of eight devices in the mesh."""
    found = arrange(sizes(**changed), [Device(n, platform) for n in range(8)])
    return np.vectorize(lambda device: device.id)(found)


def test_slices_are_kept_together():
    """Parameters would be gathered over the slow network between slices at every layer."""
    assert placed("tpu").shape == (8, 1, 1), "data parallel over both slices without a setting"
    mesh = placed("tpu", fsdp=2, tensor=2, dcn_data=2)
    assert mesh.shape == (2, 2, 2)
    assert [set(part.flat) for part in mesh] == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    mesh = placed("tpu", data=1, fsdp=4, dcn_data=1, dcn_fsdp=-1)
    assert mesh.shape == (1, 8, 1)
    assert [set(half.flat) for half in np.split(mesh, 2, axis=1)] == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    with pytest.raises(UserError, match=r"mesh\.dcn_data=3.* needs 3 slices .* there are 2"):
        placed("tpu", dcn_data=3)
    message = r"mesh\.fsdp=8.* needs 8 devices of each of 2 slices .* or a divisor.*there are 4"
    with pytest.raises(UserError, match=message):
        placed("tpu", fsdp=8)


def test_processes_of_a_gpu_cluster_are_its_slices_if_asked():
    """As above, over the network between machines."""
    assert placed("gpu", fsdp=8).shape == (1, 8, 1)
    mesh = placed("gpu", fsdp=2, dcn_data=4)
    assert mesh.shape == (4, 2, 1)
    assert [set(part.flat) for part in mesh] == [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    assert placed("gpu", data=2, dcn_data=-1, dcn_tensor=2).shape == (4, 1, 2)
