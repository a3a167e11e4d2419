"""`alm export --format=official` of models that were trained here."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from ml_collections import ConfigDict

from alm_jax import cli
from alm_jax.checkpoints import Checkpoints
from alm_jax.config import load_config, save_config
from alm_jax.interop.exported import RECORD_NAME, read_model
from alm_jax.interop.formats import get_format
from alm_jax.interop.imported import KEPT_NAME
from alm_jax.interop.importing import from_alm, parameter_shapes
from alm_jax.train_state import TrainState, model_graph
from input_pipeline.text import FILE_NAME
from tests import random_params
from tests.interop import clap_models

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "clap.npz")
_SIZES = [
    "model.audio.dim=16", "model.audio.depths=(2,2)", "model.audio.heads=(2,4)",
    "model.text.width=32", "model.text.depth=1", "model.text.heads=4", "model.text.mlp_dim=64",
    "model.embed_dim=8",
]  # fmt: skip


def trained(folder: Path, *changes: str) -> tuple[Path, dict]:
    """A workdir as `alm train --config=laion_clap` leaves it, with fewer and narrower layers."""
    tokenizer = clap_models.tokenizer()
    rows = f"tokenizer.vocab_size={tokenizer.vocab_size}"
    config = load_config("laion_clap", [*_SIZES, rows, *changes])
    folder.mkdir()
    save_config(config, folder / "config.json")
    tokenizer.save(folder / FILE_NAME)
    params = random_params.draw(model_graph(config, tokenizer.vocab_size)[1])
    step = np.ones((), np.int32)
    saves = Checkpoints(folder)
    state = TrainState(step=step, params=params, opt_state={"count": step}, ema=None)
    saves.save(1, state, {"next_step": 1}, {"config_name": config.name}, force=True)
    saves.close()
    return folder, params


def official(workdir: Path, output: Path) -> int:
    words = [f"--model={workdir}", "--format=official", "--official=laion_clap"]
    return cli.main(["export", *words, f"--output={output}"])


@pytest.mark.parametrize("spec", ["laion_clap", "laion_clap:fusion"])
def test_every_tensor_that_the_official_code_asks_for(spec):
    """The official `load_ckpt` is strict: one name too few or of another shape, and it refuses."""
    config, format = ConfigDict(load_config(spec).to_dict()), get_format("laion_clap")
    zeros = {
        tuple(name.split(".")): np.broadcast_to(np.float32(0), shape)
        for name, shape in parameter_shapes(format, config).items()
    }
    found = dict(from_alm(format, config, nnx.traversals.unflatten_mapping(zeros)))
    case = "clap_laion_official_" + ("fused" if "fusion" in spec else "unfused")
    wanted = dict(json.loads(GOLDEN[f"{case}/params"].tobytes()))
    assert wanted.items() <= {name: list(array.shape) for name, array in found.items()}.items()
    constants = ("position_ids", "num_batches_tracked", "relative_position_index", "attn_mask")
    front_end = ("melW", "conv_real.weight", "conv_imag.weight")
    assert all(name.endswith((*constants, *front_end)) for name in found.keys() - wanted.keys())


def test_a_clap_of_ours_and_back(tmp_path):
    """A LAION-CLAP trained here could be used by none of the tools made for the official ones."""
    workdir, params = trained(tmp_path / "workdir")
    assert official(workdir, tmp_path / "official") == 0
    file = tmp_path / "official" / "laion_clap.pth"
    tensors = torch.load(file, weights_only=True)["state_dict"]
    assert not tensors["audio_transform.sequential.0.weight"].any()
    assert float(tensors["logit_scale_t"]) == pytest.approx(np.log(1 / 0.07))
    words = ["--format=laion_clap", f"--checkpoint={file}", f"--output={tmp_path / 'back'}"]
    assert cli.main(["import", *words, "--config.model.text.heads=4"]) == 0
    jax.tree.map(np.testing.assert_array_equal, read_model(tmp_path / "back")[1], params)
    # Imported from another layout, whose buffers are not this one's.
    record = json.loads((tmp_path / "back" / RECORD_NAME).read_text())
    (tmp_path / "back" / RECORD_NAME).write_text(json.dumps(record | {"format": "hf_clap"}))
    (tmp_path / "back" / KEPT_NAME).unlink()
    assert official(tmp_path / "back", tmp_path / "again") == 0
    again = torch.load(tmp_path / "again" / "laion_clap.pth", weights_only=True)["state_dict"]
    assert {n: t.shape for n, t in again.items()} == {n: t.shape for n, t in tensors.items()}


@pytest.mark.parametrize("format", ["torch", "hf", "onnx"])
def test_the_verb_takes_a_workdir(format, tmp_path, capsys, monkeypatch):
    """`--format=hf` of any LAION-CLAP that was not an export already ended in a traceback."""
    monkeypatch.chdir(tmp_path)  # where no quickstart has left the dataset that the config names
    workdir, _ = trained(tmp_path / "workdir")
    (tmp_path / "out").write_text("")
    words = [f"--model={workdir}", f"--format={format}", f"--output={tmp_path / 'out'}"]
    assert cli.main(["export", *words]) == 2
    assert "is a file" in capsys.readouterr().err  # as far as it gets before the work


def test_what_the_official_code_would_compute_otherwise_is_refused(tmp_path, capsys):
    """The file would load and give other embeddings, without a word."""
    workdir, _ = trained(tmp_path / "workdir", "frontend.mel_scale=htk", "model.text.eps=1e-12")
    assert official(workdir, tmp_path / "official") == 2
    message = capsys.readouterr().err
    assert "frontend.mel_scale='htk', there 'slaney'" in message
    assert "model.text.eps=1e-12, there 1e-05" in message and "--format=torch" in message
    assert not (tmp_path / "official").exists()
