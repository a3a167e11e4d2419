"""Our Cacophony against outputs of the official JAX code (gzhu06/Cacophony @ 9e5cfce).

Tolerance 2e-5 on values of order 1: the official float32 run itself is 2e-6 .. 7e-6 away from
float64.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.audio.patches import Patches
from alm_jax.errors import UserError
from alm_jax.interop.cacophony import FORMAT
from alm_jax.interop.importing import from_alm, in_memory, to_alm, vocab_size
from alm_jax.train_state import model_graph

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from rule import flax_weight, normal  # noqa: E402

TREES = json.loads((GOLDEN / "cacophony.json").read_text())
ATOL = 2e-5


def official(name):
    return {key: flax_weight(key, shape) for key, shape in TREES[name]["params"]}


def imported(name, *heads):
    """Structure and parameters of an official tree; `heads` are what no tensor's shape tells."""
    found = to_alm(FORMAT, in_memory(official(name)), [f"{key}=4" for key in heads])
    graph, abstract = model_graph(found.config, vocab_size(found.config))
    expected = jax.tree.map(jnp.shape, nnx.to_pure_dict(abstract))
    assert jax.tree.map(np.shape, found.params) == expected
    return graph, jax.tree.map(jnp.asarray, found.params)


HEADS = ("model.audio_pool.heads", "model.text.heads", "model.caption_decoder.heads")


@pytest.fixture(scope="module")
def mae():
    golden = np.load(GOLDEN / "cacophony_mae_tiny.npz")
    graph, params = imported("cacophony_mae_tiny")
    values = normal("input/patches", (2, 52, 256)).astype(np.float32)
    visible = Patches(values, golden["time_inds"], golden["freq_inds"], golden["mask"] > 0)
    dropped = Patches(
        normal("input/restore_patches", (2, 204, 256)).astype(np.float32),
        golden["restore_time_inds"],
        golden["restore_freq_inds"],
        golden["restore_mask"] > 0,
    )
    return golden, graph, params, visible, dropped


def test_stage1_outputs(mae):
    """A user who loads the released AudioMAE.ckpt would get other features than its authors."""
    golden, graph, params, visible, dropped = mae

    @jax.jit
    def run(params):
        model = nnx.merge(graph, params)
        hidden = model.audio(visible)
        return hidden, model.mae_decoder(hidden, visible, dropped)

    hidden, predicted = run(params)
    np.testing.assert_allclose(hidden, golden["encoder_out"], atol=ATOL)
    both = np.concatenate([np.zeros((2, 52, 256), np.float32), predicted], axis=1)[:, ::4]
    np.testing.assert_allclose(both[:, 13:], golden["decoder_out"][:, 13:], atol=ATOL)


def test_stage1_gradients(mae):
    """Training would take other steps than the official modules do under the same loss."""
    _, graph, params, visible, dropped = mae
    want = TREES["cacophony_mae_tiny"]["grad_loss"]
    weight = dropped.mask.astype(np.float32)

    def loss_of(params):
        model = nnx.merge(graph, params)
        error = model.mae_decoder(model.audio(visible), visible, dropped) - dropped.values
        return jnp.sum(jnp.mean(error**2, -1) * weight) / weight.sum()

    loss, grads = jax.jit(jax.value_and_grad(loss_of))(params)
    np.testing.assert_allclose(loss, want["value"], rtol=2e-6)
    blocks = "transformer.blocks"
    ours = {
        "AudioDecoder_0/AudioEncoderLayer_0/LayerNorm_1/scale": ("mae_decoder", "mlp_norm.scale"),
        "AudioEncoder_0/AudioEncoderLayer_0/LayerNorm_1/scale": ("audio", "mlp_norm.scale"),
        "AudioEncoder_0/AudioEncoderLayer_0/MultiHeadDotProductAttention_0/query/kernel": (
            "audio",
            "attention.query.kernel",
        ),
    }
    for theirs, (part, name) in ours.items():
        leaf = grads[part]
        for step in f"{blocks}.{name}".split("."):
            leaf = leaf[step]
        np.testing.assert_allclose(
            np.linalg.norm(leaf[0]), want["grad_norms"][theirs], rtol=1e-4, err_msg=theirs
        )
    for theirs, leaf in {
        "AudioDecoder_0/restore_patch": grads["mae_decoder"]["restore"],
        "AudioDecoder_0/Dense_0/kernel": grads["mae_decoder"]["embed"]["kernel"],
        "AudioDecoder_0/freq_positional_embedding": grads["mae_decoder"]["positions"]["freq"],
        "AudioEncoder_0/Dense_0/kernel": grads["audio"]["embed"]["kernel"],
        "AudioEncoder_0/freq_positional_embedding": grads["audio"]["positions"]["freq"],
    }.items():
        np.testing.assert_allclose(
            np.linalg.norm(leaf), want["grad_norms"][theirs], rtol=1e-4, err_msg=theirs
        )


