"""LAION-CLAP against the official code, with weights and inputs made by a rule.

Sources: the official package (LAION-AI/CLAP @ 1fd4c37), transformers 5.23.0 (`ClapModel`), HTS-AT
(@ 2e29471).

Tolerances: pooled audio states are up to 10 and the official float32 runs are up to 2e-5 away from
float64, hence 1e-4; normalised embeddings 5e-6; values of order 1 2e-5; dB 2e-3.
"""

import functools
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.audio.frontend import FLAVOURS, LogMelConfig, log_mel
from alm_jax.audio.fusion import excerpt_starts, fusion_views, squeeze
from alm_jax.audio.patches import Patches
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.ranking import Positives, rank_positives, unit_grid
from alm_jax.inference.jitted import Inference
from alm_jax.interop import hf_clap, htsat, laion_clap
from alm_jax.interop.importing import from_alm, in_memory, to_alm, vocab_size
from alm_jax.models.audio_text import normalize
from alm_jax.models.towers import build_tower, tower_config, tower_patches
from alm_jax.objectives.pairs import info_nce
from alm_jax.train_state import model_graph

FOLDER = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(FOLDER))
from rule import normal, torch_weight, waveform  # noqa: E402

GOLDEN = np.load(FOLDER / "clap.npz")
POOLED, EMBEDDED, STATES, DECIBELS = 1e-4, 5e-6, 2e-5, 2e-3
HF_DEFAULTS = {"text_config": {"layer_norm_eps": 1e-12}}
DEEP = re.compile(r"text_(model|branch)\.encoder\.layer\.([1-9]|1\d)\.")


def golden(case, *names):
    return [GOLDEN[f"{case}/{name}"] for name in names]


@functools.cache
def parameters(case):
    return json.loads(GOLDEN[f"{case}/params"].tobytes())


def official(case, *, text):
    """The official state dict; `text` is "whole", its "first" layer, or "none": zeros."""
    tree = {}
    for name, shape in parameters(case):
        if text != "whole" and DEEP.match(name):
            continue
        if text == "none" and name.startswith(("text_model.", "text_branch.")):
            tree[name] = np.broadcast_to(np.float32(0), shape)
        else:
            tree[name] = torch_weight(name, tuple(shape))
    return tree


def loaded(format, tree, config=None):
    """What was imported, and a function that calls it: call(f, *arrays) = f(model, *arrays)."""
    found = to_alm(format, in_memory(tree, config))
    graph, abstract = model_graph(found.config, vocab_size(found.config))
    expected = jax.tree.map(jnp.shape, nnx.to_pure_dict(abstract))
    assert jax.tree.map(np.shape, found.params) == expected
    assert not found.missing and not found.unexpected

    def call(function, *args):
        return jax.jit(lambda p, *a: function(nnx.merge(graph, p), *a))(found.params, *args)

    return found, call


def frames(values, longer):
    """Patches of official input features [B, 4 or 1, T, F]; `longer` [B]."""
    batch, views, time, mels = values.shape
    mask = np.broadcast_to(longer[:, None, None], (batch, views, time)).copy()
    mask[:, 0] = True
    mask = mask.reshape(batch, -1)
    values = values.reshape(batch, -1, mels)
    place = np.broadcast_to(np.tile(np.arange(time, dtype=np.int32), views), mask.shape)
    return Patches(values * mask[..., None], place * mask, np.zeros_like(place), mask)


def features(views):
    return (normal("input/mel", (2, views, 1001, 64)).astype(np.float32) * 10 - 30).astype(
        np.float32
    )


def audio_outputs(model, patches):
    states = model.audio(patches)
    embedded = model.audio.embed_norm(model.audio.embed_pictures(patches))
    mask = model.audio.state_mask(patches)
    return embedded, states, model.audio_pool(states, mask), model.audio_embedding(states, mask)


