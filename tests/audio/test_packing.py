"""Several clips in a row of the transformer: the same numbers as one clip a row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.audio.masking import View
from alm_jax.audio.packing import Packing, PackingConfig, check_packing, pack_view
from alm_jax.audio.patches import Patches
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.objectives.forward import Forward
from alm_jax.train_state import model_graph
from alm_jax.train_step import total_loss
from tests.quick_jit import quick_jit
from tests.random_params import draw_like
from tests.small_configs import stage1, stage2

B, S, L, V = 8, 16_000, 16, 50
RNG = np.random.default_rng(0)
# Lengths as those of real clips: most are short.
LENGTH = np.array([16_000, 2500, 4000, 900, 3000, 7000, 1500, 2200], np.int32)
BATCH = {
    "audio": (RNG.standard_normal((B, S)) * 3000 * (np.arange(S) < LENGTH[:, None])).astype(
        np.int16
    ),
    "audio_length": LENGTH,
    "text": RNG.integers(4, V, (B, L)).astype(np.int32),
    "text_mask": np.arange(L) < RNG.integers(3, L, (B, 1)),
    "example_id": np.arange(B, dtype=np.int32),
}
SHORT_TEXT = f"data.max_text_length={L}"


def flap(*overrides):
    """FLAP, narrow, for clips of any length: two masked views, class token, plain decoder."""
    sizes = [
        f"model.{part}.{field}"
        for part in ("audio", "text", "mae_decoder")
        for field in ("width=32", "depth=1", "heads=2", "mlp_dim=64", "init=lecun", "remat=none")
    ]
    positions = [f"model.{part}.positions=sincos_2d" for part in ("audio", "mae_decoder")]
    lengths = ["data.max_seconds=1.0", "patches.frames=0", "model.embed_dim=16", SHORT_TEXT]
    lengths += ["model.dtype=float32", "model.text.dropout=0.0"]
    return load_config("flap:two_views", [*sizes, *positions, *lengths, *overrides])


CONFIGS = {
    "masked autoencoder": stage1("masking.ratio=0.7"),
    "contrastive and captioning": stage2(SHORT_TEXT),
    "FLAP": flap(),
}


def packed(config, **fields):
    config = config.copy_and_resolve_references().unlock()
    config.packing.update(fields)
    return config


def loss_of(config, gradient):
    """Loss, metrics, and the gradient if it is asked for, which takes twice as long to compile."""
    graph, abstract = model_graph(config, V)
    params = draw_like(nnx.to_pure_dict(abstract))

    def loss(params):
        model = nnx.merge(graph, params)
        return total_loss(Forward(model, BATCH, config, jax.random.key(3)), config)

    if not gradient:
        return *quick_jit(loss)(params), {}
    (value, metrics), grads = quick_jit(jax.value_and_grad(loss, has_aux=True))(params)
    return value, metrics, grads


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_gradient_are_those_of_one_clip_a_row(name):
    """Faster training would be training of something else: clips that hear each other."""
    config = CONFIGS[name]
    gradient = name == "masked autoencoder"  # both stacks are packed there
    loss, metrics, grads = loss_of(config, gradient)
    other, more, slopes = loss_of(packed(config, share=0.5, clips=8), gradient)
    assert more.pop("packing_lost") == 0
    assert other == pytest.approx(float(loss), rel=1e-5)
    for metric, value in metrics.items():
        np.testing.assert_allclose(more[metric], value, rtol=1e-4, atol=1e-5, err_msg=metric)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(slopes), strict=True):
        # Sums of thousands of terms in another order; the largest slopes are about 1.
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def some_view(counts, slots, hidden_counts=None, hidden_slots=0):
    def patches(counts, slots):
        mask = np.arange(slots) < np.asarray(counts)[:, None]
        values = np.where(mask[..., None], RNG.standard_normal((*mask.shape, 3)), 0)
        place = np.where(mask, np.arange(slots), 0).astype(np.int32)
        return Patches(values.astype(np.float32), place, place, mask)

    dropped = None if hidden_counts is None else patches(hidden_counts, hidden_slots)
    return View(patches(counts, slots), dropped)


@pytest.mark.parametrize("extra", [0, 1])
def test_rows_hold_what_is_put_into_them(extra):
    """Tokens beyond a row's end would vanish without a word."""
    for trial in range(6):
        rng = np.random.default_rng(trial)
        counts, hidden = rng.integers(1, 9, 16), rng.integers(0, 20, 16)
        view = some_view(counts, 8, hidden, 19)
        share = rng.choice([0.3, 0.5, 1.0])
        (visible, dropped), found = pack_view(view, PackingConfig(share, 8), extra)
        seen, rest = visible.mask.sum(1), dropped.mask.sum(1)
        np.testing.assert_array_equal(found["patches"], counts + hidden)
        np.testing.assert_array_equal(found["lost"], counts + hidden - seen - rest)
        packing = visible.packing
        assert (packing.clips, packing.rows) == (8, int(np.ceil(share * 8)))
        for group in range(2):
            for row in range(packing.rows):
                mine = np.flatnonzero(np.asarray(packing.row) == row)
                mine = mine[mine // 8 == group]
                if found["lost"].sum() == 0:
                    assert (seen[mine] + extra).sum() <= 8 + extra
                    assert (seen[mine] + rest[mine] + extra).sum() <= 27 + extra
        if share == 1.0:
            assert found["lost"].sum() == 0, "there is a row for each"


def test_clips_of_a_row_do_not_see_each_other():
    """An embedding would depend on which clips happen to share its row."""
    view = some_view([3, 2, 5, 1], 6)
    (visible, _), _ = pack_view(view, PackingConfig(0.5, 4), 0)
    seen = {}

    def stack(x, mask):
        seen["shape"] = x.shape
        weight = mask / np.maximum(mask.sum(-1, keepdims=True), 1)
        return weight @ x

    got = visible.packing(stack, visible.values, visible.mask)
    assert seen["shape"] == (2, 6, 3)
    for clip, count in enumerate([3, 2, 5, 1]):
        want = np.broadcast_to(visible.values[clip, :count].mean(0), (count, 3))
        np.testing.assert_allclose(got[clip, :count], want, atol=1e-6)
        assert not got[clip, count:].any()


def test_what_finds_no_room_is_counted():
    """Half of the sound could be missing from training, and nobody would know."""
    (visible, _), found = pack_view(some_view([6, 6, 6, 6], 6), PackingConfig(0.75, 4), 0)
    assert found["lost"].tolist() == [0, 0, 0, 6]
    assert visible.mask.sum(1).tolist() == [6, 6, 6, 0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("laion_clap", "reads whole pictures; take model.audio.tower='vit'"),
        ("audiomae", r"as many patches \(patches.frames\)"),
    ],
)
def test_models_that_cannot_be_packed_are_refused(spec, message):
    """A swin decoder would mix the clips of a row."""
    with pytest.raises(UserError, match=rf"packing.share=0.5, but .*{message}"):
        check_packing(packed(load_config(spec), share=0.5))
    config = packed(stage1("model.audio.drop_path=0.1"), share=0.5)
    with pytest.raises(UserError, match="drop_path drops whole rows"):
        check_packing(config)
    with pytest.raises(UserError, match=r"packing.share=1.5: must be"):
        PackingConfig(1.5)


def test_packing_is_a_pytree():
    """Masked views are repeated with jax.tree, which must leave sizes alone."""
    packing = Packing(jnp.zeros(4, jnp.int32), 4, 2)
    assert len(jax.tree.leaves(packing)) == 1
