"""`--format=onnx` in onnxruntime: waveform or tokens in, embedding out, any batch and length."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from alm_jax.audio.patches import take
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.inference.jitted import Inference
from alm_jax.interop import exported, layouts, onnx_layout, torch_export
from alm_jax.train_state import model_graph
from tests import model_fixtures, random_params
from tests.interop import clap_models, mae_models
from tests.interop.sounds import RATE, sound

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(clap, references, tmp_path_factory):
    """The stage-2 model's export, judged against the reference that is compiled already."""
    output = tmp_path_factory.mktemp("onnx") / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_export, "Reference", lambda *parts: references["clap"])
        report = torch_export.export_torch(
            model_fixtures.clap_workdir(), output, format="onnx", captions=model_fixtures.CAPTIONS
        )
    assert report.worst <= 1e-5, report
    assert set(report.differences) == {
        "audio_embedding", "audio_embedding_alone", "text_embedding", "caption_logits"
    }  # fmt: skip
    return output


def session(folder, name):
    return onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])


def test_embeddings_equal_jax_at_any_size(folder, jax_clap):
    """A service that runs the graphs must answer as the model does, whatever it is asked."""
    audio = session(folder, "audio.onnx")
    for clips in ([sound(0.0, 1)], [sound(s, 2 + i) for i, s in enumerate((0.3, 2.0, 1.1, 0.02))]):
        lengths = np.asarray([len(clip) for clip in clips])
        waveform = np.full((len(clips), max(lengths)), np.nan, np.float32)  # padding is not read
        for row, clip in zip(waveform, clips, strict=True):
            row[: len(clip)] = clip.astype(np.float32) / 32767
        (found,) = audio.run(["embedding"], {"waveform": waveform, "lengths": lengths})
        wanted = jax_clap.embed_audio(clips, RATE)
        assert np.linalg.norm(found - wanted, axis=1).max() <= 1e-5
    text = session(folder, "text.onnx")
    for texts in (["rain"], model_fixtures.CAPTIONS):
        ids, mask = model_fixtures.tiny_tokenizer().encode_batch(texts, 16)
        (found,) = text.run(None, {"tokens": ids.astype(np.int64), "mask": mask})
        assert np.linalg.norm(found - jax_clap.embed_text(texts), axis=1).max() <= 1e-5


def test_folder_says_what_a_user_needs(folder):
    """Without sample rate, marks and tokenizer the graphs are of no use."""
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "README.md", "alm_export.json", "audio.onnx", "caption.onnx", "config.json", "golden.npz",
        "text.onnx", "tokenizer.model",
    }  # fmt: skip


def test_the_readme_embeds_and_captions(folder, jax_clap, monkeypatch, capsys):
    """What a user copies from the folder must run, and say what the model says."""
    usage = (folder / "README.md").read_text(encoding="utf-8").split("```")[1]
    clip = sound(1.3, 5)
    lines = usage.removeprefix("python\n").splitlines()
    (made,) = (n for n, line in enumerate(lines) if line.startswith("waveform ="))
    lines[made : made + 2] = ["lengths = np.array([waveform.shape[1]])"]
    given = {"waveform": (clip / np.float32(32767))[None]}
    monkeypatch.chdir(folder)
    exec("\n".join(lines), given)
    wanted = jax_clap.caption([clip], RATE)[0]
    assert " ".join(capsys.readouterr().out.split()) == wanted and wanted
    assert np.linalg.norm(given["embedding"] - jax_clap.embed_text(["a dog barks"])) <= 1e-5


