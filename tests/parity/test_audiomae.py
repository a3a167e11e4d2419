"""Our AudioMAE against outputs of the official code (facebookresearch/AudioMAE @ bd60e29).

Tolerances: 2e-5 on values of order 1, losses 2e-6 and gradient norms 1e-4 relative; the official
float32 run itself is 2e-6 .. 3e-6 away from float64.
"""

import functools
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from alm_jax.audio.masking import MaskingConfig, Noise, split_view
from alm_jax.audio.patches import PatchConfig, cut
from alm_jax.checkpoints import flat_names
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.interop.audiomae import FORMAT
from alm_jax.interop.importing import from_alm, in_memory, parameter_shapes, to_alm
from alm_jax.interop.links import Link
from alm_jax.models.patch_positions import PatchShape, fixed_table
from alm_jax.models.windows import WindowGrid
from alm_jax.objectives.reconstruction import patch_target, reconstruction
from alm_jax.optim import decay_mask, layer_rates, make_optimizer, schedule
from alm_jax.train_state import model_graph
from tests.quick_jit import quick_jit

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from rule import spectrogram, torch_weight, uniform  # noqa: E402

ARRAYS = np.load(GOLDEN / "audiomae.npz")
FACTS = json.loads((GOLDEN / "audiomae.json").read_text())
TREES = FACTS["trees"]
ATOL = 2e-5
PRETRAINED = ("plain", "mask2d", "overlap", "swin", "noshift")
FRAMES = {257: 512, 513: 1024, 1213: 1024}  # by rows of pos_embed


def official(case):
    """The official state dict of a case."""
    rows = FACTS["cases"][case]["rows"]
    finetuned = case.startswith("finetune")
    names = dict(TREES["finetune_rest"] if finetuned else TREES["rest"])
    blocks = {"blocks": (2, TREES["layer"])}
    if finetuned:
        names["pos_embed"] = [1, rows, 64]
    else:
        swin = FACTS["cases"][case]["decoder"] == "swin"
        blocks["decoder_blocks"] = (16, TREES["swin_layer"]) if swin else (2, TREES["layer"])
    for stack, (depth, layer) in blocks.items():
        names |= {f"{stack}.{i}.{name}": s for i in range(depth) for name, s in layer.items()}
    tensors = {name: torch_weight(name, shape) for name, shape in names.items()}
    if not finetuned:
        tensors["pos_embed"] = tensors["decoder_pos_embed"] = places(rows)[None]
    return tensors


