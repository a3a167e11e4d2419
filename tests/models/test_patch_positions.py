"""Positions of patches against sums written out in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.errors import UserError
from alm_jax.models.patch_positions import PatchShape, fixed_table, make_positions

C, R, D = 5, 3, 8
SHAPE = PatchShape(pixels=4, freq_rows=R, columns=C)
TIME, FREQ = (place.ravel() for place in np.meshgrid(np.arange(C), np.arange(R), indexing="ij"))


def code(place):
    """Sines and cosines of a place at the rates 1 and 1/100: a quarter of D each."""
    angles = [place, place / 100.0]
    return [np.sin(a) for a in angles] + [np.cos(a) for a in angles]


def positions(kind, shape=SHAPE, width=D):
    return make_positions(kind, width, shape, rngs=nnx.Rngs(params=0))


@pytest.mark.parametrize("kind", ["sincos_2d", "sincos_2d_official", "table"])
def test_fixed_codes(kind):
    """Patches of one column would look as far apart as those of different columns, or worse."""
    made = positions(kind)
    found = made(jnp.asarray(TIME)[None], jnp.asarray(FREQ)[None])[0]
    for token, (time, freq) in enumerate(zip(TIME, FREQ, strict=True)):
        first, second = freq, time
        if kind == "sincos_2d_official":  # of a table that is R x C
            first, second = token % C, token // C
        np.testing.assert_allclose(found[token], code(first) + code(second), atol=1e-6)
    np.testing.assert_array_equal(made.of_class_token(), np.zeros(D))


@pytest.mark.parametrize("kind", ["sincos_2d", "sincos_2d_official"])
def test_table_of_an_official_file(kind):
    """A written checkpoint would hold other positions than the model computes with."""
    table = fixed_table(kind, D, SHAPE)
    assert table.dtype == np.float32
    found = positions(kind)(jnp.asarray(TIME), jnp.asarray(FREQ))
    np.testing.assert_allclose(table[1:], found, atol=1e-6)
    assert not table[0].any()


def test_only_a_table_is_trained():
    """Fixed positions would drift, or trained ones stay where they are."""
    for kind in ("sincos_2d", "sincos_2d_official"):
        assert not nnx.to_flat_state(nnx.state(positions(kind)))
    table = positions("table").table
    assert table.get_value().shape == (1 + C * R, D)
    # A table of another length would be read past its end without a word.
    assert table.get_metadata()["axes"] == (None, "embed")


@pytest.mark.parametrize(
    ("kind", "shape", "width", "message"),
    [
        ("sincos", SHAPE, D, "positions is 'sincos'"),
        ("sincos_2d", SHAPE, 6, "a width that 4 divides, not 6"),
        ("sincos_2d_official", PatchShape(4, R), D, r"set patches\.frames"),
        ("table", PatchShape(4, R), D, r"set patches\.frames"),
    ],
)
def test_wrong_settings_are_named(kind, shape, width, message):
    """A config's typing error would surface as a shape error deep inside XLA."""
    with pytest.raises(UserError, match=message):
        positions(kind, shape, width)
