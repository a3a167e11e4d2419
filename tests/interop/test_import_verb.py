"""`alm import` and the way back, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization
from ml_collections import ConfigDict

import alm_jax
from alm_jax import cli
from alm_jax.config import read_config
from alm_jax.errors import UserError
from alm_jax.init_from import init_from
from alm_jax.interop.checkpoint_files import open_checkpoint
from alm_jax.interop.flax_files import read_flax
from alm_jax.interop.huggingface_text import ROBERTA
from alm_jax.interop.importing import to_alm
from alm_jax.train_state import TrainState
from tests.interop.official_trees import CACOPHONY_HEADS, cacophony, nested, text_tower


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cacophony.ckpt, tiny, as flax writes it: with the optimiser's state beside the parameters."""
    path = tmp_path_factory.mktemp("official") / "Cacophony.ckpt"
    params = nested(cacophony("cacophony_caco_tiny"))
    tree = {"0": {"params": params, "opt_state": {"mu": params}, "step": 7}}
    path.write_bytes(serialization.msgpack_serialize(tree))
    return path


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


@pytest.fixture(scope="module")
def workdir(checkpoint: Path) -> Path:
    output = checkpoint.parent / "imported"
    arguments = [f"--checkpoint={checkpoint}", f"--output={output}", *CACOPHONY_HEADS]
    assert run("import", "--format=cacophony", *arguments) == 0
    return output


def test_imported_workdir_is_a_model(workdir: Path):
    """The released checkpoint could be imported, but not used."""
    model = alm_jax.load(workdir)
    rows = model.embed_audio([np.zeros(16000, np.float32), np.ones(9000, np.float32)], 16000)
    assert rows.shape == (2, 64) and np.isfinite(rows).all()
    with pytest.raises(UserError, match="--tokenizer=PATH"):
        model.embed_text("a dog")


def test_round_trip_of_the_file(workdir: Path, checkpoint: Path, tmp_path: Path):
    """The authors' code would get other parameters back than they published."""
    output = tmp_path / "official"
    assert run("export", f"--model={workdir}", "--format=official", f"--output={output}") == 0
    written = read_flax(output / checkpoint.name)["0"]["params"]
    flat = cacophony("cacophony_caco_tiny")

    def leaves(node, name=""):
        if isinstance(node, dict):
            for key, child in node.items():
                yield from leaves(child, f"{name}/{key}" if name else key)
        else:
            yield name, node.read()

    found = dict(leaves(written))
    assert found.keys() == flat.keys()
    for name, array in flat.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].shape == array.shape and found[name].dtype == array.dtype


def test_what_is_printed(checkpoint: Path, tmp_path: Path, capsys):
    """A user could not tell whether everything of the checkpoint was taken."""
    broken = nested(cacophony("cacophony_caco_tiny") | {"extra/kernel": np.ones((2, 2))})
    del broken["decoder_module"]["decoder_proj"]["bias"]
    path = tmp_path / "broken.ckpt"
    path.write_bytes(serialization.msgpack_serialize({"params": broken}))
    words = ["import", "--format=cacophony", f"--checkpoint={path}", *CACOPHONY_HEADS]
    words.append(f"--output={tmp_path / 'out'}")
    assert run(*words) == 2
    message = capsys.readouterr().err
    assert "decoder_module/decoder_proj/bias is missing" in message
    assert "extra/kernel is unexpected" in message and "--allow-missing" in message
    assert not (tmp_path / "out").exists()
    assert run(*words, "--allow-missing=(") == 2
    assert "--allow-missing: '(' is no regular expression" in capsys.readouterr().err
    words += ["--allow-missing=decoder_module/.*/bias", "--allow-unexpected=extra/.*"]
    assert run(*words) == 0
    shown = capsys.readouterr().out
    count = len(cacophony("cacophony_caco_tiny"))
    assert f"loaded: {count - 1}\n" in shown
    assert "missing, drawn anew: 1: decoder_module/decoder_proj/bias" in shown
    assert "unexpected, kept as they are: 1: extra/kernel" in shown
    assert run(*words) == 2 and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--config.model.audio.heads=2", "model.audio.heads=2 contradicts"),
        ("--config.model.embed_dim=32", "model.embed_dim=32 contradicts"),
        ("--config.model.text.heads=7", "7 heads do not divide a width"),
        ("--config.model.audio_pool.heads=7", "7 heads of a pooler do not divide a width"),
        ("--format=cacophny", "did you mean 'cacophony'"),
        ("--checkpoint=/nowhere", "there is no such file"),
    ],
)
def test_contradictions(change: str, message: str, checkpoint: Path, tmp_path: Path, capsys):
    """A wrong head count or width would load without a word and embed nonsense."""
    words = ["import", "--format=cacophony", f"--checkpoint={checkpoint}", *CACOPHONY_HEADS]
    assert run(*words, f"--output={tmp_path / 'out'}", change) == 2
    assert message in capsys.readouterr().err


def test_wrong_pool_heads_are_asked_for(checkpoint: Path, tmp_path: Path, capsys):
    """The official PyTorch port took 2 pooling heads for 8, and nothing said so."""
    words = ["import", "--format=cacophony", f"--checkpoint={checkpoint}"]
    assert run(*words, f"--output={tmp_path / 'out'}") == 2
    assert "config.model.audio_pool.heads has no default" in capsys.readouterr().err


def test_text_tower_to_start_from(tmp_path: Path):
    """A published RoBERTa could be imported, but no training could start from it."""
    arrays, config = text_tower("text_roberta_tiny")
    folder, output = tmp_path / "roberta", tmp_path / "imported"
    folder.mkdir()
    safetensors.numpy.save_file(arrays, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    words = [f"--checkpoint={folder}", f"--output={output}"]
    assert run("import", "--format=roberta", *words) == 0
    with pytest.raises(UserError, match=r"holds only text, text_pool.*init_from\.workdir="):
        alm_jax.load(output)
    there = read_config(output / "config.json")
    found = to_alm(ROBERTA, open_checkpoint(folder)).params
    blank = jax.tree.map(jnp.zeros_like, found)
    state = TrainState(jnp.zeros((), jnp.int32), blank, {}, None)
    init = ConfigDict(dict(workdir=str(output), parts=("text", "text_pool")))
    taken, _ = init_from(state, init, there.model)
    jax.tree.map(np.testing.assert_array_equal, taken.params, found)
    other = ConfigDict(there.model.to_dict())
    other.text.heads = 8
    with pytest.raises(UserError, match=r"model\.text\.heads is 4 in .* but 8 here"):
        init_from(state, init, other)


def test_record(workdir: Path):
    """The way back would not know the layout of the file."""
    record = json.loads((workdir / "official.json").read_text())
    assert record["format"] == "cacophony" and record["inside"] == ["0", "params"]
