"""Names, layouts and the safetensors file."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from alm_jax.interop.tensors import from_torch, to_torch, write_safetensors
from alm_jax.interop.torch_modelling.files import read_safetensors

RNG = np.random.default_rng(0)
PARAMS = {
    "audio.embed.kernel": RNG.standard_normal((6, 4)).astype(np.float32),
    "audio.norm.scale": RNG.standard_normal(4).astype(np.float32),
    "audio.transformer.blocks.mlp.up.kernel": RNG.standard_normal((3, 4, 5)).astype(np.float32),
    "audio.transformer.blocks.mlp.up.bias": RNG.standard_normal((3, 5)).astype(np.float32),
    "tower.stem.kernel": RNG.standard_normal((3, 2, 1, 7)).astype(np.float32),
    "logit_scale": np.float32(2.5),
}


def test_names_and_layout_are_pytorchs():
    """Wrong names or a matrix that is not transposed would not load into torch.nn modules."""
    found = dict(to_torch(PARAMS))
    assert sorted(found) == sorted(
        ["audio.embed.weight", "audio.norm.weight", "tower.stem.weight", "logit_scale"]
        + [f"audio.transformer.blocks.{n}.mlp.up.{p}" for n in range(3) for p in ("weight", "bias")]
    )
    np.testing.assert_array_equal(found["audio.embed.weight"], PARAMS["audio.embed.kernel"].T)
    second = found["audio.transformer.blocks.1.mlp.up.weight"]
    np.testing.assert_array_equal(second, PARAMS["audio.transformer.blocks.mlp.up.kernel"][1].T)
    # torch.nn.Conv2d: [outputs, inputs, height, width]
    assert found["tower.stem.weight"].shape == (7, 1, 3, 2)
    assert found["tower.stem.weight"][6, 0, 2, 1] == PARAMS["tower.stem.kernel"][2, 1, 0, 6]


def test_round_trip_is_exact():
    """A parameter changed on the way back would make an exported model another model in JAX."""
    tensors = dict(to_torch(PARAMS))
    back = from_torch({name: np.shape(a) for name, a in PARAMS.items()}, tensors.__getitem__)
    assert back.keys() == PARAMS.keys()
    for name, array in PARAMS.items():
        np.testing.assert_array_equal(back[name], array)


def test_file_is_read_by_the_safetensors_package_and_by_the_modelling_file(tmp_path):
    """The file must be what every other tool takes for safetensors."""
    path = tmp_path / "model.safetensors"
    count = write_safetensors(path, PARAMS)
    assert count == sum(np.size(array) for array in PARAMS.values())
    official, own, wanted = load_file(path), read_safetensors(path), dict(to_torch(PARAMS))
    assert official.keys() == own.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(official[name], array)
        np.testing.assert_array_equal(own[name].numpy(), array)


def test_truncated_file_is_named(tmp_path):
    """A download that broke off must not become a model with random memory in it."""
    path = tmp_path / "model.safetensors"
    write_safetensors(path, PARAMS)
    whole = path.read_bytes()
    for size in (len(whole) - 1, 100):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"model\.safetensors.*cut short"):
            read_safetensors(path)


def test_wrong_shape_is_named():
    """A tensor of another model must be refused by name."""
    tensors = dict(to_torch(PARAMS))
    with pytest.raises(ValueError, match=r"audio\.embed\.weight has the shape \(6, 4\)"):
        from_torch({"audio.embed.kernel": (7, 4)}, tensors.__getitem__)
