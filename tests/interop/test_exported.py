"""Exported folders read back with JAX alone."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import alm_jax
from alm_jax import export as verb
from alm_jax.checkpoints import flat_names
from alm_jax.errors import UserError
from alm_jax.interop.exported import is_export, read_export, read_model
from alm_jax.interop.model_card import DataSummary
from input_pipeline.sources import open_source
from tests import model_fixtures


@pytest.fixture
def copy(clap, tmp_path):
    return shutil.copytree(clap[0], tmp_path / "copy")


def test_round_trip_is_exact(clap):
    """Parameters that came back changed would be another model."""
    _, wanted, _ = read_model(model_fixtures.clap_workdir())
    config, params, tokenizer = read_export(clap[0])
    wanted, found = flat_names(wanted), flat_names(params)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert tokenizer == model_fixtures.tiny_tokenizer()
    assert "export" not in config and config.name == "quickstart"


def test_load_takes_an_export(clap, jax_clap):
    """`alm search --model=EXPORT` must answer exactly as with the workdir."""
    found = alm_jax.load(clap[0])
    assert (found.has_captions, found.max_seconds, found.embed_dim) == (True, 2.0, 24)
    np.testing.assert_array_equal(found.embed_text(["rain"]), jax_clap.embed_text(["rain"]))


def test_export_of_an_export(clap, compiled, tmp_path, capsys, monkeypatch):
    """Who has only the exported folder must be able to export it again (a later format)."""
    monkeypatch.chdir(tmp_path)  # the model's own data is not here, wherever the tests are run
    assert verb.main([f"--model={clap[0]}", f"--output={tmp_path / 'again'}"]) == 0
    assert "differs from JAX" in capsys.readouterr().out
    first, second = (load_file(f / "model.safetensors") for f in (clap[0], tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def edit(folder, change):
    """Changes the tensors of an export with the official package."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_wrong_tensors_are_named(copy):
    """Files of two models mixed must be refused by name, not fail inside JAX."""
    edit(copy, lambda tensors: tensors.update(extra=np.zeros(3, np.float32)))
    with pytest.raises(UserError, match=r"1 tensors too many \(extra\)"):
        read_export(copy)
    edit(copy, lambda tensors: [tensors.pop("extra"), tensors.pop("audio.embed.bias")])
    with pytest.raises(UserError, match=r"audio\.embed\.bias is missing"):
        read_export(copy)
    edit(copy, lambda t: t.update({"audio.embed.bias": np.zeros(33, np.float32)}))
    with pytest.raises(UserError, match=r"audio\.embed\.bias has the shape \(33,\)"):
        read_export(copy)


def test_damaged_and_foreign_folders_are_explained(copy, tmp_path):
    """Half a download, another tokenizer, a newer format or any other folder: say which."""
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors does not fit"):
        read_export(copy)
    weights.unlink()
    with pytest.raises(UserError, match=r"there is no .*model\.safetensors"):
        read_export(copy)
    weights.write_bytes(whole)
    path = copy / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["export"]["format_version"] = 2
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match="export format 2, this alm_jax reads 1"):
        read_export(copy)
    del config["export"]
    path.write_text(json.dumps(config), encoding="utf-8")
    assert not is_export(copy)
    with pytest.raises(UserError, match="not written by `alm export`"):
        read_export(copy)
    with pytest.raises(UserError, match="neither a run's workdir"):
        read_model(tmp_path)


def test_foreign_tokenizer_is_noticed(copy):
    """Another tokenizer would turn every text into another one, silently."""
    other = model_fixtures.Tokenizer.train(["other words entirely", "a b c"] * 9, 300)
    other.save(copy / "tokenizer.model")
    with pytest.raises(UserError, match="belongs to another model"):
        read_export(copy)


def test_command_line_errors(tmp_path):
    """A results file that is none, or no model, must be said before minutes of work."""
    (tmp_path / "results.json").write_text("[1]")
    command = [f"--model={model_fixtures.clap_workdir()}", f"--output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match=r"not a results\.json"):
        verb.main([*command, f"--results={tmp_path / 'results.json'}"])
    with pytest.raises(UserError, match="holds no model"):
        verb.main([f"--model={tmp_path}", f"--output={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_real_clips_and_their_licences(tiny_dataset):
    """Parity is promised on real clips of differing lengths; the card names their licences."""
    clips, captions = verb.real_examples(str(tiny_dataset), "test", 16000)
    assert len(clips) == 20 and len(captions) == 20
    assert len({len(clip) for clip in clips}) > 10
    summary = DataSummary.read(tiny_dataset, "train", 16000)
    assert (
        sum(summary.licences.values()) == summary.clips == len(open_source(tiny_dataset, "train"))
    )
    assert "" not in summary.licences and summary.hours > 0.01
