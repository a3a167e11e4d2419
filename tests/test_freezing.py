"""Parameters that are not trained: no update, no optimiser state, no gradient, no statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alm_jax.checkpoints import flat_names
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.freezing import frozen_names, hold, hold_statistics
from alm_jax.models.batch_norm import BatchNorm
from alm_jax.optim import make_optimizer

RNG = np.random.default_rng(0)
PARAMS = {
    "audio": {"embed": {"kernel": RNG.standard_normal((3, 4)), "bias": np.ones(4)}},
    "classifier": {"predict": {"kernel": RNG.standard_normal((4, 2)), "bias": np.zeros(2)}},
}
PARAMS = jax.tree.map(lambda x: x.astype(np.float32), PARAMS)


def optim(**changed):
    config = load_config("opensounds_labels").optim.copy_and_resolve_references().unlock()
    config.update({"layer_decay": 1.0, "warmup_steps": 0, "weight_decay": 0.1, **changed})
    return config


def test_what_is_trained_moves_as_if_it_were_alone():
    """A probe would move the encoder, keep moments of it, or clip by its gradients."""
    config = optim(frozen=("^audio",), not_decayed=("bias$",))
    whole = make_optimizer(config, 10, PARAMS)
    head = {"classifier": PARAMS["classifier"]}
    alone = make_optimizer(optim(not_decayed=("bias$",)), 10, head)
    grads = jax.tree.map(lambda x: jnp.asarray(100.0 * x + 1.0), PARAMS)
    state, other = whole.init(PARAMS), alone.init(head)
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for _ in range(3):
        updates, state = whole.update(grads, state, PARAMS)
        wanted, other = alone.update({"classifier": grads["classifier"]}, other, head)
    jax.tree.map(np.testing.assert_array_equal, updates["classifier"], wanted["classifier"])
    assert all(not leaf.any() for leaf in jax.tree.leaves(updates["audio"]))
    assert jax.tree.structure(optax.apply_updates(PARAMS, updates)) == jax.tree.structure(PARAMS)


def test_no_gradient_reaches_what_is_frozen():
    """A probe would cost as much as fine-tuning, and report the norm of gradients not taken."""
    names = frozen_names(PARAMS, ("^audio",))
    assert names == {"audio.embed.kernel", "audio.embed.bias"}

    def loss(params):
        params = hold(params, names)
        x = jnp.ones((2, 3)) @ params["audio"]["embed"]["kernel"] + params["audio"]["embed"]["bias"]
        return jnp.sum((x @ params["classifier"]["predict"]["kernel"]) ** 2)

    grads = flat_names(jax.grad(loss)(PARAMS))
    assert {name for name, grad in grads.items() if grad.any()} == {"classifier.predict.kernel"}


def test_a_frozen_batch_norm_computes_as_in_evaluation():
    """The frozen encoder of a probe would change from batch to batch, and drift."""

    class Two(nnx.Module):
        def __init__(self):
            self.audio, self.head = BatchNorm(4), BatchNorm(4)

    model = Two()
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    model.train()
    hold_statistics(model, frozen_names(params, ("^audio",)))
    x = jnp.asarray(RNG.standard_normal((8, 4)) * 3 + 2, jnp.float32)
    np.testing.assert_allclose(model.audio(x), x / np.sqrt(1 + 1e-5), rtol=1e-5)
    np.testing.assert_allclose(model.head(x).mean(0), np.zeros(4), atol=1e-5)
    assert not model.audio.mean.get_value().any() and model.head.mean.get_value().all()


def test_patterns_that_cannot_be_meant_are_named():
    """A typing error would train the encoder that should stay as it is."""
    with pytest.raises(UserError, match=r"optim\.frozen: '\^audoi' matches no parameter.*audio"):
        frozen_names(PARAMS, ("^audoi",))
    with pytest.raises(UserError, match=r"leaves nothing to train"):
        frozen_names(PARAMS, ("audio", "classifier"))
    assert frozen_names(PARAMS, ()) == frozenset()
