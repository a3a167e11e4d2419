"""Export as a user does it: from a workdir to a folder that stands by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import alm_jax
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.retrieval import retrieval_metrics
from alm_jax.interop import exported, layouts, parity_inputs
from alm_jax.interop.exported import export_config
from alm_jax.interop.torch_export import export_params, export_torch, load_module
from alm_jax.train_state import model_graph
from tests import model_fixtures, random_params
from tests.interop.sounds import RATE, sound

FILES = ["README.md", "config.json", "golden.npz", "model.safetensors", "modeling_alm.py"]
CAPTIONS = model_fixtures.CAPTIONS


def same_rows(found, wanted, tolerance=1e-5):
    """Asserts the same direction and length of every row, relative to the row."""
    error = np.linalg.norm(np.asarray(found) - wanted, axis=1)
    assert np.all(error <= tolerance * np.linalg.norm(wanted, axis=1)), error


def test_stage_2_is_equal_from_waveform_to_logits(clap, clips, real_clips):
    """The promise of the export, on 20 recordings too: users get the trained model's numbers."""
    output, report = clap
    assert sorted(path.name for path in output.iterdir()) == sorted([*FILES, "tokenizer.model"])
    assert report.worst <= 1e-5, report
    assert {"log_mel", "audio_embedding", "text_embedding", "caption_logits"} < set(
        report.differences
    )
    assert report.real and report.clips == len(clips) + 20 + parity_inputs.ROWS
    assert report.captions == len(CAPTIONS) + parity_inputs.ROWS


def test_stage_1_goes_out_with_its_decoder(mae, clips):
    """A masked autoencoder without its decoder could not be fine-tuned in PyTorch."""
    output, report = mae
    assert sorted(path.name for path in output.iterdir()) == FILES
    assert report.worst <= 1e-5, report
    assert set(report.differences) == {"log_mel", "audio_embedding", "mae_prediction"}
    model = load_module(output).AudioTextModel.from_pretrained(output)
    wanted = alm_jax.load(model_fixtures.mae_workdir()).embed_audio(clips[3:4], RATE)
    same_rows(model.embed_audio(clips[3:4]), wanted)
    assert not hasattr(model, "embed_text") and not model.has_text


def test_nothing_else_is_left_behind(exports, clap, mae):
    """Temporary folders beside the output would pile up, or be taken for exports."""
    assert {path.name for path in exports.iterdir()} == {"clap", "mae"}


def test_whole_interface_equals_jax(torch_clap, jax_clap, clips):
    """Clips of any length, windows included, and texts must come out as `alm_jax.load` has them."""
    same_rows(torch_clap.embed_audio(clips), jax_clap.embed_audio(clips, RATE))
    floats = [clip.astype(np.float32) / 32767 for clip in clips[2:4]]
    same_rows(torch_clap.embed_audio(floats), jax_clap.embed_audio(clips[2:4], RATE))
    texts = [*CAPTIONS, "", "word " * 5000, "\ud800 lone surrogate"]
    same_rows(torch_clap.embed_text(texts), jax_clap.embed_text(texts))
    assert torch_clap.caption(clips[:6]) == jax_clap.caption(clips[:6], RATE)
    similarity = torch_clap.similarity(torch_clap.embed_audio(clips), torch_clap.embed_text(texts))
    cosines = jax_clap.embed_audio(clips, RATE) @ jax_clap.embed_text(texts).T
    scale = float(torch_clap.logit_scale.exp())
    np.testing.assert_allclose(similarity.numpy(), scale * cosines, rtol=1e-4, atol=1e-4)


def test_retrieval_numbers_are_equal(torch_clap, jax_clap):
    """Results reported for the JAX model would not hold for the model that people download."""
    sounds = [sound(0.2 + 0.05 * seed, 100 + seed) for seed in range(24)]
    texts = [f"sound number {n} of {CAPTIONS[n % len(CAPTIONS)]}" for n in range(24)]
    order = np.random.default_rng(0).permutation(24)
    jax_numbers = retrieval_metrics(
        jax_clap.embed_audio(sounds, RATE), jax_clap.embed_text(texts), order
    )
    torch_numbers = retrieval_metrics(
        torch_clap.embed_audio(sounds).numpy(), torch_clap.embed_text(texts).numpy(), order
    )
    assert torch_numbers == jax_numbers


