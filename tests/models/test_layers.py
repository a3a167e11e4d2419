"""Layers against float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from alm_jax.models import layers
from tests.models.reference import attention, softmax
from tests.quick_jit import quick_jit
from tests.random_params import build

RNG = np.random.default_rng(0)
FLOAT32 = jnp.dtype("float32")


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@quick_jit
def _attend(q, k, v, mask):
    return layers.attend(q, k, v, mask)


def test_attend_is_the_softmax_average_of_the_allowed_values():
    """Padding would be attended to, or the softmax run over the wrong axis."""
    q, k, v = normal(2, 5, 3, 4), normal(2, 7, 3, 4), normal(2, 7, 3, 4)
    mask = RNG.random((2, 1, 5, 7)) < 0.6
    mask[..., 0] = True
    logits = np.einsum("blhe,bkhe->bhlk", q.astype(np.float64), k) / np.sqrt(4)
    weights = softmax(np.where(mask, logits, -np.inf))
    want = np.einsum("bhlk,bkhe->blhe", weights, v)
    np.testing.assert_allclose(_attend(q, k, v, mask), want, atol=2e-6)
    # Whatever a masked key or value holds changes no bit.
    mask[..., 3] = False
    got = _attend(q, k, v, mask)
    k[:, 3], v[:, 3] = 100.0, -100.0
    np.testing.assert_array_equal(got, _attend(q, k, v, mask))


def test_attend_in_bfloat16_keeps_its_softmax_in_float32():
    """On TPU the attention of 500 patches would lose a digit where it is summed."""
    q, k, v = (jnp.asarray(normal(1, 4, 2, 8), jnp.bfloat16) for _ in range(3))
    k, v = jnp.tile(k, (1, 128, 1, 1)), jnp.tile(v, (1, 128, 1, 1))
    got = _attend(q, k, v, None)
    assert got.dtype == jnp.bfloat16
    wide = [np.asarray(x, np.float64) for x in (q, k, v)]
    weights = softmax(np.einsum("blhe,bkhe->bhlk", wide[0], wide[1]) / np.sqrt(8))
    want = np.einsum("bhlk,bkhe->blhe", weights, wide[2])
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=2**-7)


@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
def test_attention_projects_splits_heads_and_projects_back(crossed):
    """Heads would be cut along the wrong axis, which no shape reveals."""
    graph, params = build(
        lambda: layers.Attention(12, 3, init="lecun", dtype=FLOAT32, rngs=nnx.Rngs(0))
    )
    x, context = normal(2, 5, 12), normal(2, 6, 12) if crossed else None
    mask = RNG.random((2, 1, 5, 6 if crossed else 5)) < 0.7
    mask[..., 0] = True
    got = quick_jit(lambda p, *a: nnx.merge(graph, p)(*a))(params, x, context, mask)
    np.testing.assert_allclose(got, attention(params, x, 3, context, mask), atol=2e-5)


def test_heads_must_divide_the_width():
    """A config with 5 heads of 12 dimensions would fail in a reshape nobody can read."""
    with pytest.raises(ValueError, match="5 heads do not divide a width of 12"):
        build(lambda: layers.Attention(12, 5, init="lecun", dtype=FLOAT32, rngs=nnx.Rngs(0)))


ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + special.erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * special.expit(x),
    "relu": lambda x: np.maximum(x, 0),
}


def test_activations_are_the_named_ones():
    """RoBERTa weights need the exact GELU; the tanh form shifts every hidden state a little."""
    assert ACTIVATIONS.keys() == layers.ACTIVATIONS.keys()
    x = np.linspace(-6, 6, 201, dtype=np.float32)
    for name, reference in ACTIVATIONS.items():
        got = quick_jit(layers.ACTIVATIONS[name])(x)
        np.testing.assert_allclose(got, reference(x.astype(np.float64)), atol=2e-6, err_msg=name)


def test_unknown_activation_is_named():
    """A typing error in the config would be a KeyError without the choices."""
    with pytest.raises(ValueError, match=r"activation is 'swish'.*silu"):
        build(lambda: layers.Mlp(4, 8, "swish", init="lecun", dtype=FLOAT32, rngs=nnx.Rngs(0)))


def test_layer_norm_keeps_its_digits_far_from_zero():
    """Spectrogram offsets of a few hundred would turn into noise (the fast variance cancels)."""
    graph, params = build(lambda: layers.layer_norm(64, eps=1e-6, rngs=nnx.Rngs(0)))
    x = (300 + 0.1 * RNG.standard_normal((3, 64))).astype(np.float32)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    got = quick_jit(lambda p: nnx.merge(graph, p)(x))(params)
    np.testing.assert_allclose(got, want * params["scale"] + params["bias"], atol=2e-3)


def test_initializers_have_the_published_spread():
    """A tower that starts with other variances trains differently from the recipe it names."""
    want = {"lecun": 1 / np.sqrt(200), "xavier": np.sqrt(2 / (200 + 100)), "bert": 0.02}
    assert want.keys() == layers.INITIALIZERS.keys()
    for name, std in want.items():
        draw = quick_jit(layers.INITIALIZERS[name](), static_argnums=(1, 2))
        kernel = draw(jax.random.key(0), (200, 100), jnp.float32)
        assert np.std(kernel) == pytest.approx(std, rel=0.02), name
        assert abs(np.mean(kernel)) < 0.02 * std, name


@quick_jit
def _dropout(x, key):
    return layers.dropout(x, 0.25, key)


def test_dropout_keeps_the_mean_and_is_off_without_a_key():
    """Embeddings would differ from call to call, or be larger in training than in use."""
    x = np.ones((100, 200), np.float32)
    assert layers.dropout(x, 0.25, None) is x
    assert layers.dropout(x, 0.0, jax.random.key(0)) is x
    y = np.asarray(_dropout(x, jax.random.key(0)))
    np.testing.assert_allclose(y[y != 0], 1 / 0.75, rtol=1e-6)
    assert (y == 0).mean() == pytest.approx(0.25, abs=4.5 * np.sqrt(0.25 * 0.75 / y.size))


def test_drop_path_takes_whole_examples():
    """Stochastic depth would turn into dropout of single numbers."""
    x = np.ones((2000, 3, 4), np.float32)
    assert layers.drop_path(x, 0.3, None) is x
    y = np.asarray(quick_jit(layers.drop_path)(x, 0.3, jax.random.key(0))).reshape(2000, -1)
    assert ((y == 0).all(1) | (y != 0).all(1)).all()
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-6)
    assert (y[:, 0] == 0).mean() == pytest.approx(0.3, abs=4.5 * np.sqrt(0.3 * 0.7 / 2000))
    np.testing.assert_array_equal(layers.drop_path(x[:5], 0.0, jax.random.key(0)), x[:5])


def test_sincos_positions_are_sin_then_cos_of_a_geometric_range():
    """Interleaved sines and cosines (the other common layout) ruin a released encoder."""
    index = np.array([[0, 1, 7], [61, 186, 9999]])
    rate = 10000.0 ** (-np.arange(48) * 2 / 96)
    angle = index[..., None] * rate
    want = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
    got = quick_jit(layers.sincos_positions, static_argnums=1)(index, 96)
    # Up to 187 columns of 16 frames are 30 s; far beyond, float32 angles are coarse.
    np.testing.assert_allclose(got[0], want[0], atol=1e-6)
    np.testing.assert_allclose(got[1], want[1], atol=2e-3)


def test_dropout_of_attention_weights():
    """A text tower would be regularised in another way than the published one, or in evaluation."""
    draws, batch, length, heads, size = 400, 2, 3, 2, 4
    q, k, v = (
        normal(batch, length, heads, size),
        normal(batch, 5, heads, size),
        normal(batch, 5, heads, size),
    )
    mask = np.ones((batch, 1, length, 5), bool)
    mask[..., 3] = False
    keys = jax.random.split(jax.random.key(0), draws)

    @quick_jit
    def dropped(q, k, v, mask, keys):
        return jax.vmap(lambda key: layers.attend(q, k, v, mask, 0.25, key))(keys)

    plain, found = _attend(q, k, v, mask), np.asarray(dropped(q, k, v, mask, keys), float)
    np.testing.assert_array_equal(layers.attend(q, k, v, mask, 0.25), plain)
    logits = np.einsum("blhe,bkhe->bhlk", q.astype(float), k) / np.sqrt(size)
    weights = softmax(np.where(mask, logits, -np.inf))
    # Each weight stays with 3/4 and grows by 4/3: the mean stays, and of the weights' squares a
    # third is the variance.
    squares = np.einsum("bhlk,bkhe->blhe", weights**2, v.astype(float) ** 2)
    error = (found.mean(axis=0) - plain) / np.sqrt(squares / 3 / draws)
    # Errors of one head and query come from the same draws, so there are 12 independent ones, whose
    # root mean square spreads by 0.2 around 1: three times that.
    assert np.abs(error).max() < 4.5 and 0.4 < np.sqrt((error**2).mean()) < 1.6
    np.testing.assert_allclose(found.var(axis=0) / (squares / 3), 1.0, atol=0.45)
    # Two examples with the same content are dropped apart, and so are two heads.
    same = [np.repeat(x[:1, :, :1], 2, axis=0).repeat(2, axis=2) for x in (q, k, v)]
    one = np.asarray(dropped(*same, mask, keys[:1]))[0]
    assert (one[0] != one[1]).any() and (one[0, :, 0] != one[0, :, 1]).any()
