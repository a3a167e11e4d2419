"""`--format=hf` as its user has it: transformers' Auto classes, no network, nothing of alm_jax."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest
import soxr

import alm_jax
from alm_jax.errors import UserError
from alm_jax.interop import clap_layout, exported, hf_layout, layouts, parity, torch_export
from tests import model_fixtures
from tests.interop import clap_models
from tests.interop.sounds import RATE, sound

pytestmark = pytest.mark.slow
TEXTS = ["a dog barks", "", "rain </s> on", "звонок", "word " * 500]

# Run by a stranger: prints nothing, writes what it computed.
SCRIPT = """
import sys
for name in ("alm_jax", "input_pipeline", "jax", "flax"):
    sys.modules[name] = None  # importing it is an error
import numpy as np, torch, transformers
folder, given, found = sys.argv[1:]
given = dict(np.load(given))
load = dict(trust_remote_code=True)
model = transformers.AutoModel.from_pretrained(folder, **load)
processor = transformers.AutoProcessor.from_pretrained(folder, **load)
clips = [given[f"clip{i}"] for i in range(len(given) - 1)]
text = {"text": given["texts"].tolist()} if len(given["texts"]) else {}
inputs = processor(audio=clips, sampling_rate=int(sys.stdin.read()), **text)
with torch.inference_mode():
    out = model(**inputs)
model.save_pretrained(folder + "_saved")
again = transformers.AutoModel.from_pretrained(folder + "_saved", **load)
for name, value in model.state_dict().items():
    assert torch.equal(value, again.state_dict()[name]), name
np.savez(found, **{name: value.numpy() for name, value in out.items()})
"""


def stranger(folder, tmp_path, clips, texts, rate):
    """What the folder gives in a fresh process without network or cache."""
    given, found = tmp_path / "given.npz", tmp_path / "found.npz"
    named = {f"clip{i}": clip for i, clip in enumerate(clips)}
    np.savez(given, texts=np.asarray(texts, str), **named)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(given), str(found)],
        cwd=tmp_path, env=environment, input=str(rate), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return dict(np.load(found))


def close(found, wanted, tolerance=1e-5):
    """Rows of norm 1."""
    assert np.linalg.norm(found - wanted, axis=1).max() <= tolerance


def test_model_and_processor(clap, compiled, jax_clap, tmp_path):
    """`processor(audio=..., text=...)` and the model must give the JAX model's embeddings."""
    folder = tmp_path / "model"
    report = torch_export.export_torch(model_fixtures.clap_workdir(), folder, format="hf")
    assert report.worst <= 1e-5, report
    assert {"processed_audio_embedding", "processed_text_embedding"} < set(report.differences)
    clips = [sound(seconds, seed) for seed, seconds in enumerate((0.01, 1.0, 4.5))]
    found = stranger(folder, tmp_path, clips, TEXTS, RATE)
    close(found["audio_embeds"], jax_clap.embed_audio(clips, RATE))
    close(found["text_embeds"], jax_clap.embed_text(TEXTS))
    assert found["logits_per_text"].shape == (5, 3)
    other = [soxr.resample(clip.astype(np.float32) / 32767, RATE, 44100) for clip in clips[1:]]
    found = stranger(folder, tmp_path, other, TEXTS[:1], 44100)
    close(found["audio_embeds"], jax_clap.embed_audio(other, 44100))
    # The folder is one of PyTorch's too, and alm_jax reads it.
    torch_model = layouts.load_module(folder).AudioTextModel.from_pretrained(folder)
    close(torch_model.embed_text(TEXTS).numpy(), jax_clap.embed_text(TEXTS))
    assert "auto_map" not in exported.read_export(folder)[0]
    close(alm_jax.load(folder).embed_text(TEXTS[:1]), jax_clap.embed_text(TEXTS[:1]))


def test_damage_is_refused(clap, compiled, tmp_path, monkeypatch):
    """The rule that nothing wrong is written holds for this format as for the others."""
    write = layouts.write_safetensors

    def damage(path, params):
        params = dict(params)
        params["text_proj.kernel"] = np.array(params["text_proj.kernel"])
        params["text_proj.kernel"][0] += 0.5
        return write(path, params)

    monkeypatch.setattr(layouts, "write_safetensors", damage)
    with pytest.raises(UserError, match=r"text_embedding differs from JAX by .* nothing was"):
        torch_export.export_torch(model_fixtures.clap_workdir(), tmp_path / "out", format="hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fused", [False, True], ids=["unfused", "fused"])
def test_clap_goes_out_as_clap(tmp_path, fused, real_clips, monkeypatch):
    """A LAION-CLAP must be one for `ClapModel`, not something that needs our code; or for torch."""
    config, params, tokenizer = clap_models.clap(fused)
    folder = tmp_path / "clap"
    compiled = functools.cache(lambda: parity.Reference(*kept))
    kept = []

    def reference(*parts):
        kept[:] = kept or parts
        return compiled()

    monkeypatch.setattr(torch_export, "Reference", reference)
    # Made of 16 kHz, they hold next to nothing above 8: bands that float32 easily gets wrong.
    given = dict(clips=clap_models.resampled(real_clips))
    report = torch_export.export_params(config, params, tokenizer, folder, format="hf", **given)
    assert report.worst <= 1e-5, report
    assert not list(folder.glob("*.py"))
    assert {"preprocessor_config.json", "tokenizer.json"} <= {f.name for f in folder.iterdir()}
    report = torch_export.export_params(config, params, tokenizer, tmp_path / "torch", **given)
    assert max(v for name, v in report.differences.items() if name != "log_mel") <= 1e-5, report


def test_other_htsats_take_our_code():
    """An HTSAT that ClapModel would compute differently must not be written as one."""
    config, _, tokenizer = clap_models.clap()
    rows = tokenizer.vocab_size
    assert hf_layout.layout(exported.export_config(config, rows, tokenizer)) is clap_layout.LAYOUT
    for field, value in (("model.text.causal", True), ("frontend.power", 1)):
        other = config.copy_and_resolve_references()
        with other.unlocked():
            other.update_from_flattened_dict({field: value})
        assert hf_layout.layout(exported.export_config(other, rows, tokenizer)) is hf_layout.LAYOUT