def compare_audio(case, call, patches):
    embedded, states, pooled, embedding = call(audio_outputs, patches)
    of_patches, of_states, of_pool, of_embedding = golden(
        case, "patch_embed", "audio_last_hidden", "audio_pooled", "audio_embeds"
    )
    embedded = np.asarray(embedded).reshape(2, 4096, 96)[:, ::128, ::2]
    np.testing.assert_allclose(embedded, of_patches, atol=5e-5)  # after a LayerNorm of small values
    in_order = np.asarray(states).reshape(2, 32, 2, 768).transpose(0, 3, 2, 1)[:, ::16]
    np.testing.assert_allclose(in_order, of_states, atol=POOLED)
    np.testing.assert_allclose(pooled, of_pool, atol=POOLED)
    np.testing.assert_allclose(embedding, of_embedding, atol=EMBEDDED)


def identical(format, found, tree):
    written = dict(from_alm(format, found.config, found.params, found.kept))
    assert written.keys() == tree.keys()
    for name, value in tree.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


@pytest.mark.slow
def test_huggingface_unfused():
    """`laion/clap-htsat-unfused` would embed sounds and texts otherwise than in transformers."""
    case = "clap_hf_unfused"
    tree = official(case, text="first")
    found, call = loaded(hf_clap.FORMAT, tree, HF_DEFAULTS)
    compare_audio(case, call, frames(features(1), np.zeros(2, bool)))
    tokens, mask = golden(case, "input_ids", "attention_mask")

    def text(model, tokens, mask):
        return model.text.embed(tokens, mask=mask), model.text(tokens, mask)

    embedded, first = call(text, tokens, mask > 0)
    of_embedded, of_first = golden(case, "text_emb", "text_layer0")
    real = mask > 0
    np.testing.assert_allclose(embedded[..., ::16][real], of_embedded[real], atol=STATES)
    np.testing.assert_allclose(first[..., ::16][real], of_first[real], atol=STATES)
    identical(hf_clap.FORMAT, found, tree)


@pytest.mark.slow
def test_huggingface_fused():
    """`laion/clap-htsat-fused` would embed long sounds otherwise than in transformers."""
    case = "clap_hf_fused"
    tree = official(case, text="none")
    found, call = loaded(hf_clap.FORMAT, tree, HF_DEFAULTS)
    longer = golden(case, "is_longer")[0][:, 0] > 0
    assert longer.tolist() == [True, False]
    compare_audio(case, call, frames(features(4), longer))
    identical(hf_clap.FORMAT, found, tree)


@pytest.mark.slow
def test_official_unfused():
    """A released .pt would rank sounds and captions otherwise than laion_clap, from the wave on."""
    case = "clap_laion_official_unfused"
    tree = official(case, text="whole")
    found, call = loaded(laion_clap.FORMAT, tree)
    waves = np.zeros((2, 480_000), np.float32)
    for row, seconds in enumerate((2.0, 3.0)):
        clip = np.tile(waveform(48_000, seconds, 100 + row).astype(np.float32) / 32768, 3)
        waves[row, : len(clip)] = clip
    inference = Inference(found.config, nnx.graphdef(nnx.Module()))
    patches = jax.jit(inference.patches)(waves, np.full(2, 480_000))
    _, _, pooled, embedding = call(audio_outputs, patches)
    of_pool, of_audio, of_text, of_logits = golden(
        case, "audio_embedding", "audio_proj_norm", "text_proj_norm", "logits_audio_text"
    )
    np.testing.assert_allclose(pooled, of_pool, atol=POOLED)
    np.testing.assert_allclose(embedding, of_audio, atol=EMBEDDED)
    tokens, mask = golden(case, "input_ids", "attention_mask")
    text = call(lambda model, t, m: model.embed_text(t, m), tokens, mask > 0)
    np.testing.assert_allclose(text, of_text, atol=EMBEDDED)
    scale = np.exp(found.params["logit_scale"])
    np.testing.assert_allclose(scale * embedding @ text.T, of_logits, atol=14.3 * EMBEDDED)
    identical(laion_clap.FORMAT, found, tree)