def test_audiomae_goes_out(tmp_path, real_clips, monkeypatch):
    """Kaldi's front end, class token and classifier must come out of the graph as of JAX.

    As those of a large model do: with weights beside the graph, and layers that were not traced.
    """
    monkeypatch.setattr(onnx_layout, "BESIDE", 0)
    sizes = [f"model.audio.{field}" for field in ("width=32", "depth=6", "heads=2", "mlp_dim=64")]
    sizes += ["patches.frames=80", "data.max_seconds=1.0", "model.classifier.classes=7"]
    config = load_config("audiomae:finetune", sizes)
    params = random_params.draw(model_graph(config, 0)[1])
    folder = tmp_path / "out"
    report = torch_export.export_params(
        config, params, None, folder, clips=real_clips, format="onnx"
    )
    assert report.worst <= 1e-5, report
    assert set(report.differences) == {
        f"{name}{how}" for name in ("audio_embedding", "class_logits") for how in ("", "_alone")
    }
    outputs = [output.name for output in session(folder, "audio.onnx").get_outputs()]
    assert outputs == ["embedding", "class_logits"]
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "alm_export.json", "audio.onnx", "config.json", "golden.npz", "weights.data"
    }  # fmt: skip
    graph = onnx.load(folder / "audio.onnx", load_external_data=False).graph
    assert sum(node.op_type == "Softmax" for node in graph.node) == 6  # one a layer
    # Nor may it tell who made it, where.
    assert str(Path(__file__).parents[2]).encode() not in (folder / "audio.onnx").read_bytes()


@pytest.mark.parametrize("spec", ["audiomae", "audiomae:plain_decoder", "quickstart:mae"])
def test_masked_autoencoders_go_out(spec, tmp_path, real_clips, monkeypatch):
    """Who reconstructs in onnxruntime must see what training saw, with a mask for each clip."""
    monkeypatch.setattr(onnx_layout, "BESIDE", 0)
    if spec == "quickstart:mae":
        config, params, _ = exported.read_model(model_fixtures.mae_workdir())
    else:
        config, params = mae_models.audiomae(spec)
    clips, folder = real_clips[::5], tmp_path / "out"
    report = torch_export.export_params(config, params, None, folder, clips=clips, format="onnx")
    assert max(report.on_given.values()) <= 1e-5 and "mae_prediction" in report.on_given, report
    # The encoder, which both graphs have, is stored once.
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    assert (folder / "weights.data").stat().st_size <= 4 * count
    # As in training: patches drawn for each clip.
    config = exported.export_config(config, 0)  # float32
    inference = Inference(config, model_graph(config, 0)[0])
    audio = np.stack([sound(1.0, seed) for seed in range(3)])
    lengths = np.full(3, audio.shape[1])
    patches = inference.patches(jnp.asarray(audio), jnp.asarray(lengths))
    count = patches.mask.shape[1]
    order = np.random.default_rng(0).permuted(np.tile(np.arange(count), (3, 1)), axis=1)
    slots = order[:, : count // 4], order[:, count // 4 :]
    view = (take(patches, jnp.asarray(part), jnp.ones(part.shape, bool)) for part in slots)
    wanted = np.asarray(inference.reconstruct(params, *view))
    given = {"waveform": audio.astype(np.float32) / 32767, "lengths": lengths}
    given |= dict(zip(("visible", "dropped"), slots, strict=True))
    found, values, mask = session(folder, "mae.onnx").run(None, given)
    error = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert mask[:, :count].all() and error.max() <= 1e-5
    # Log-mel near silence is rounding; what lies behind the clip is padding.
    np.testing.assert_allclose(values[:, :count], patches.values, atol=1e-3)


def test_missing_packages_name_the_remedy(tmp_path, monkeypatch):
    """The runtime is an extra: who lacks it must learn how to get it, not see a traceback."""
    find = layouts.importlib.util.find_spec
    monkeypatch.setattr(
        layouts.importlib.util, "find_spec", lambda n: None if n == "onnxruntime" else find(n)
    )
    with pytest.raises(UserError, match=r"onnxruntime is not installed: .*alm_jax\[onnx\]"):
        onnx_layout.LAYOUT.require()


def test_fused_clap_goes_out(tmp_path, real_clips):
    """Repetition, four views and cubic stretching must come out of the graph as they do of JAX."""
    config, params, tokenizer = clap_models.clap(fused=True)
    clips = [*clap_models.resampled(real_clips[::4]), sound(8.5, 3)]  # the last is cut
    report = torch_export.export_params(
        config, params, tokenizer, tmp_path / "out", clips=clips, format="onnx"
    )
    assert max(report.on_given.values()) <= 1e-5, report
