"""Which device holds what; and that it changes no result (on eight devices made of one CPU)."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from alm_jax.config import load_config
from alm_jax.parallel.mesh import AXES
from alm_jax.parallel.sharding import (
    RULES,
    describe,
    param_shardings,
    partition_spec,
    whole_parameters,
)
from alm_jax.train_state import model_graph
from tests import quick_compilation
from tests.objectives import pairs_reference as reference
from tests.parallel.eight_devices import FLAP_MESHES, GROUP, MESHES, PAIRS, PAIRS_MESHES, B

ROOT = pathlib.Path(__file__).parents[2]
MESH = AbstractMesh((2, 4, 2), AXES)


@pytest.mark.parametrize(
    ("shape", "axes", "spec"),
    [
        ((8, 6), ("embed", "heads"), ("fsdp", "tensor")),
        ((3, 8, 6), ("embed", "mlp"), (None, "fsdp", "tensor")),  # stacked layers
        ((10, 8), ("vocab", "embed"), ("tensor", "fsdp")),
        ((6, 8), ("embed", "heads"), (None, "tensor")),  # four devices do not divide 6
        ((8, 5), ("embed", "heads"), ("fsdp", None)),
        ((8, 8), ("heads", "mlp"), ("tensor", None)),  # an axis shards one dimension
        ((16, 8), ("patch", "embed"), (None, "fsdp")),
        ((8,), (None,), (None,)),
        ((3, 8), ("embed",), (None, None)),  # of a norm: gathering it would cost more
        ((8,), ("mlp",), ("tensor",)),
        ((16, 5, 8), ("batch", None, "mlp"), (("data", "fsdp"), None, "tensor")),  # activations
        ((16, 5, 8), ("batch", None, "embed"), (("data", "fsdp"), None, None)),
        ((12, 5, 8), ("batch", None, None), (None, None, None)),
        ((), (), ()),
    ],
)
def test_rules(shape, axes, spec):
    """Parameters would be whole on every device, or a width of 6 would be refused by 4 of them."""
    assert partition_spec(shape, axes, MESH) == PartitionSpec(*spec)


def test_every_matrix_of_cacophony_is_sharded():
    """A large matrix without a logical axis would fill every device of a pod."""
    _, abstract = model_graph(load_config("cacophony"), 32_000)
    shardings = param_shardings(abstract, MESH)
    params = nnx.to_pure_dict(abstract)
    assert jax.tree.structure(shardings) == jax.tree.structure(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        sharding = shardings
        for key in path:
            sharding = sharding[key.key]
        if leaf.size >= 768 * 768:
            part = np.prod(sharding.shard_shape(leaf.shape)) / leaf.size
            assert part <= 1 / 4, jax.tree_util.keystr(path)
    known = {axis for _, variable in nnx.to_flat_state(abstract) for axis in variable.axes}
    assert known <= {*RULES, "patch", None}, "a logical axis without a rule"


def test_table_at_start():
    """One could not see before a run of days that a parameter lies on every device in full."""
    params = {
        "audio": {"kernel": jax.ShapeDtypeStruct((3, 8, 6), jnp.float32)},
        "scale": jax.ShapeDtypeStruct((), jnp.bfloat16),
    }
    shardings = {
        "audio": {"kernel": NamedSharding(MESH, PartitionSpec(None, "fsdp", "tensor"))},
        "scale": NamedSharding(MESH, PartitionSpec()),
    }
    assert [line.split() for line in describe(params, shardings).splitlines()] == [
        ["parameter", "shape", "dtype", "sharding", "bytes/device"],
        ["audio.kernel", "3x8x6", "float32", "-,fsdp,tensor", "72"],
        ["scale", "scalar", "bfloat16", "-", "2"],
        ["145", "parameters,", "74", "bytes", "a", "device"],
    ]


def test_large_parameters_that_nobody_shares_are_named():
    """A vocabulary of an odd size would fill every device, and only the table would tell."""
    _, abstract = model_graph(load_config("cacophony"), 50_265)
    params = nnx.to_pure_dict(abstract)

    def warning(**sizes):
        mesh = AbstractMesh(tuple((dict(data=1, fsdp=1, tensor=1) | sizes).values()), AXES)
        return whole_parameters(params, param_shardings(abstract, mesh)).splitlines()

    head, *lines = warning(tensor=2)
    assert "mesh.fsdp=1, mesh.tensor=2" in head
    assert [line.split(":")[0].strip() for line in lines] == [
        "text.words 50265x768",
        "caption_decoder.predict.kernel 768x50265",
    ]
    assert warning(fsdp=2) == [], "the width is shared"
    assert warning(data=8) == [], "data parallelism shares nothing"


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Folder with what `eight_devices.py` wrote."""
    folder = tmp_path_factory.mktemp("eight")
    flags = f"--xla_force_host_platform_device_count=8 {quick_compilation.FLAGS}"
    environment = {
        **os.environ,
        "XLA_FLAGS": flags,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        [sys.executable, "-m", "tests.parallel.eight_devices", str(folder)],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return folder


CASES = [(system, mesh) for system in ("", "flap_") for mesh in MESHES if mesh != "one"]
CASES = [(system, mesh) for system, mesh in CASES if not system or mesh in FLAP_MESHES]


@pytest.mark.slow
@pytest.mark.parametrize(("system", "mesh"), CASES)
def test_losses_and_gradients_are_those_of_one_device(eight, system, mesh):
    """Training on more devices would be another training, worst of all a wrong gradient.

    Tolerance: 2e-5 of the largest gradient of a parameter and 5e-8, as sums run in another order;
    gradients that vanish in exact arithmetic (of key biases) are 1e-8 here.
    """
    one, other = np.load(eight / f"{system}one.npz"), np.load(eight / f"{system}{mesh}.npz")
    assert one.files == other.files
    for name in one.files:
        scale = np.abs(one[name]).max()
        np.testing.assert_allclose(
            other[name], one[name], rtol=0, atol=2e-5 * scale + 5e-8, err_msg=name
        )
    losses = {"reconstruction_loss", "contrastive_loss"}
    assert losses | ({"captioning_loss"} if not system else set()) <= set(one.files)
    assert max(np.abs(one[name]).max() for name in one.files if name.endswith("kernel")) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("mesh", PAIRS_MESHES)
def test_pairs_that_meet_in_a_ring(eight, mesh):
    """On a pod the contrastive gradient would be a fraction of the right one."""
    audio, text = PAIRS[:2]

    def both(*x):
        to_text, to_audio = reference.info_nce(*x, GROUP, 0.1)
        return to_text + 0.7 * to_audio

    def binary(*x):
        return reference.sigmoid(*x, GROUP)

    hits = np.mean((audio @ text.T).argmax(1) == np.arange(len(audio)))
    want = [both(*PAIRS[:3]), hits, *reference.slopes(both, PAIRS[:3])]
    want += [binary(*PAIRS), hits, *reference.slopes(binary, PAIRS)]
    found = np.load(eight / f"pairs_{mesh}.npz")
    assert len(found.files) == len(want)
    for number, value in enumerate(want):
        np.testing.assert_allclose(found[str(number)], value, rtol=2e-6, atol=2e-6)


@pytest.mark.slow
def test_what_a_device_holds_and_receives(eight):
    """A larger pod would need more memory a chip, or send whole batches between its chips."""
    facts = json.loads((eight / "facts.json").read_text())
    less, more = facts["temporary"]
    assert less < more < 2.1 * less, "linear in the rows of a device"
    assert more < 0.5 * 16384**2 / 8 * 4, "the logits are never there"
    assert facts["all_to_all"] == 0
    shapes = [tuple(map(int, shape.split(","))) for shape in facts["gathered"] if shape]
    assert shapes, "parameters are gathered"
    assert not [shape for shape in shapes if len(shape) > 2 and shape[0] == B], "and no activations"


@pytest.mark.slow
def test_state_is_drawn_saved_and_restored_on_any_mesh(eight):
    """A run could not move to another number of devices, or would start elsewhere there."""
    facts = json.loads((eight / "facts.json").read_text())
    assert facts["same_start"]
    assert facts["start_laid_out"]
    assert facts["bytes_on_first_device"] < 0.5 * facts["bytes"]
    for name in ("one", "mixed"):
        assert facts[f"restored_on_{name}"]
        assert facts[f"restored_on_{name}_laid_out"]


@pytest.mark.slow
def test_step_keeps_the_layout(eight):
    """Parameters or moments would gather on every device after the first step."""
    facts = json.loads((eight / "facts.json").read_text())
    assert facts["step_laid_out"]
    assert np.isfinite(facts["loss"])
    assert facts["grad_norm"] > 0
