"""The format "audiomae": official checkpoint -> parameters -> the same checkpoint, and refusals."""

import math

import numpy as np
import pytest

from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.interop.audiomae import FORMAT
from alm_jax.interop.importing import from_alm, in_memory, parameter_shapes, to_alm
from tests.parity.audiomae_cases import heads_of, official


@pytest.mark.parametrize("case", ["plain", "overlap", "finetune"])
def test_round_trip(case):
    """Official checkpoint -> import -> export would not give the same file again."""
    tensors = official(case)
    found = to_alm(FORMAT, in_memory(tensors), heads_of(case))
    assert not found.missing + found.unexpected
    again = dict(from_alm(FORMAT, found.config, found.params, found.kept))
    fresh = dict(from_alm(FORMAT, found.config, found.params))
    for back in (again, fresh):
        assert back.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_trained_positions_are_parameters():
    """A table that training has moved would be replaced by the fixed one without a word."""
    tensors = official("swin")
    tensors["pos_embed"] = tensors["pos_embed"] + np.float32(1e-3)
    found = to_alm(FORMAT, in_memory(tensors), heads_of("swin"))
    assert found.config.model.audio.positions == "table"
    assert found.config.model.mae_decoder.positions == "sincos_2d_official"
    np.testing.assert_array_equal(
        found.params["audio"]["positions"]["table"], tensors["pos_embed"][0]
    )


NORM = "norm.bias"
LAYER = "blocks.1.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({}, [], r"model\.audio\.heads"),
        ({"extra.weight": np.zeros(3, np.float32)}, heads_of("swin"), "extra.weight is unexpected"),
        ({NORM: None}, heads_of("swin"), "norm.bias is missing"),
        ({LAYER: np.zeros((128, 64), np.float32)}, heads_of("swin"), r"fc1\.weight is \(128, 64\)"),
        ({"pos_embed": np.zeros((1, 500, 64), np.float32)}, heads_of("swin"), "499 patches"),
        ({}, [*heads_of("swin"), "model.audio.width=96"], "width=96 contradicts"),
    ],
    ids=["heads", "unknown name", "missing", "shape", "grid", "width"],
)
def test_a_checkpoint_that_does_not_fit_is_an_error(change, overrides, message):
    """A model of another size would load in silence and compute nonsense."""
    tensors = {k: v for k, v in (official("swin") | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        to_alm(FORMAT, in_memory(tensors), overrides)


def test_published_sizes():
    """Results at "the paper's size" would be of another model."""

    def counts(spec):
        found = {}
        for name, shape in parameter_shapes(FORMAT, load_config(spec)).items():
            part = name.partition(".")[0]
            found[part] = found.get(part, 0) + math.prod(shape)
        return found

    # The official state dicts without their fixed tables of positions.
    assert counts("audiomae") == {"audio": 85_254_144, "mae_decoder": 51_081_984}
    assert counts("audiomae:overlap") == counts("audiomae")
    assert counts("audiomae:plain_decoder")["mae_decoder"] == 25_745_664
    assert sum(counts("audiomae:finetune").values()) == 85_659_407  # the authors' log
