"""FLAP: both losses on one masked view, what reaches which part, what the mask saves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.audio.masking import MaskingConfig
from alm_jax.checkpoints import flat_names
from alm_jax.config import load_config
from alm_jax.objectives.forward import Forward
from alm_jax.parallel.mesh import make_mesh
from alm_jax.train_state import TrainState, make_setup, model_graph
from alm_jax.train_step import make_train_step, total_loss
from tests.quick_jit import quick_jit
from tests.random_params import draw_like

B, S, L, V = 4, 16_000, 6, 50
RNG = np.random.default_rng(0)
LENGTH = np.array([16_000, 12_000, 16_000, 9000], np.int32)
# Tones of another pitch and tremolo each: what is dropped can be told from what is not.
TIME = np.arange(S) / S
TONES = zip((300, 700, 1500, 3000), (3, 5, 8, 2), strict=True)
AUDIO = (
    np.stack([np.sin(2e3 * TIME * f / 300) * np.sin(t * 6 * TIME) ** 2 for f, t in TONES]) * 9000
)
BATCH = {
    "audio": (AUDIO * (np.arange(S) < LENGTH[:, None])).astype(np.int16),
    "audio_length": LENGTH,
    "text": RNG.integers(4, V, (B, L)).astype(np.int32),
    "text_mask": np.arange(L) < np.array([[6], [3], [5], [4]]),
    "example_id": np.array([5, 1, 9, 2], np.int32),
}
WORDS = {"2-D": "flap", "1-D": "flap:1d", "two views": "flap:two_views"}


def small(spec, *overrides):
    """The shipped config, narrow and for clips of a second (96 frames)."""
    parts = ["audio", "text", "mae_decoder"]
    sizes = [
        f"model.{part}.{field}"
        for part in parts
        for field in ("width=32", "depth=1", "heads=2", "mlp_dim=64", "init=lecun", "remat=none")
    ]
    return load_config(
        spec,
        [
            *sizes,
            "model.embed_dim=16",
            "model.dtype=float32",
            "model.text.dropout=0",
            "model.max_positions=20",
            "data.max_text_length=16",
            "patches.frames=96",
            "data.max_seconds=1.0",
            "train.steps=100",
            "optim.warmup_steps=0",
            *overrides,
        ],
    )


def prepared(config):
    graph, abstract = model_graph(config, V)
    params = draw_like(nnx.to_pure_dict(abstract))
    return graph, jax.tree.map(lambda x: 0.3 * x, params)


@pytest.mark.parametrize("spec", WORDS.values(), ids=WORDS.keys())
def test_loss(spec):
    """The recipe would train on one of its losses alone, or on other pairs or patches."""
    config = small(spec, "objectives.reconstruction.weight=0.7")
    graph, params = prepared(config)

    def loss_of(params):
        forward = Forward(nnx.merge(graph, params), BATCH, config, jax.random.key(3))
        loss, metrics = total_loss(forward, config)
        visible, dropped = forward.view
        predicted = forward.model.mae_decoder(forward.audio_hidden, visible, dropped)
        seen = dict(
            audio=forward.audio_embedding,
            text=forward.text_embedding,
            predicted=predicted,
            dropped=dropped.values,
            mask=dropped.mask,
            scale=jnp.exp(forward.model.logit_scale.get_value()),
        )
        return loss, (metrics, seen)

    loss, (metrics, seen) = quick_jit(loss_of)(params)
    seen = {name: np.asarray(value) for name, value in seen.items()}
    wide = {name: value.astype(np.float64) for name, value in seen.items()}
    views = wide["audio"].reshape(B, -1, 16)
    assert views.shape[1] == config.masking.views
    contrastive = []
    for view in range(views.shape[1]):
        logits = wide["scale"] * views[:, view] @ wide["text"].T
        for scores in (logits, logits.T):
            log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
            contrastive.append(-np.diag(log_p).mean())
    target = wide["dropped"]
    target = target - target.mean(-1, keepdims=True)
    target /= np.sqrt((target**2).sum(-1, keepdims=True) / (target.shape[-1] - 1) + 1e-6)
    error = ((wide["predicted"] - target) ** 2).mean(-1)[seen["mask"]].mean()
    np.testing.assert_allclose(metrics["contrastive_loss"], np.mean(contrastive), rtol=1e-5)
    np.testing.assert_allclose(metrics["reconstruction_loss"], error, rtol=1e-5)
    np.testing.assert_allclose(loss, np.mean(contrastive) + 0.7 * error, rtol=1e-5)


def test_each_loss_reaches_its_branch():
    """The encoder would learn from one of the two losses only."""
    config = small("flap")
    graph, params = prepared(config)

    def losses(params):
        forward = Forward(nnx.merge(graph, params), BATCH, config, jax.random.key(3))
        metrics = total_loss(forward, config)[1]
        return jnp.stack([metrics["contrastive_loss"], metrics["reconstruction_loss"]])

    reached = [set(), set()]
    for name, rows in flat_names(quick_jit(jax.jacrev(losses))(params)).items():
        for which, row in zip(reached, rows, strict=True):
            # A softmax does not see what all its logits share.
            if np.abs(row).max() > 1e-7 or name.endswith("key.bias"):
                which.add(name)
    shared = {name for name in flat_names(params) if name.startswith("audio.")}
    decoder = {name for name in flat_names(params) if name.startswith("mae_decoder.")}
    assert reached[0] >= flat_names(params).keys() - decoder
    assert reached[1] >= shared | decoder
    assert not any(name.startswith("text") for name in reached[1] if "key.bias" not in name)


@pytest.mark.parametrize("spec", ["flap", "flap:1d", "flap:two_views"])
def test_masking_saves_what_it_drops(spec):
    """Masking would hide patches without saving the time that FLAP is about."""
    config = load_config(spec, ["model.audio.depth=1"])
    graph, abstract = model_graph(config, V)
    clips = {
        "audio": jax.ShapeDtypeStruct((1, 164_000), jnp.int16),
        "audio_length": jax.ShapeDtypeStruct((1,), jnp.int32),
        "example_id": jax.ShapeDtypeStruct((1,), jnp.int32),
    }

    def encoder(masked):
        def run(params, batch):
            key = jax.random.key(0) if masked else None
            forward = Forward(nnx.merge(graph, params), batch, config, key, noise=False)
            return forward.view.visible, forward.audio_hidden

        shapes = jax.eval_shape(run, nnx.to_pure_dict(abstract), clips)[0]
        tower = jax.jit(lambda params, patches: nnx.merge(graph, params).audio(patches))
        cost = tower.lower(nnx.to_pure_dict(abstract), shapes).cost_analysis()
        return shapes.mask.shape, cost["flops"]

    (_, everything), whole = encoder(False)
    (rows, seen), masked = encoder(True)
    assert (rows, everything) == (config.masking.views, 512)
    assert seen == int(512 * MaskingConfig(**config.masking).keep_share)

    def expected(tokens):
        """Multiplications of a layer and the patch embedding, twice."""
        width = 768
        layer = tokens * (4 * width**2 + 2 * width * 4 * width) + 2 * tokens**2 * width
        return 2 * (layer + (tokens - 1) * 256 * width)

    # Norms, softmax and activations are left out: under 2 % of the whole.
    want = rows * expected(seen + 1) / expected(everything + 1)
    np.testing.assert_allclose(masked / whole, want, rtol=0.02)


@pytest.mark.slow
def test_training_lowers_both_losses():
    """The shipped recipe would not learn."""
    config = small("flap:two_views", "optim.lr=3e-3", "optim.schedule=constant")
    setup = make_setup(config, V, make_mesh(config.mesh, jax.devices()[:1]))
    params = jax.tree.map(lambda x: 0.3 * x, draw_like(setup.shapes.params))
    opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), setup.shapes.opt_state)
    state = TrainState(np.zeros((), np.int32), params, opt_state, None)
    step = quick_jit(make_train_step(config, setup))
    history = []
    for _ in range(30):
        state, metrics = step(state, BATCH)
        history.append([float(metrics[f"{n}_loss"]) for n in ("contrastive", "reconstruction")])
    first, last = np.mean(history[:3], axis=0), np.mean(history[-3:], axis=0)
    assert last[0] < 0.8 * first[0], history
    assert last[1] < 0.95 * first[1], history
