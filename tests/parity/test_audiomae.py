"""Our AudioMAE against outputs of the official code (facebookresearch/AudioMAE @ bd60e29).

Tolerances: `ATOL` on values of order 1, losses 2e-6 and gradient norms 1e-4 relative.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alm_jax.audio.masking import MaskingConfig, split_view
from alm_jax.interop.audiomae import FORMAT
from alm_jax.interop.importing import from_alm
from alm_jax.models.windows import WindowGrid
from alm_jax.objectives.reconstruction import patch_target
from tests.parity.audiomae_cases import (
    ARRAYS,
    ATOL,
    FACTS,
    PRETRAINED,
    imported,
    index,
    kept_order,
    noise_2d,
    patches_of,
    places,
    prepared,
)
from tests.quick_jit import quick_jit


def layers(blocks, x, *args, count=2, **each):
    """States after every one of the first layers of a stack; `each` are functions of the layer."""
    graph, state = nnx.split(blocks)
    out = []
    for i in range(count):
        block = nnx.merge(graph, jax.tree.map(lambda p, i=i: p[i], state))
        x = block(x, *args, **{name: value(i) for name, value in each.items()})
        out.append(x)
    return out


@functools.cache
def results(case):
    """Everything that the tests compare, from one compiled program.

    Both losses are computed, raw targets first. The gradients of the raw one cost a second run, so
    only the two standard models have them.
    """
    config, graph, params = imported(case)
    patches, (visible, dropped) = prepared(case)
    weight = dropped.mask.astype(jnp.float32)

    def loss_of(params, choice):
        model = nnx.merge(graph, params)
        hidden = model.audio(visible)
        predicted = model.mae_decoder(hidden, visible, dropped)
        targets = jnp.stack([patch_target(dropped.values, c) for c in (False, True)])
        losses = jnp.sum(jnp.mean((predicted - targets) ** 2, -1) * weight, (1, 2)) / weight.sum()
        return losses[choice], (losses, hidden, predicted)

    run = quick_jit(jax.grad(loss_of, has_aux=True))
    grads = {}
    for choice in (0, 1) if case in ("plain", "swin") else (1,):
        grads[choice], (losses, hidden, predicted) = run(params, choice)
    return SimpleNamespace(
        config=config,
        graph=graph,
        params=params,
        patches=patches,
        visible=visible,
        dropped=dropped,
        hidden=np.asarray(hidden),
        predicted=np.asarray(predicted),
        losses=losses,
        grads=grads,
    )


@pytest.mark.parametrize("case", PRETRAINED)
def test_masked_patches(case):
    """Another share of patches, or other rows and columns, would be dropped than is published."""
    patches, (visible, dropped) = prepared(case)
    slots = patches.mask.shape[1]
    want = np.unpackbits(ARRAYS[f"{case}/mask"], axis=1)[:, :slots].astype(bool)
    for view, inside in ((visible, ~want), (dropped, want)):
        for clip, found in enumerate(index(view, case)):
            np.testing.assert_array_equal(found[found >= 0], np.flatnonzero(inside[clip]))


def slots_there(case, clip, every):
    """Our slots of every n-th token that the official encoder sees, class token first."""
    _, (visible, _) = prepared(case)
    found = index(visible, case)[clip]
    kept = found[found >= 0]
    there = np.concatenate([[-1], kept_order(case, clip, len(kept))])[::every]
    return np.where(there < 0, 0, 1 + np.searchsorted(kept, there))


@pytest.mark.parametrize("case", PRETRAINED)
def test_encoder_states(case):
    """Features of a released pretrained encoder would not be its authors'."""
    r = results(case)
    for clip, golden in enumerate(ARRAYS[f"{case}/latent"]):
        slots = slots_there(case, clip, 16 if case == "overlap" else 8)
        np.testing.assert_allclose(r.hidden[clip][slots], golden, atol=ATOL)
    valid = np.pad(np.asarray(r.visible.mask), ((0, 0), (1, 0)), constant_values=True)
    np.testing.assert_allclose(
        np.linalg.norm(r.hidden[valid]), FACTS["cases"][case]["norms"][1], rtol=1e-5
    )


@pytest.mark.parametrize("case", PRETRAINED)
def test_predictions(case):
    """A released decoder would draw other spectrograms than its authors' figures show."""
    r = results(case)
    golden = ARRAYS[f"{case}/pred"]  # patches 0, 32, ..., every eighth pixel
    compared = 0
    for clip, found in enumerate(index(r.dropped, case)):
        for row, place in enumerate(range(0, 32 * golden.shape[1], 32)):
            if place in found:
                mine = r.predicted[clip][np.flatnonzero(found == place)[0]]
                np.testing.assert_allclose(mine[::8], golden[clip, row], atol=ATOL)
                compared += 1
    assert compared > 20