def test_embedding_does_not_depend_on_the_batch(torch_clap, clips):
    """A sound would be found or not depending on what it is embedded with."""
    together = torch_clap.embed_audio(clips)
    for batch_size in (1, 3):
        same_rows(torch_clap.embed_audio(clips, batch_size=batch_size), together.numpy(), 2e-6)
    waveform, lengths = torch_clap.batch(torch_clap.clips(clips[1:4], RATE))
    padded = torch.nn.functional.pad(waveform, (0, 7777), value=0.5)
    alone, among = (torch_clap.listen(x, lengths) for x in (waveform, padded))
    assert among.mask.shape[1] > alone.mask.shape[1]
    same_rows(
        torch_clap.audio_embedding(among.hidden, among.mask),
        torch_clap.audio_embedding(alone.hidden, alone.mask).numpy(), 2e-6,
    )  # fmt: skip
    alone = torch_clap.embed_text(CAPTIONS[:1])
    same_rows(torch_clap.embed_text(CAPTIONS)[:1], alone.numpy(), 2e-6)


@pytest.mark.parametrize(
    ("audio", "rate"),
    [
        (np.zeros(10, np.int16), 44100),
        ([np.zeros(0, np.int16)], RATE),
        ([np.array([0.1, np.nan], np.float32)], RATE),
        ([np.zeros((10, 2), np.float32)], RATE),
        ([np.zeros(10, np.int64)], RATE),
    ],
)
def test_bad_audio_is_refused(torch_clap, audio, rate):
    """Wrong rate, empty, NaN, stereo or odd integers must not give an embedding of nothing."""
    with pytest.raises(ValueError, match=r"resample it|must be mono samples"):
        torch_clap.embed_audio(audio, sample_rate=rate)