def places(rows):
    """The official table; patches that overlap come in the order of the table, others do not."""
    if rows == 1213:
        return fixed_table("sincos_2d", 64, PatchShape(256, 12, 101))
    return fixed_table("sincos_2d_official", 64, PatchShape(256, 8, (rows - 1) // 8))


@functools.cache
def imported(case):
    heads = ["model.audio.heads=4"] + ["model.mae_decoder.heads=4"] * (case == "plain")
    told = {"no_shift": True} if case == "noshift" else {}
    found = to_alm(FORMAT, in_memory(official(case), told), heads)
    graph, abstract = model_graph(found.config, 0)
    expected = jax.tree.map(jnp.shape, nnx.to_pure_dict(abstract))
    assert jax.tree.map(np.shape, found.params) == expected
    return found.config, graph, jax.tree.map(jnp.asarray, found.params)


def patches_of(config, name="input/spec"):
    frames = config.patches.frames
    mel = jnp.asarray(spectrogram(name, (2, 1, frames, 128))[:, 0])
    return cut(mel, jnp.full(2, frames), PatchConfig(**config.patches))


def masked(case, patches):
    """The golden's masking: (visible, dropped), in the order of the clip's patches."""
    slots = patches.mask.shape[1]
    if case == "mask2d":
        noise = Noise(
            jnp.zeros((2, slots)), uniform("noise_t", (2, 64)), uniform("noise_f", (2, 8))
        )
        return split_view(noise, patches, MaskingConfig("random_2d", 0.0, 0.6, 0.5))
    noise = uniform("noise", (2, slots))
    if case == "overlap":
        noise = np.argsort(ARRAYS["overlap/order"], axis=1) / slots
    return split_view(Noise(jnp.asarray(noise)), patches, MaskingConfig(ratio=0.8))


def index(patches, rows):
    """[B, N] place of every slot in the grid, -1 for padding."""
    return np.where(patches.mask, patches.time * rows + patches.freq, -1)


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
    """Everything that the cases compare, of one compiled program."""
    config, graph, params = imported(case)
    patches = patches_of(config)
    visible, dropped = masked(case, patches)
    weight = dropped.mask.astype(jnp.float32)

    def loss_of(params, normalised):
        model = nnx.merge(graph, params)
        hidden = model.audio(visible)
        predicted = model.mae_decoder(hidden, visible, dropped)
        raw, scaled = (patch_target(dropped.values, choice) for choice in (False, True))
        error = jnp.mean((predicted - jnp.where(normalised, scaled, raw)) ** 2, -1)
        return jnp.sum(error * weight) / weight.sum(), (hidden, predicted)

    run = quick_jit(jax.value_and_grad(loss_of, has_aux=True))
    both = [run(params, choice) for choice in (False, True)]
    (_, (hidden, predicted)), _ = both[0]
    return SimpleNamespace(
        config=config,
        graph=graph,
        params=params,
        patches=patches,
        visible=visible,
        dropped=dropped,
        hidden=np.asarray(hidden),
        predicted=np.asarray(predicted),
        losses=[float(value) for (value, _), _ in both],
        grads=[grads for _, grads in both],
        rows=12 if case == "overlap" else 8,
    )


@pytest.mark.parametrize("case", PRETRAINED)
def test_masked_patches(case):
    """Another share of patches, or other rows and columns, would be dropped than is published."""
    config, _, _ = imported(case)
    patches = patches_of(config)
    visible, dropped = masked(case, patches)
    slots = patches.mask.shape[1]
    rows = 12 if case == "overlap" else 8
    want = np.unpackbits(ARRAYS[f"{case}/mask"], axis=1)[:, :slots].astype(bool)
    for view, inside in ((visible, ~want), (dropped, want)):
        for clip, found in enumerate(index(view, rows)):
            np.testing.assert_array_equal(found[found >= 0], np.flatnonzero(inside[clip]))


@pytest.mark.parametrize("case", PRETRAINED)
def test_encoder_states(case):
    """Features of a released pretrained encoder would not be its authors'."""
    r = results(case)
    every = 16 if case == "overlap" else 8
    ranked = index(r.visible, r.rows)
    golden = ARRAYS[f"{case}/latent"]
    for clip in range(2):
        kept = ranked[clip][ranked[clip] >= 0]
        if case == "mask2d":  # there the official code keeps the clip's order
            order = kept
        elif case == "overlap":
            order = ARRAYS["overlap/order"][clip]
        else:
            order = np.argsort(uniform("noise", (2, 512))[clip])
        # States there: the class token's, then the patches' from the lowest noise upwards.
        there = np.concatenate([[-1], order[: len(kept)]])[::every]
        slots = np.where(there < 0, 0, 1 + np.searchsorted(kept, there))
        np.testing.assert_allclose(r.hidden[clip][slots], golden[clip], atol=ATOL)
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
    for clip, found in enumerate(index(r.dropped, r.rows)):
        for row, place in enumerate(range(0, 32 * golden.shape[1], 32)):
            if place not in found:
                continue
            mine = r.predicted[clip][np.flatnonzero(found == place)[0]][::8]
            # The last layers of random weights give predictions of up to 4.
            np.testing.assert_allclose(mine, golden[clip, row][:32], atol=ATOL)
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("case", PRETRAINED)
def test_losses_and_gradients(case):
    """Pretraining would take other steps than the official code does."""
    r, want = results(case), FACTS["cases"][case]
    for choice in (0, 1):
        np.testing.assert_allclose(r.losses[choice], want[f"loss{choice}"], rtol=2e-6)
        grads = r.grads[choice]
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
    np.testing.assert_array_equal(
        places(FACTS["cases"][case]["rows"])[::64], ARRAYS[f"{case}/places"]
    )

    @quick_jit
    def run(params):
        model = nnx.merge(r.graph, params)
        x, mask = model.audio.tokens(r.visible)
        first = layers(
            model.audio.transformer.blocks, x, mask[:, None, None], None, None, None, 0.0, count=1
        )
        return model.audio.embed(r.patches.values), first[0]

    embedded, first = run(r.params)
    np.testing.assert_allclose(
        np.linalg.norm(embedded), FACTS["cases"][case]["norms"][0], rtol=1e-5
    )
    golden = ARRAYS[f"{case}/enc_block0"]  # tokens 0, 16 or 40, ...
    every = 40 if case == "overlap" else 16
    found = index(r.visible, r.rows)
    noise = uniform("noise", (2, 512))
    for clip in range(2):
        order = ARRAYS["overlap/order"] if case == "overlap" else np.argsort(noise, axis=1)
        there = np.concatenate([[-1], order[clip][: len(found[clip])]])[::every]
        slots = np.where(there < 0, 0, 1 + np.searchsorted(found[clip], there))
        np.testing.assert_allclose(first[clip][slots], golden[clip], atol=ATOL)


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
        return layers(decoder.transformer.blocks, x, mask[:, None, None], None, None, None, 0.0)

    # Ours are class token, visible, dropped; theirs class token, then the grid.
    ours = np.concatenate([index(r.visible, 8), index(r.dropped, 8)], axis=1)
    for layer, state in enumerate(run(r.params)):
        golden = ARRAYS[f"plain/dec_block{layer}"]
        for clip in range(2):
            for row, token in enumerate(range(0, 513, 64)):
                slot = 0 if token == 0 else 1 + np.flatnonzero(ours[clip] == token - 1)[0]
                np.testing.assert_allclose(state[clip, slot], golden[clip, row], atol=ATOL)


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
        noise = Noise(jnp.zeros((2, 512)), uniform("noise_t", (2, 64)), uniform("noise_f", (2, 8)))
        view = split_view(noise, patches, MaskingConfig("random_2d", 0.0, 0.2, 0.2))
        _, _, logits = run(params, view.visible)
        np.testing.assert_allclose(logits[:, ::2], ARRAYS[f"{case}/logits_mask2d"], atol=ATOL)


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


@pytest.mark.parametrize("case", ["plain", "overlap", "finetune"])
def test_round_trip(case):
    """Official checkpoint -> import -> export would not give the same file again."""
    tensors = official(case)
    heads = ["model.audio.heads=4"] + ["model.mae_decoder.heads=4"] * (case == "plain")
    found = to_alm(FORMAT, in_memory(tensors), heads)
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
    found = to_alm(FORMAT, in_memory(tensors), ["model.audio.heads=4"])
    assert found.config.model.audio.positions == "table"
    assert found.config.model.mae_decoder.positions == "sincos_2d_official"
    np.testing.assert_array_equal(
        found.params["audio"]["positions"]["table"], tensors["pos_embed"][0]
    )


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({}, [], r"model\.audio\.heads"),
        ({"extra.weight": np.zeros(3, np.float32)}, ["model.audio.heads=4"], "extra.weight is une"),
        ({"norm.bias": None}, ["model.audio.heads=4"], "norm.bias is missing"),
        (
            {"blocks.1.mlp.fc1.weight": np.zeros((128, 64), np.float32)},
            ["model.audio.heads=4"],
            r"blocks\.1\.mlp\.fc1\.weight is \(128, 64\)",
        ),
        (
            {"pos_embed": np.zeros((1, 500, 64), np.float32)},
            ["model.audio.heads=4"],
            "499 patches",
        ),
        ({}, ["model.audio.heads=4", "model.audio.width=96"], r"width=96 contradicts"),
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