@pytest.mark.parametrize("case", PRETRAINED)
def test_losses_and_gradients(case):
    """Pretraining would take other steps than the official code does."""
    r, want = results(case), FACTS["cases"][case]
    np.testing.assert_allclose(r.losses, [want["loss0"], want["loss1"]], rtol=2e-6)
    for choice, grads in r.grads.items():
        np.testing.assert_allclose(optax.tree.norm(grads), want[f"grad_total{choice}"], rtol=1e-4)
        theirs = dict(from_alm(FORMAT, r.config, jax.tree.map(np.asarray, grads)))
        for name, norm in want[f"grad_norms{choice}"].items():
            np.testing.assert_allclose(np.linalg.norm(theirs[name]), norm, rtol=1e-4, err_msg=name)
            if (key := f"{case}/grad{choice}/{name}") in ARRAYS:
                # Entries differ by the rounding of the whole gradient, so its size is the measure.
                np.testing.assert_allclose(
                    theirs[name].ravel()[:16], ARRAYS[key], atol=1e-5 * norm + 1e-7, err_msg=name
                )


@pytest.mark.parametrize("case", ["plain", "overlap"])
def test_places_and_first_encoder_layer(case):
    """An error in positions or order of the blocks would hide behind the following layers."""
    r = results(case)
    facts = FACTS["cases"][case]
    np.testing.assert_array_equal(places(facts["rows"])[::64], ARRAYS[f"{case}/places"])

    @quick_jit
    def run(params):
        model = nnx.merge(r.graph, params)
        x, mask = model.audio.tokens(r.visible)
        none = (None,) * 3
        blocks = model.audio.transformer.blocks
        first = layers(blocks, x, mask[:, None, None], *none, 0.0, count=1)
        return model.audio.embed(r.patches.values), first[0]

    embedded, first = run(r.params)
    np.testing.assert_allclose(np.linalg.norm(embedded), facts["norms"][0], rtol=1e-5)
    for clip, golden in enumerate(ARRAYS[f"{case}/enc_block0"]):
        slots = slots_there(case, clip, 40 if case == "overlap" else 16)
        np.testing.assert_allclose(first[clip][slots], golden, atol=ATOL)


@pytest.mark.parametrize("case", ["swin", "noshift", "overlap"])
def test_window_layers(case):
    """A window or shift in the wrong place would be noise that the other 15 layers average."""
    r = results(case)

    @quick_jit
    def run(params):
        decoder = nnx.merge(r.graph, params).mae_decoder
        x = decoder.grid(r.hidden, r.visible)
        grid = WindowGrid.of(*x.shape[1:3], decoder.transformer.config)
        states = layers(
            decoder.transformer.blocks,
            grid.to_windows(x),
            grid,
            moved=lambda i: i % 2 == 1 and any(grid.shift),
            key=lambda i: None,
        )
        return [grid.from_windows(state).reshape(2, -1, 64) for state in states]

    for layer, state in enumerate(run(r.params)):
        golden = ARRAYS[f"{case}/dec_block{layer}"]  # tokens 0, 64, ... of the grid
        np.testing.assert_allclose(state[:, ::64], golden, atol=ATOL)


def test_plain_decoder_layers():
    """Without its order the plain decoder must still give every token the official state."""
    r = results("plain")

    @quick_jit
    def run(params):
        decoder = nnx.merge(r.graph, params).mae_decoder
        x, mask = decoder.tokens(r.hidden, r.visible, r.dropped)
        none = (None,) * 3
        return layers(decoder.transformer.blocks, x, mask[:, None, None], *none, 0.0)

    # Ours are class token, visible, dropped; theirs class token, then the grid.
    ours = np.concatenate([index(r.visible, "plain"), index(r.dropped, "plain")], axis=1)
    for layer, state in enumerate(run(r.params)):
        for clip, golden in enumerate(ARRAYS[f"plain/dec_block{layer}"]):
            for row, token in enumerate(range(0, 513, 64)):
                slot = 0 if token == 0 else 1 + np.flatnonzero(ours[clip] == token - 1)[0]
                np.testing.assert_allclose(state[clip, slot], golden[row], atol=ATOL)


@pytest.mark.parametrize("case", ["finetune", "finetune_overlap", "finetune_t512"])
def test_finetuned_classifier(case):
    """A released fine-tuned model would give AudioSet clips other labels than its authors'."""
    config, graph, params = imported(case)
    patches = patches_of(config)

    @quick_jit
    def run(params, patches):
        model = nnx.merge(graph, params)
        hidden, mask = model.audio(patches), model.audio.state_mask(patches)
        return hidden, model.classifier.pooled(hidden, mask), model.classify(patches)

    hidden, pooled, logits = run(params, patches)
    np.testing.assert_allclose(hidden[:, ::128], ARRAYS[f"{case}/block_last"], atol=ATOL)
    np.testing.assert_allclose(pooled, ARRAYS[f"{case}/fc_norm"], atol=ATOL)
    np.testing.assert_allclose(logits[:, ::2], ARRAYS[f"{case}/logits"], atol=ATOL)
    if case == "finetune":
        view = split_view(noise_2d(), patches, MaskingConfig("random_2d", 0.0, 0.2, 0.2))
        _, _, logits = run(params, view.visible)
        np.testing.assert_allclose(logits[:, ::2], ARRAYS[f"{case}/logits_mask2d"], atol=ATOL)