def test_folder_works_without_this_package(clap, tmp_path):
    """The user of an export has neither alm_jax, JAX nor safetensors."""
    moved = tmp_path / "élsewhere"
    shutil.copytree(clap[0], moved)
    code = (
        "import sys\n"
        "for name in ('alm_jax', 'input_pipeline', 'jax', 'flax', 'safetensors'):\n"
        "    sys.modules[name] = None\n"  # importing it is an error
        "import numpy as np, modeling_alm\n"
        "model = modeling_alm.AudioTextModel.from_pretrained('.')\n"
        "x = np.arange(9000, dtype=np.int16)\n"
        "print(tuple(model.embed_audio([x]).shape), tuple(model.embed_text(['a', 'b']).shape))\n"
        "modeling_alm.main(modeling_alm.Path('.'))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=moved, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "(1, 24) (2, 24)"
    assert len(lines) == 6 and all(float(line.split()[-1]) <= 1e-5 for line in lines[1:]), lines


def test_model_card_says_what_a_stranger_asks(clap):
    """Licences, numbers with their circumstances, and how to use it belong to the weights."""
    text = (clap[0] / "README.md").read_text(encoding="utf-8")
    parameters = f"{clap[1].parameters:,} parameters"
    for part in (parameters, "| CC0-1.0 | 600 |", "not stated", "R@10 | 0.53 | 0.012 | 840 | 820"):
        assert part in text, part
    usage = text.split("```")[1]
    assert usage.count("\n") <= 8 and "from_pretrained" in usage


def test_config_spells_out_every_default(clap):
    """A default that changes in a later version must not change an old export."""
    config = json.loads((clap[0] / "config.json").read_text(encoding="utf-8"))
    assert config["frontend"]["hop_length"] == 160
    assert config["model"]["text"]["eps"] == 1e-5
    assert config["export"]["vocab_size"] == model_fixtures.tiny_tokenizer().vocab_size
    bf16 = export_config(load_config("quickstart", ["model.dtype=bfloat16"]), 300)
    assert bf16.model.dtype == "float32", "exports are float32, whatever the training used"


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_wrong_weight_is_refused_and_the_old_export_stays(clap, compiled, monkeypatch):
    """One damaged tensor must not replace a good export."""
    before = contents(clap[0])
    write = layouts.write_safetensors

    def damage(path, params):
        params = dict(params)
        name = "audio.transformer.blocks.mlp.up.kernel"
        params[name] = np.array(params[name])
        params[name][1, 3, 4] += 0.5
        return write(path, params)

    monkeypatch.setattr(layouts, "write_safetensors", damage)
    with pytest.raises(UserError, match=r"audio_embedding differs from JAX by .* nothing was"):
        export_torch(model_fixtures.clap_workdir(), clap[0])
    assert contents(clap[0]) == before
    assert not list(clap[0].parent.glob(".*"))


@pytest.mark.parametrize("fault", ["collapsed", "nan"])
def test_useless_model_is_refused(tmp_path, compiled, clips, fault):
    """A model that maps everything to one point, or to NaN, must not look like a result."""
    config, params, tokenizer = exported.read_model(model_fixtures.clap_workdir())
    projection = params["audio_proj"]
    kernel = np.zeros_like(projection["kernel"]) if fault == "collapsed" else np.nan
    params["audio_proj"] = {**projection, "kernel": np.full_like(projection["kernel"], kernel)}
    message = "model has collapsed" if fault == "collapsed" else "not finite"
    with pytest.raises(UserError, match=message):
        export_params(config, params, tokenizer, tmp_path / "out", clips=clips[2:5])
    assert not list(tmp_path.iterdir())


def test_other_peoples_folders_are_not_replaced(tmp_path):
    """`--output=.` must not delete the user's files."""
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(UserError, match="something else than an export"):
        export_torch(model_fixtures.clap_workdir(), tmp_path)
    with pytest.raises(UserError, match="is a file"):
        export_torch(model_fixtures.clap_workdir(), tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "irreplaceable"


def test_missing_torch_names_the_remedy(tmp_path, monkeypatch):
    """PyTorch is an extra: who lacks it must learn how to get it, not see a traceback."""
    monkeypatch.setattr(layouts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'alm_jax\[torch\]'"):
        export_torch(model_fixtures.clap_workdir(), tmp_path / "out")


def test_every_other_choice_of_the_config(tmp_path):
    """Post-LN, other poolers, widths, activations, front end; both decoders; the sigmoid loss."""
    changes = [
        "model.text.norm=post", "model.text.width=48", "model.text.activation=gelu_tanh",
        "model.caption_decoder.width=48", "model.caption_decoder.norm=post",
        "model.audio.activation=relu", "model.audio_pool.kind=first", "model.text_pool.kind=mean",
        "patches.tail=drop", "patches.time=8", "data.max_seconds=1.0",
    ]  # fmt: skip
    base = load_config(str(model_fixtures.clap_workdir() / "config.json"), changes)
    tree = base.to_dict()
    stage1 = exported.read_config(model_fixtures.mae_workdir() / "config.json")
    tree["model"]["mae_decoder"] = stage1.model.mae_decoder.to_dict()
    tree["frontend"] = {"framing": "centre_reflect", "power": 2, "subtract_waveform_mean": True}
    tree["model"]["logit_bias_init"] = -10.0
    config = type(base)(tree)
    tokenizer = model_fixtures.tiny_tokenizer()
    _, abstract = model_graph(config, tokenizer.vocab_size)
    params = random_params.draw(abstract)
    report = export_params(config, params, tokenizer, tmp_path / "out")
    assert report.worst <= 1e-5, report
    assert "mae_prediction" in report.differences and "caption_logits" in report.differences
    config_back, back, _ = exported.read_export(tmp_path / "out")
    assert config_back.model.text.norm == "post"
    np.testing.assert_array_equal(back["text"]["words"], params["text"]["words"])
    model = load_module(tmp_path / "out").AudioTextModel.from_pretrained(tmp_path / "out")
    logits = model.similarity(*2 * [torch.eye(2)]).numpy()
    wanted = np.exp(params["logit_scale"]) * np.eye(2) + params["logit_bias"]
    np.testing.assert_allclose(logits, wanted, rtol=1e-6)
