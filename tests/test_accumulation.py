"""Batches computed in parts: the same gradient, for less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.accumulation import check_parts, gradients
from alm_jax.checkpoints import flat_names
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.objectives.forward import Forward
from alm_jax.parallel.mesh import make_mesh
from alm_jax.train_state import make_setup, model_graph
from alm_jax.train_step import loss_of_rows, make_train_step, rows_of_objectives
from tests.parallel.eight_devices import V, batch, both_stages, flap
from tests.quick_jit import quick_jit
from tests.random_params import draw_like
from tests.small_configs import stage1, stage2

RNG = np.random.default_rng(0)
BATCH = {name: jnp.asarray(value) for name, value in batch().items()}
SYSTEMS = {"contrastive, captioning and MAE": both_stages, "FLAP, two views": flap}


def parts_of(config):
    """The two functions that `gradients` takes, and random parameters."""
    graph, abstract = model_graph(config, V)
    key = jax.random.key(3)

    def rows_of(params, batch, part):
        forward = Forward(nnx.merge(graph, params), batch, config, key, part=part)
        return rows_of_objectives(forward, config), {}

    def loss_of(params, rows):
        return loss_of_rows(rows, nnx.merge(graph, params), config)

    return rows_of, loss_of, draw_like(nnx.to_pure_dict(abstract))


def close(got, want, tolerance=2e-5):
    """Gradients equal but for the order of sums, as on several devices (test_sharding.py)."""
    want = flat_names(want)
    for name, leaf in flat_names(got).items():
        scale = np.abs(want[name]).max()
        np.testing.assert_allclose(
            leaf, want[name], rtol=0, atol=tolerance * scale + 5e-8, err_msg=name
        )


@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS.keys())
def test_gradient_is_that_of_the_whole_batch(system):
    """A recipe that needs parts to fit would be another recipe, with a quarter of the negatives."""
    config = system("model.text.dropout=0.0", "model.text.attention_dropout=0.0")
    rows_of, loss_of, params = parts_of(config)

    def run(parts):
        compute = quick_jit(lambda p: gradients(rows_of, loss_of, p, BATCH, parts))
        loss, metrics, _, grads = compute(params)
        return metrics | {"loss": loss}, grads

    (whole, want), (divided, got) = run(1), run(4)
    assert whole.keys() == divided.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(divided[name], value, rtol=1e-5, err_msg=name)
    close(got, want)


def test_both_passes_draw_alike():
    """With dropout, the gradient would be of another draw than the embeddings it is taken at."""
    x, w = RNG.standard_normal((8, 3)), jnp.asarray(RNG.standard_normal((3, 4)))

    def rows_of(w, batch, part):
        """Two views of an example, with dropout."""
        key = Forward(None, batch, stage2(), jax.random.key(0), part=part).key_for("audio")
        kept = jax.random.bernoulli(key, 0.6, (*batch["x"].shape[:1], 2, 4))
        views = (batch["x"] @ w)[:, None] * kept
        return {"y": jnp.tanh(views).reshape(-1, 4), "number": batch["number"], "kept": kept}, {}

    def loss_of(w, rows):
        first, second = rows["y"].reshape(-1, 2, 4).swapaxes(0, 1)
        weights = 1.0 + rows["number"]
        return jnp.sum(jnp.square(first @ second.T + w.sum()) * weights), {"rows": rows}

    def at_once(w):
        """Every second example is of a part."""
        parts = [rows_of(w, {k: v[n::2] for k, v in batch.items()}, n)[0] for n in range(2)]
        both = {k: jnp.stack([part[k] for part in parts], axis=1) for k in ("number", "kept")}
        y = jnp.stack([part["y"].reshape(4, 2, 4) for part in parts], axis=1)
        rows = {k: v.reshape(8, *v.shape[2:]) for k, v in both.items()}
        return loss_of(w, rows | {"y": y.reshape(16, 4)})

    batch = {"x": jnp.asarray(x), "number": jnp.arange(8)}
    (want, aux), slope = quick_jit(jax.value_and_grad(at_once, has_aux=True))(w)
    loss, metrics, _, grads = quick_jit(lambda w: gradients(rows_of, loss_of, w, batch, 2))(w)
    assert loss == pytest.approx(float(want), rel=1e-5)
    for name, rows in aux["rows"].items():
        np.testing.assert_allclose(metrics["rows"][name], rows, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(grads, slope, rtol=1e-5)
    kept = np.asarray(metrics["rows"]["kept"])
    assert (kept[0::2] != kept[1::2]).any(), "parts must not share their draws"


def compiled_step(config):
    setup = make_setup(config, V, make_mesh(config.mesh, jax.devices()[:1]))
    rows = config.data.batch_size
    shapes = {k: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for k, x in BATCH.items()}
    return quick_jit(make_train_step(config, setup)).lower(setup.shapes, shapes).compile()


def test_memory_falls_and_what_sums_over_examples_is_computed_once():
    """The field would save nothing, or a masked autoencoder would pay for two forward passes."""
    fields = ["data.batch_size=32", "model.audio.depth=3", "optim.name=adamw"]
    whole, parts = (
        compiled_step(stage1(*fields, f"train.microbatches={parts}")) for parts in (1, 8)
    )
    memory = [c.memory_analysis().temp_size_in_bytes for c in (whole, parts)]
    assert memory[1] < 0.25 * memory[0]
    # Of a loop the cost of one turn is counted; a forward pass would be a third more.
    flops = [c.cost_analysis()["flops"] for c in (whole, parts)]
    assert flops[1] < flops[0] / 8 * 1.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 8, 1, {}), r"microbatches=3 does not divide data\.batch_size=8"),
        ((4, 8, 4, {}), r"parts that 4 device\(s\) can share"),
        ((0, 8, 1, {}), r"microbatches=0"),
        ((2, 8, 1, {"mean": 0}), r"has batch norms.*set train\.microbatches=1"),
    ],
)
def test_what_cannot_be_divided_is_refused(arguments, message):
    """The run would end in a traceback, or train on other statistics without a word."""
    with pytest.raises(UserError, match=message):
        check_parts(*arguments)


def test_batch_norm_is_refused_before_anything_is_compiled():
    """HTSAT in parts would train with the statistics of each part by itself."""
    check_parts(2, 8, 4, {})
    config = load_config("laion_clap", ["train.microbatches=2"])
    with pytest.raises(UserError, match="has batch norms"):
        make_train_step(config, make_setup(config, V, make_mesh(config.mesh, jax.devices()[:1])))
