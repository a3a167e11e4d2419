"""Reading and writing official files: every container, and what must not happen while reading."""

from __future__ import annotations

import argparse
import collections
import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax import serialization

from alm_jax.errors import UserError
from alm_jax.interop.checkpoint_files import open_checkpoint, write_safetensors, write_torch
from alm_jax.interop.flax_files import write_flax
from alm_jax.interop.torch_files import read_torch


def state_dict() -> dict:
    """A state dict with all that makes one awkward: strides, shared storage, small types."""
    state = torch.nn.Linear(3, 2).state_dict()  # carries an attribute, _metadata
    shared = torch.arange(10.0)
    return collections.OrderedDict(
        state,
        transposed=torch.arange(12.0).reshape(3, 4).t(),
        part=shared[2:5],
        other_part=shared[6:],
        parameter=torch.nn.Parameter(torch.randn(2, 3)),
        scalar=torch.tensor(3),
        half=torch.randn(4).half(),
        brain=torch.randn(4).bfloat16(),
        nothing=torch.empty(0, 5),
        yes=torch.tensor([True, False]),
    )


def assert_same(tensors, state):
    assert tensors.keys() == state.keys()
    for name, wanted in state.items():
        found = tensors[name].read()
        assert tensors[name].shape == found.shape == tuple(wanted.shape), name
        wanted = wanted.detach().to(torch.float64).numpy()
        np.testing.assert_array_equal(found.astype(np.float64), wanted, err_msg=name)


@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoint(legacy: bool, tmp_path: Path):
    """A checkpoint with optimiser, arguments and counters beside the model could not be read."""
    state = state_dict()
    moments = {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2, 3)}}
    tree = {
        "model": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 3,
        "args": argparse.Namespace(model="mae_vit_base_patch16", lr=np.float64(3), out=Path("/x")),
        "numpy": np.arange(3),
        "random": np.random.RandomState(0).get_state(),
        "set": {1, 2},
        "counter": collections.Counter("abc"),
    }
    path = tmp_path / "pretrained.pth"
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    found = open_checkpoint(path)
    assert_same(found.tensors, state)
    assert found.prefix == "module." and found.inside == ("model",)
    assert found.config["model"] == "mae_vit_base_patch16"
    assert "optimizer" in found.beside and "epoch" in found.beside


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_checkpoint_is_run(legacy: bool, tmp_path: Path):
    """Importing a downloaded checkpoint would run its author's code with the user's rights."""

    class Trap:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    class BuiltinTrap:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    path = tmp_path / "trap.pth"
    tree = {"model": {"w": torch.ones(2)}, "a": Trap(), "b": BuiltinTrap()}
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
    assert open_checkpoint(path).tensors["w"].read().tolist() == [1, 1]
    assert not (tmp_path / "sprung").exists()


def test_tensor_beyond_its_storage(tmp_path: Path):
    """A forged size would read memory that is not the file's."""
    path = tmp_path / "forged.pth"
    # The older format has no checksums to forge.
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b"M\xe8\x03") >= 1  # 1000 as pickle writes it
    path.write_bytes(data.replace(b"M\xe8\x03", b"M\xff\xff"))
    with pytest.raises(UserError, match="larger than its storage"):
        open_checkpoint(path).tensors["w"].read()


@pytest.mark.parametrize("size", [4, 60, 900])
def test_cut_files(size: int, tmp_path: Path):
    """A broken download would end in a traceback."""
    params = {"params": {"dense": {"kernel": np.ones((40, 10), np.float32)}}}
    whole = {
        "a.pth": tmp_path / "whole.pth",
        "a.safetensors": tmp_path / "whole.safetensors",
        "a.ckpt": tmp_path / "whole.ckpt",
    }
    torch.save({"w": torch.ones(400)}, whole["a.pth"])
    safetensors.numpy.save_file({"w": np.ones(400, np.float32)}, whole["a.safetensors"])
    whole["a.ckpt"].write_bytes(serialization.msgpack_serialize(params))
    for name, source in whole.items():
        path = tmp_path / name
        path.write_bytes(source.read_bytes()[:size])
        with pytest.raises(UserError, match="copy it again"):
            open_checkpoint(path)


