"""AudioMAE's training against the official loop: twelve steps, schedule, decay groups, rates."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alm_jax.audio.masking import MaskingConfig, Noise, split_view
from alm_jax.checkpoints import flat_names
from alm_jax.config import load_config
from alm_jax.interop.audiomae import FORMAT
from alm_jax.interop.importing import from_alm
from alm_jax.interop.links import Link
from alm_jax.objectives.reconstruction import reconstruction
from alm_jax.optim import decay_mask, layer_rates, make_optimizer, schedule
from alm_jax.train_state import model_graph
from tests.parity.audiomae_cases import ARRAYS, FACTS, imported, patches_of, uniform
from tests.quick_jit import quick_jit


def test_twelve_steps_of_pretraining():
    """Schedule, decay groups or AdamW of the recipe would differ from the official loop's."""
    config, graph, params = imported("plain")
    given, want = FACTS["train"]["schedule"], FACTS["train"]
    per_epoch = given["steps_per_epoch"]
    optim = config.optim.copy_and_resolve_references()
    optim.update(
        lr=given["lr"],
        end_factor=given["min_lr"] / given["lr"],
        warmup_steps=given["warmup_epochs"] * per_epoch,
        weight_decay=0.05,
    )
    steps = given["epochs"] * per_epoch
    rates = [float(schedule(optim, steps)(i)) for i in range(12)]
    np.testing.assert_allclose(rates, ARRAYS["train/lrs"], rtol=1e-5)
    optimizer = make_optimizer(optim, steps, params)

    @quick_jit
    def step(params, opt_state, patches, noise):
        def loss_of(params):
            model = nnx.merge(graph, params)
            view = split_view(Noise(noise), patches, MaskingConfig(**config.masking))
            forward = SimpleNamespace(
                model=model,
                view=view,
                audio_hidden=model.audio(view.visible),
                key_for=lambda name: None,
            )
            return reconstruction(forward, config.objectives.reconstruction)[0]

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss, optax.tree.norm(grads)

    opt_state, losses, norms = optimizer.init(params), [], []
    for i in range(12):
        noise = jnp.asarray(uniform(f"train/noise{i}", (2, 512)))
        params, opt_state, loss, norm = step(
            params, opt_state, patches_of(config, f"train/spec{i % 4}"), noise
        )
        losses.append(loss)
        norms.append(norm)
    np.testing.assert_allclose(losses, ARRAYS["train/losses"], rtol=1e-4)
    np.testing.assert_allclose(norms, ARRAYS["train/grad_norms"], rtol=1e-3)
    final = dict(from_alm(FORMAT, config, jax.tree.map(np.asarray, params)))
    for name, norm in want["final_norm"].items():
        np.testing.assert_allclose(np.linalg.norm(final[name]), norm, rtol=1e-4, err_msg=name)
    for key in ARRAYS:
        if key.startswith("train/final/"):
            # The twelve steps move a value by about 1e-2.
            mine = final[key.removeprefix("train/final/")].ravel()[:32]
            np.testing.assert_allclose(mine, ARRAYS[key], atol=1e-4, err_msg=key)


def test_decayed_in_pretraining():
    """A norm that decays, or a matrix that does not, is another recipe."""
    config, _, params = imported("plain")
    decayed = flat_names(decay_mask(params))
    found = {
        link.official
        for link in FORMAT.links(config)
        if isinstance(link, Link) and decayed[link.slots[0].name]
    }
    assert {name for name in found if "blocks.1" not in name} == set(FACTS["train"]["decay"])


@pytest.mark.parametrize("run", ["a", "b"])
def test_schedule(run):
    """The learning rate of a published run would be another at some step."""
    given = FACTS["schedule"][run]
    epochs = ARRAYS[f"schedule/epochs_{run}"]
    per_epoch = round(1 / (epochs[1] - epochs[0]))
    optim = load_config("audiomae").optim.copy_and_resolve_references()
    optim.update(
        lr=given["lr"],
        end_factor=given["min_lr"] / given["lr"],
        warmup_steps=given["warmup_epochs"] * per_epoch,
    )
    rate = schedule(optim, given["epochs"] * per_epoch)
    mine = np.asarray([rate(round(epoch * per_epoch)) for epoch in epochs])
    np.testing.assert_allclose(mine, ARRAYS[f"schedule/lr_{run}"], rtol=1e-5, atol=1e-10)


def test_layer_decay():
    """Fine-tuning would move the first layers as far as the last."""
    config = load_config("audiomae:finetune")
    _, abstract = model_graph(config, 0)
    shapes = nnx.to_pure_dict(abstract)
    rates = flat_names(layer_rates(shapes, config.optim.layer_decay))
    decayed = flat_names(decay_mask(shapes, config.optim.not_decayed))
    groups = dict(FACTS["schedule"]["groups"])
    for link in FORMAT.links(config):
        if link.official not in groups:
            continue
        rate, decay = groups.pop(link.official)
        for slot in link.slots:
            mine = rates[slot.name] if slot.index is ... else rates[slot.name][slot.index]
            np.testing.assert_allclose(np.squeeze(mine), rate, rtol=1e-6, err_msg=link.official)
            assert decayed[slot.name] == bool(decay), link.official
    assert not groups
