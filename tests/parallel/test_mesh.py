"""The mesh from a config, and what it says when the numbers do not fit the machine."""

import jax
import pytest
from jax.sharding import AxisType
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.parallel.mesh import batch_sharding, make_mesh, replicated


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
