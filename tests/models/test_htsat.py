"""The HTSAT tower in the model, the step and the checkpoint; its numbers are in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.audio.frontend import LogMelConfig
from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.models.towers import tower_patches
from alm_jax.parallel.mesh import batch_sharding, make_mesh
from alm_jax.train_state import TrainState, make_setup, model_graph, split
from alm_jax.train_step import jit_train_step, make_eval_step
from tests.quick_jit import quick_jit
from tests.random_params import draw, draw_like

V, L = 40, 8
SMALL = [
    "data.sample_rate=16000",
    "data.max_seconds=3.0",
    "data.max_text_length=8",
    "frontend.sample_rate=16000",
    "frontend.hop_length=160",
    "frontend.num_mels=16",
    "frontend.fmax=8000.0",
    "frontend.repeat_to_samples=16000",
    "patches.freq=16",
    "model.audio.dim=16",
    "model.audio.depths=(2,2)",
    "model.audio.heads=(2,4)",
    "model.audio.window=4",
    "model.audio.picture=64",
    "model.audio.chunk_frames=101",
    "model.audio.remat=none",
    "model.text.width=16",
    "model.text.depth=1",
    "model.text.heads=2",
    "model.text.mlp_dim=32",
    "model.max_positions=16",
    "model.embed_dim=8",
    "optim.warmup_steps=0",
]
CONFIG = load_config("laion_clap:fusion", SMALL)
FRONTEND = LogMelConfig(**CONFIG.frontend)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    graph, abstract = model_graph(CONFIG, V)
    params = draw(abstract)
    for name, leaf in flat_names(params).items():
        if name.endswith(".var"):
            leaf[...] = 1.0 + leaf**2
        if name == "audio.input_norm.mean":
            leaf[...] -= 30.0
    return graph, params


def spectrograms(frames, total):
    mel = (RNG.standard_normal((len(frames), total, 16)) * 10 - 30).astype(np.float32)
    return mel, np.asarray(frames, np.int32)


def test_embedding_is_the_clips_own(model):
    """An embedding would change with the padding, or with the clips that share its batch."""
    graph, params = model
    embed = quick_jit(
        lambda p, mel, frames: nnx.merge(graph, p).embed_audio(
            tower_patches(mel, frames, CONFIG, FRONTEND)
        )
    )
    mel, frames = spectrograms([101, 180, 260], 301)
    together = embed(params, mel, frames)
    garbage = mel.copy()
    for row, count in enumerate(frames):
        garbage[row, count:] = 1e3
    np.testing.assert_allclose(embed(params, garbage, frames), together, atol=1e-6)
    np.testing.assert_allclose(embed(params, mel[:1, :101], frames[:1]), together[:1], atol=1e-5)
    np.testing.assert_allclose(embed(params, mel[1:2, :200], frames[1:2]), together[1:2], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_excerpts_follow_the_examples_key():
    """A resumed run, or one on more devices, would not see what it would have seen."""
    mel, frames = spectrograms([301, 301, 90], 301)
    keys = jax.random.split(jax.random.key(1), 3)
    drawn = tower_patches(mel, frames, CONFIG, FRONTEND, keys)
    alone = tower_patches(mel[1:], frames[1:], CONFIG, FRONTEND, keys[1:])
    np.testing.assert_array_equal(drawn.values[1:], alone.values)
    other = tower_patches(mel, frames, CONFIG, FRONTEND, keys[::-1])
    assert not np.array_equal(drawn.values[0, 101:], other.values[0, 101:])
    np.testing.assert_array_equal(drawn.values[:, :101], other.values[:, :101])
    assert not drawn.mask[2, 90:].any() and drawn.mask[:2].all()


@pytest.fixture(scope="module")
def trained():
    """State before and after a step on a batch with two long clips, and on one without."""
    mesh = make_mesh(CONFIG.mesh, jax.devices()[:1])
    setup = make_setup(CONFIG, V, mesh)
    params = draw_like(setup.shapes.params)
    fresh = {name: leaf.shape for name, leaf in flat_names(setup.shapes.stats).items()}
    stats = {
        tuple(name.split(".")): np.full(shape, name.endswith("var"), np.float32)
        for name, shape in fresh.items()
    }
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), setup.shapes.opt_state)
    state = TrainState(
        np.zeros((), np.int32), params, opt_state, None, nnx.traversals.unflatten_mapping(stats)
    )
    step = jit_train_step(CONFIG, setup, batch_sharding(mesh))
    length = np.array([48_000, 9_000, 40_000, 12_000], np.int32)
    batch = {
        "audio": (RNG.standard_normal((4, 48_000)) * 3000).astype(np.int16),
        "audio_length": length,
        "text": RNG.integers(4, V, (4, L)).astype(np.int32),
        "text_mask": np.arange(L) < np.array([[8], [5], [3], [2]]),
        "example_id": np.arange(4, dtype=np.int32),
    }
    short = {**batch, "audio_length": np.minimum(length, 16_000)}
    return setup, state, batch, step(state, batch), step(state, short)


def test_step_moves_the_running_statistics(trained):
    """Evaluation and export would normalise by statistics of nothing."""
    _, state, _, (after, metrics), (short, _) = trained
    assert np.isfinite(float(metrics["loss"]))
    before, moved, without = (flat_names(s.stats) for s in (state, after, short))
    assert len(before) == 2 * (1 + 4)  # mean and variance of the input's norm and of four in AFF
    assert not any(name.endswith((".mean", ".var")) for name in flat_names(state.params))
    for name in before:
        assert not np.array_equal(moved[name], before[name]), name
        is_input = name.startswith("audio.input_norm")
        # A batch without long clips says nothing about the fusion of views.
        assert np.array_equal(without[name], before[name]) == (not is_input), name
    assert float(moved["audio.input_norm.mean"].mean()) < -0.5  # a tenth of the way to the decibels


def test_evaluation_uses_the_running_statistics(trained):
    """Validation losses would depend on how clips are batched."""
    setup, state, batch, (after, _), _ = trained
    evaluate = quick_jit(make_eval_step(CONFIG, setup))
    loss = evaluate(after.eval_params, batch)["loss"]
    other = evaluate(after.replace(stats=state.stats).eval_params, batch)["loss"]
    assert float(loss) != float(other)


def test_checkpoint_keeps_them(trained, tmp_path):
    """A resumed run, an evaluation or an export would begin with fresh statistics."""
    setup, _, _, (after, _), _ = trained
    saves = Checkpoints(tmp_path)
    saves.save(1, after, {"next_step": 1}, {}, force=True)
    saves.wait()
    restored, _ = saves.restore(setup.shapes, setup.shardings)
    for name, leaf in flat_names(restored.stats).items():
        np.testing.assert_array_equal(leaf, flat_names(after.stats)[name], err_msg=name)
    whole, _ = saves.restore_params()
    saves.close()
    wanted = flat_names(after.eval_params)
    assert flat_names(whole).keys() == wanted.keys()
    for name, leaf in flat_names(whole).items():
        np.testing.assert_array_equal(leaf, wanted[name], err_msg=name)


def test_state_without_batch_norm_has_no_statistics():
    """Models without batch norm would pay for it."""
    _, abstract = model_graph(load_config("quickstart"), 300)
    assert not jax.tree.leaves(split(abstract)[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["masking.ratio=0.5"], "masking.ratio=0.5 drops patches"),
        (["patches.time=16"], "patches.time=1"),
        (["frontend.num_mels=24", "patches.freq=24"], "no multiple of the 24 mel bins"),
    ],
)
def test_what_the_tower_cannot_do_is_said(overrides, message):
    """The run would fail inside the compiled step, or train on half a picture."""
    with pytest.raises(UserError, match=message):
        model_graph(load_config("laion_clap:fusion", SMALL + overrides), V)


def test_lengths_that_do_not_fit_are_said():
    """A clip beyond the picture would be squeezed into it, and nobody would know."""
    mel, frames = jnp.zeros((1, 300, 16)), jnp.array([300])
    unfused = load_config("laion_clap", [s for s in SMALL if "chunk" not in s])
    with pytest.raises(UserError, match="300 frames are more than the 256"):
        tower_patches(mel, frames, unfused, FRONTEND)
    with pytest.raises(UserError, match="repeat_to_samples to 16000"):
        tower_patches(mel[:, :90], frames, CONFIG, FRONTEND)