@pytest.mark.slow
def test_official_fused():
    """A released fused .pt would embed sounds otherwise than laion_clap."""
    case = "clap_laion_official_fused"
    tree = official(case, text="none")
    found, call = loaded(laion_clap.FORMAT, {f"module.{name}": v for name, v in tree.items()})
    _, _, pooled, embedding = call(audio_outputs, frames(features(4), np.array([True, False])))
    of_pool, of_embedding = golden(case, "audio_embedding", "audio_proj_norm")
    np.testing.assert_allclose(pooled, of_pool, atol=POOLED)
    np.testing.assert_allclose(embedding, of_embedding, atol=EMBEDDED)
    identical(laion_clap.FORMAT, found, tree)


@pytest.mark.slow
def test_htsat_at_32_khz():
    """The AudioSet checkpoints that LAION-CLAP and WavCaps start from would give other features."""
    case = "htsat_official_32k"
    config = load_config("laion_clap")
    with config.unlocked():
        config.frontend.update(sample_rate=32_000, hop_length=320, repeat_to_samples=320_000)
    assert LogMelConfig(**config.frontend) == LogMelConfig(
        **{**FLAVOURS["htsat"].__dict__, "repeat_to_samples": 320_000}
    )
    graph, _ = nnx.split(
        nnx.eval_shape(
            lambda: build_tower(config, 64, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
        )
    )
    tree = {name: torch_weight(name, tuple(shape)) for name, shape in parameters(case)}
    found = to_alm(
        htsat.FORMAT, in_memory({f"sed_model.{name}": value for name, value in tree.items()})
    )
    waves = np.stack([waveform(32_000, 10.0, 200 + i) for i in range(2)]).astype(np.float32) / 32768
    frontend = LogMelConfig(**config.frontend)

    @jax.jit
    def run(params, waves):
        tower = nnx.merge(graph, params)
        patches = tower_patches(log_mel(waves, frontend), jnp.full(2, 1001), config, frontend)
        x = tower.embed_norm(tower.embed_pictures(patches))
        first = tower.merge0(tower.stage0(x, None, jnp.zeros(2)))
        return x, first, tower(patches)

    embedded, first, states = run(found.params["audio"], waves)
    of_patches, of_first, of_pool = golden(case, "patch_embed", "layer0", "latent_output")
    embedded = np.asarray(embedded).reshape(2, 4096, 96)[:, ::128, ::2]
    np.testing.assert_allclose(embedded, of_patches, atol=2e-4)  # of float32 noise in the dB
    np.testing.assert_allclose(
        np.asarray(first).reshape(2, 1024, 192)[:, ::64, ::8], of_first, atol=POOLED
    )
    np.testing.assert_allclose(states.mean(axis=1), of_pool, atol=POOLED)
    identical(htsat.FORMAT, found, tree)


def test_repeated_clip():
    """Sounds shorter than 10 s would reach the tower padded otherwise than in training."""
    config = LogMelConfig(**{**FLAVOURS["laion_clap"].__dict__, "repeat_to_samples": 480_000})
    clip = waveform(48_000, 2.5).astype(np.float32) / 32768
    mel = jax.jit(lambda a, n: log_mel(a, config, length=n))(
        np.pad(clip, (0, 1000))[None], np.array([len(clip)])
    )
    (of_mel,) = golden("fe_clap_hf", "repeatpad")
    np.testing.assert_allclose(mel[0, ::10], of_mel, atol=DECIBELS)


def test_views_of_a_long_clip():
    """The four views of a long sound would show other parts of it than in training."""
    config = FLAVOURS["laion_clap_fusion"]
    clip = waveform(48_000, 2.5).astype(np.float32) / 32768
    mel = log_mel(jnp.asarray(clip)[None], config)
    of_views, picks = golden("fe_clap_hf", "fusion_long", "picks")
    ours = [squeeze(mel, jnp.array([mel.shape[1]]), 101)[0]]
    ours += [mel[0, pick : pick + 101] for pick in picks]
    np.testing.assert_allclose(np.stack(ours)[:, ::2], of_views, atol=DECIBELS)
    starts = np.asarray(
        excerpt_starts(
            jnp.full((2000,), mel.shape[1]), 101, jax.random.split(jax.random.key(0), 2000)
        )
    )
    for column, part in enumerate(np.array_split(np.arange(151), 3)):
        assert set(starts[:, column]) == set(part) and picks[column] in part
    views = fusion_views(mel, jnp.array([mel.shape[1]]), 101)
    np.testing.assert_allclose(views.values[0, 0], ours[0], atol=1e-6)


def test_loss_and_retrieval():
    """Training would follow another gradient, or be judged by other figures, than published."""
    audio, text, gradient = golden("clip_loss_metrics", "audio", "text", "grad_audio")
    figures = json.loads(GOLDEN["clip_loss_metrics/figures"].tobytes())

    def loss(audio):
        return sum(info_nce(audio, text, figures["logit_scale_a"])[:2]) / 2

    ours, slope = jax.value_and_grad(loss)(jnp.asarray(audio))
    np.testing.assert_allclose(ours, figures["loss_plain"], rtol=2e-6)
    np.testing.assert_allclose(slope, gradient, atol=2e-6)
    audio, text = golden("clip_loss_metrics", "ret_audio", "ret_text")
    own = Positives(items=np.arange(len(audio)), counts=np.ones(len(audio), np.int64))
    for name, queries, gallery in (
        ("audio_to_text", audio, text),
        ("text_to_audio", text, audio),
    ):
        ranks = rank_positives(unit_grid(queries, "q"), unit_grid(gallery, "g"), own, depth=10)
        want = figures["retrieval"]
        assert ranks.best.mean() == pytest.approx(want[f"{name}_mean_rank"])
        for k in (1, 5, 10):
            assert (ranks.best <= k).mean() == pytest.approx(want[f"{name}_R@{k}"])
        assert ranks.average_precision.mean() == pytest.approx(want[f"{name}_mAP@10"])


def hollow(case):
    """Names and shapes of an official tree, without its memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in parameters(case)}


def test_wrong_head_count_is_an_error():
    """A model whose heads are dealt otherwise computes nonsense, and nothing would say so."""
    tree = hollow("clap_hf_unfused")
    config = {"audio_config": {"num_attention_heads": [3, 6, 12, 24]}}
    with pytest.raises(UserError, match="num_attention_heads"):
        to_alm(hf_clap.FORMAT, in_memory(tree, config))


def test_refuses_what_it_would_compute_otherwise():
    """A projection with another activation loads without a word and embeds otherwise."""
    tree = {"logit_scale_a": np.zeros(())}
    with pytest.raises(UserError, match="projection_hidden_act"):
        to_alm(hf_clap.FORMAT, in_memory(tree, {"projection_hidden_act": "gelu"}))


def test_normalize_is_torchs():
    """Embeddings of zero length aside, the official division by the norm is ours."""
    x = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    np.testing.assert_allclose(
        normalize(jnp.asarray(x)), x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-7
    )


def test_config_of_the_tower():
    """A stage that its heads do not divide would fail deep inside a compiled step."""
    config = load_config("laion_clap")
    assert tower_config(config).width == 768
    for field, value, message in (
        ("heads", (5, 8, 16, 32), "does not divide"),
        ("depths", (2, 2, 5, 2), "is odd"),
        ("fusion", "daf_2d", "aff_2d"),
        ("picture", 200, "multiple"),
    ):
        wrong = load_config("laion_clap")
        with wrong.unlocked():
            wrong.model.audio[field] = value
        with pytest.raises(UserError, match=message):
            tower_config(wrong)