@pytest.fixture(scope="module")
def caco():
    golden = np.load(GOLDEN / "cacophony_caco_tiny.npz")
    graph, params = imported("cacophony_caco_tiny", *HEADS)
    mask = golden["audio_mask"] > 0
    values = normal("input/patches", (3, 48, 256)).astype(np.float32) * mask[..., None]
    patches = Patches(values, golden["audio_time_inds"], golden["audio_freq_inds"], mask)

    def call(function, *args):
        return jax.jit(lambda p, *a: function(nnx.merge(graph, p), *a))(params, *args)

    return golden, call, patches


def test_stage2_embeddings(caco):
    """Retrieval with the released Cacophony.ckpt would not give the published ranking."""
    golden, call, patches = caco
    tokens, mask = golden["text_input_ids"], golden["text_mask"] > 0
    outputs = call(
        lambda m, p, t, k: (m.audio(p), m.text(t, k), m.embed_audio(p), m.embed_text(t, k)),
        patches,
        tokens,
        mask,
    )
    names = ("audio_hidden", "text_hidden", "audio_embedding_norm", "text_embedding_norm")
    for name, value in zip(names, outputs, strict=True):
        np.testing.assert_allclose(value, golden[name], atol=ATOL, err_msg=name)


def test_stage2_caption_logits(caco):
    """Captions of the released checkpoint would differ from its authors'."""
    golden, call, patches = caco
    tokens, mask = golden["text_input_ids"], golden["text_mask"] > 0
    logits = call(
        lambda m, p, t, k: m.caption_decoder(m.text(t, k), k, m.audio(p), p.mask),
        patches,
        tokens,
        mask,
    )
    np.testing.assert_allclose(logits, golden["decoder_logits"], atol=ATOL)


def test_cached_decoding(caco):
    """Generation with the key-value cache would drift from what training taught."""
    golden, call, patches = caco
    forced = golden["text_input_ids"]
    steps = golden["incremental_logits"].shape[1]

    def teacher(model, patches):
        caches, out = model.init_caches(model.audio(patches), 16), []
        for i in range(steps):
            logits, caches = model.decode_step(
                forced[:, i : i + 1], caches, jnp.asarray(i), patches.mask
            )
            out.append(logits)
        return jnp.stack(out, axis=1)

    def greedy(model, patches):
        caches, token = model.init_caches(model.audio(patches), 16), jnp.zeros((3, 1), jnp.int32)
        out = [token[:, 0]]
        for i in range(golden["greedy_ids"].shape[1] - 1):
            logits, caches = model.decode_step(token, caches, jnp.asarray(i), patches.mask)
            token = jnp.argmax(logits, axis=-1)[:, None]
            out.append(token[:, 0])
        return jnp.stack(out, axis=1)

    np.testing.assert_allclose(call(teacher, patches), golden["incremental_logits"], atol=ATOL)
    np.testing.assert_array_equal(call(greedy, patches), golden["greedy_ids"])


def test_leftovers_are_errors():
    """A checkpoint with a part that this code does not know would load without a word."""
    flat = official("cacophony_mae_tiny")
    with pytest.raises(UserError, match="extra/kernel is unexpected"):
        to_alm(FORMAT, in_memory({**flat, "extra/kernel": np.zeros(3)}))
    flat.pop("AudioDecoder_0/restore_patch")
    with pytest.raises(UserError, match="restore_patch is missing"):
        to_alm(FORMAT, in_memory(flat))


@pytest.mark.parametrize(
    ("name", "heads"), [("cacophony_mae_tiny", ()), ("cacophony_caco_tiny", HEADS)]
)
def test_round_trip(name, heads):
    """A model handed back to the official code would not be the one that was imported."""
    flat = official(name)
    found = to_alm(FORMAT, in_memory(flat), [f"{key}=4" for key in heads])
    back = dict(from_alm(FORMAT, found.config, found.params))
    assert back.keys() == flat.keys()
    for key, array in flat.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)


def test_heads_that_do_not_fit():
    """Attention over another number of heads computes something else, without any error."""
    flat = official("cacophony_caco_tiny")
    with pytest.raises(UserError, match=r"model.audio_pool.heads has no default"):
        to_alm(FORMAT, in_memory(flat))
    with pytest.raises(UserError, match=r"model.audio.heads=8 contradicts .* has 4"):
        to_alm(FORMAT, in_memory(flat), [*(f"{key}=4" for key in HEADS), "model.audio.heads=8"])
