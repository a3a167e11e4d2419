"""Our CLAP beside transformers' `ClapModel`: outputs, gradients, and a step of batch statistics.

Both run in float32 from the same random weights at a small size; tolerances are a few times what
the order of summation changes.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from alm_jax.audio.patches import Patches
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.inference.jitted import Inference
from alm_jax.interop import hf_clap
from alm_jax.interop.checkpoint_files import open_checkpoint
from alm_jax.interop.hf_clap import FORMAT
from alm_jax.interop.importing import from_alm, in_memory, to_alm, vocab_size
from alm_jax.train_state import join, model_graph

sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
from rule import waveform

T, F, L, V = 201, 16, 12, 50
SIZES = dict(
    spec_size=64,
    num_mel_bins=F,
    patch_size=4,
    patch_stride=[4, 4],
    window_size=4,
    patch_embeds_hidden_size=16,
    hidden_size=32,
    depths=[2, 2],
    num_attention_heads=[2, 4],
    num_hidden_layers=2,
    projection_dim=8,
    drop_path_rate=0.0,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
TEXT = dict(
    vocab_size=V,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=20,
    layer_norm_eps=1e-5,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    projection_dim=8,
)
LONGER = np.array([True, False, True])
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(4, V, (3, L))
MASK = np.arange(L) < np.array([[L], [5], [2]])
TOKENS = np.where(MASK, TOKENS, 1)
AUDIO_WEIGHT, TEXT_WEIGHT = RNG.standard_normal((2, 3, 8)).astype(np.float32)


@pytest.fixture(scope="module", params=["unfused", "fused"])
def both(request):
    """Their model, ours imported from it, and inputs for each."""
    fused = request.param == "fused"
    torch.manual_seed(0)
    config = transformers.ClapConfig(
        audio_config={**SIZES, "enable_fusion": fused}, text_config=TEXT, projection_dim=8
    )
    model = transformers.ClapModel(config).eval()
    with torch.no_grad():  # as drawn, biases are zero, and the statistics do nothing
        for name, value in model.state_dict().items():
            if value.is_floating_point() and value.ndim:
                value.add_(0.1 * torch.randn_like(value).abs())
            if name.endswith("batch_norm.running_mean"):
                value.sub_(30.0)
    views = 4 if fused else 1
    features = (RNG.standard_normal((3, views, T, F)) * 10 - 30).astype(np.float32)
    features[~LONGER] = features[~LONGER, :1]
    official = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    found = to_alm(FORMAT, in_memory(official, config.to_dict()))
    mask = np.broadcast_to(LONGER[:, None, None] | (np.arange(views) == 0)[:, None], (3, views, T))
    patches = Patches(
        (features * mask[..., None]).reshape(3, -1, F),
        np.where(mask, np.arange(T), 0).reshape(3, -1).astype(np.int32),
        np.zeros((3, views * T), np.int32),
        mask.reshape(3, -1),
    )
    return model, official, found, features, patches


def theirs(model, features):
    out = model(
        input_features=torch.tensor(features),
        is_longer=torch.tensor(LONGER)[:, None],
        input_ids=torch.tensor(TOKENS),
        attention_mask=torch.tensor(MASK.astype(np.int64)),
    )
    loss = (out.audio_embeds * torch.tensor(AUDIO_WEIGHT)).sum()
    return out, loss + (out.text_embeds * torch.tensor(TEXT_WEIGHT)).sum()


def ours(found, patches, *, training):
    """A function of the model's arrays: loss, and (embeddings, running statistics)."""
    graph, _ = model_graph(found.config, vocab_size(found.config))

    def run(params):
        model = nnx.merge(graph, params)
        if training:
            model.train()
        audio, text = model.embed_audio(patches), model.embed_text(TOKENS, MASK)
        loss = jnp.sum(audio * AUDIO_WEIGHT) + jnp.sum(text * TEXT_WEIGHT)
        return loss, (audio, text, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    return run


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_outputs_gradients_and_statistics(both, training):
    """A released checkpoint would embed otherwise here, or drift when it is trained further."""
    model, official, found, features, patches = both
    model.load_state_dict({name: torch.tensor(value) for name, value in official.items()})
    model.train(training)
    model.zero_grad()
    out, loss = theirs(model, features)
    loss.backward()
    run = jax.jit(jax.value_and_grad(ours(found, patches, training=training), has_aux=True))
    (_, (audio, text, stats)), slopes = run(found.params)
    np.testing.assert_allclose(audio, out.audio_embeds.detach(), atol=5e-6)
    np.testing.assert_allclose(text, out.text_embeds.detach(), atol=5e-6)
    gradients = dict(from_alm(FORMAT, found.config, slopes))
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        want = parameter.grad.numpy()
        scale = max(1e-3, float(np.abs(want).max()))
        np.testing.assert_allclose(gradients[name], want, atol=2e-4 * scale, err_msg=name)
        compared += 1
    assert compared > 80
    moved = dict(from_alm(FORMAT, found.config, join(found.params, stats)))
    for name, value in model.state_dict().items():
        if "running_" in name:
            np.testing.assert_allclose(moved[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
            assert training == (not np.array_equal(value, official[name])), name


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_from_the_wave(tmp_path, monkeypatch, fused):
    """A folder from the hub would embed a file otherwise than transformers' processor and model.

    Of a long clip the processor draws three excerpts; here it takes those that we take.
    """
    torch.manual_seed(0)
    sizes = {**SIZES, "spec_size": 256, "num_mel_bins": 64, "window_size": 8}
    sizes |= {"enable_fusion": fused, "fusion_type": "aff_2d" if fused else None}
    config = transformers.ClapConfig(audio_config=sizes, text_config=TEXT, projection_dim=8)
    model = transformers.ClapModel(config).eval()
    model.audio_model.audio_encoder.batch_norm.running_mean.sub_(40.0)
    model.audio_model.audio_encoder.batch_norm.running_var.mul_(300.0)
    extractor = transformers.ClapFeatureExtractor(
        truncation="fusion" if fused else "rand_trunc", frequency_min=50, frequency_max=14_000
    )
    model.save_pretrained(tmp_path)
    extractor.save_pretrained(tmp_path)
    monkeypatch.setattr(np.random, "choice", lambda part: part[(len(part) - 1) // 2])
    seconds = (3.3, 10.0, 10.02, 13.7) if fused else (3.3, 10.0)
    clips = [waveform(48_000, length, 7).astype(np.float32) / 32768 for length in seconds]
    given = extractor(clips, sampling_rate=48_000, return_tensors="pt")
    assert given["is_longer"].flatten().tolist() == [length > 10.01 for length in seconds]
    with torch.no_grad():
        want = model.get_audio_features(
            input_features=given["input_features"].float(), is_longer=given["is_longer"]
        )
    want = getattr(want, "pooler_output", want)
    found = to_alm(FORMAT, open_checkpoint(tmp_path))
    graph, _ = model_graph(found.config, vocab_size(found.config))
    audio = np.zeros((len(clips), max(map(len, clips))), np.float32)
    for row, clip in zip(audio, clips, strict=True):
        row[: len(clip)] = clip
    embed = Inference(found.config, graph).embed_audio
    ours = embed(found.params, audio, np.array([len(clip) for clip in clips]))
    want = want / want.norm(dim=1, keepdim=True)
    assert np.linalg.norm(ours - want.numpy(), axis=1).max() <= 1e-5


def test_other_front_ends_are_refused(tmp_path):
    """Sounds would reach the model padded otherwise than it was trained on."""
    (tmp_path / "preprocessor_config.json").write_text('{"padding": "pad"}')
    names = {"audio_model.audio_encoder.batch_norm.weight": np.zeros(64)}
    checkpoint = dataclasses.replace(in_memory(names), path=tmp_path)
    config = load_config("laion_clap").copy_and_resolve_references().unlock()
    with pytest.raises(UserError, match=r"padding='pad'.*'repeatpad'"):
        hf_clap._frontend(config, checkpoint, fused=False)


def test_tables_of_the_constructor_are_checked(both):
    """A model of another window order would load as if it were this one."""
    _, official, found, _, _ = both
    name = "audio_model.audio_encoder.layers.0.blocks.0.attention.self.relative_position_index"
    assert name in found.kept
    written = dict(from_alm(FORMAT, found.config, found.params))  # as one that was trained here
    for key, value in official.items():
        if key not in ("logit_scale_t",) and not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(written[key], value, err_msg=key)
    assert written.keys() == official.keys()