def test_damaged_files(tmp_path: Path):
    """A download with wrong bytes in it would end in a traceback, or bring the process down."""
    arrays = {f"layer{i}.weight": np.ones((3, 4), np.float32) for i in range(3)}
    state = {"model": {name: torch.from_numpy(array) for name, array in arrays.items()}, "epoch": 3}
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "stream.pth", _use_new_zipfile_serialization=False)
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    (tmp_path / "a.ckpt").write_bytes(serialization.msgpack_serialize({"params": arrays}))
    rng = np.random.default_rng(0)
    refused = 0
    for whole in [path.read_bytes() for path in sorted(tmp_path.iterdir())]:
        for _ in range(60):
            data = np.frombuffer(whole, np.uint8).copy()
            data[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
            (tmp_path / "damaged").write_bytes(data.tobytes())
            try:
                for tensor in open_checkpoint(tmp_path / "damaged").tensors.values():
                    np.array(tensor.read())
            except UserError as error:
                refused += 1
                assert str(tmp_path) in str(error) or "copy it again" in str(error)
    assert refused > 60


def test_huggingface_folder_in_pieces(tmp_path: Path):
    """A large model comes as several files and an index."""
    first, second = {"a.w": np.ones((2, 3), np.float32)}, {"b.w": np.zeros(4, np.float16)}
    safetensors.numpy.save_file(first, tmp_path / "model-1.safetensors")
    brain = np.arange(3).astype(ml_dtypes.bfloat16)
    with_brain = [("b.w", (4,), np.dtype(np.float16)), ("c", (3,), brain.dtype)]
    arrays = iter([("b.w", second["b.w"]), ("c", brain)])
    write_safetensors(tmp_path / "model-2.safetensors", with_brain, arrays)
    assert safetensors.safe_open(tmp_path / "model-2.safetensors", "pt").get_tensor(
        "c"
    ).tolist() == [
        0,
        1,
        2,
    ]
    index = {"a.w": "model-1.safetensors", "b.w": "model-2.safetensors", "c": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    found = open_checkpoint(tmp_path)
    assert found.tensors.keys() == {"a.w", "b.w", "c"} and found.config["num_attention_heads"] == 4
    np.testing.assert_array_equal(found.tensors["c"].read().astype(int), [0, 1, 2])
    index["a.w"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(UserError, match="not a file of that folder"):
        open_checkpoint(tmp_path)


def test_flax_in_chunks(tmp_path: Path, monkeypatch):
    """Tables above 1 GiB are stored in pieces, which would look like unknown leaves."""
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    table = np.arange(60, dtype=np.float32).reshape(6, 10)
    path = tmp_path / "big.ckpt"
    path.write_bytes(serialization.msgpack_serialize({"0": {"params": {"table": table}}}))
    found = open_checkpoint(path)
    np.testing.assert_array_equal(found.tensors["table"].read(), table)


def test_written_files_are_what_the_libraries_read(tmp_path: Path):
    """Files written back would be readable by this project alone."""
    flat = {"a/kernel": np.ones((2, 3), np.float32), "scale": np.float32(2).reshape(())}
    write_flax(tmp_path / "x.ckpt", iter(flat.items()), ("0", "params"))
    read = serialization.msgpack_restore((tmp_path / "x.ckpt").read_bytes())["0"]["params"]
    assert read["a"]["kernel"].shape == (2, 3) and read["scale"].shape == ()
    brain = np.arange(3).astype(ml_dtypes.bfloat16)
    write_torch(
        tmp_path / "x.pth", iter([("w.b", np.ones((2, 3))[:, 1:]), ("c", brain)]), ["model"]
    )
    state = torch.load(tmp_path / "x.pth", weights_only=True)["model"]
    assert state["w.b"].shape == (2, 2) and state["c"].dtype == torch.bfloat16
    assert read_torch(tmp_path / "x.pth")["model"]["c"].dtype == ml_dtypes.bfloat16


def test_file_without_tensors(tmp_path: Path):
    """A wrong file would import as an empty model."""
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no tensors"):
        open_checkpoint(tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"the folder has no model\.safetensors"):
        open_checkpoint(tmp_path)
