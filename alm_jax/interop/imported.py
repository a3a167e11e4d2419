"""An imported model as a workdir, and back: the official file written again.

Besides what every workdir has (config.json, checkpoints/, tokenizer.model):

official.json          the format, and how the file was laid out: container, wrapper, types
official.safetensors   tensors of the file that are no parameters, as they were
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alm_jax.checkpoints import Checkpoints
from alm_jax.config import flatten, save_config
from alm_jax.errors import UserError
from alm_jax.inference.folder import find_model
from alm_jax.interop.checkpoint_files import read_safetensors, write_safetensors, write_torch
from alm_jax.interop.exported import RECORD_NAME, export_config, read_model, text_rows
from alm_jax.interop.facts import contradictions
from alm_jax.interop.flax_files import write_flax
from alm_jax.interop.formats import get_format
from alm_jax.interop.importing import (
    Checkpoint,
    Format,
    Imported,
    from_alm,
    in_memory,
    vocab_size,
)
from alm_jax.train_state import TrainState
from input_pipeline.text import FILE_NAME, Tokenizer

KEPT_NAME = "official.safetensors"
_SUFFIXES = {"torch": ".pth", "safetensors": ".safetensors", "flax": ".ckpt"}
# For models that were trained here and never imported: the container of a format, and the keys
# under which the official code looks for the tensors.
_NEW: dict[str, tuple[str, list[str]]] = {
    "audiomae": ("torch", ["model"]),
    "cacophony": ("flax", ["0", "params"]),
    "laion_clap": ("torch", ["state_dict"]),
}


def write_workdir(
    output: Path,
    format: Format,
    checkpoint: Checkpoint,
    found: Imported,
    tokenizer: Tokenizer | None = None,
) -> None:
    """Writes an imported model as the workdir of a run of no steps.

    Args:
      output: a folder that does not exist, or is empty.
      format: the checkpoint's kind.
      checkpoint: what was read.
      found: what became of it.
      tokenizer: of its text side, where the user has it.

    Raises:
      UserError: `output` holds something.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} is there already; name a new folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.parent / f".{output.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        save_config(found.config, partial / "config.json")
        if tokenizer is not None:
            tokenizer.save(partial / FILE_NAME)
        record = _record(format, checkpoint)
        (partial / RECORD_NAME).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if found.kept:
            listed = [(name, a.shape, a.dtype) for name, a in found.kept.items()]
            write_safetensors(partial / KEPT_NAME, listed, iter(found.kept.items()))
        step = np.zeros((), np.int32)
        params = _on_host(found.params)
        state = TrainState(step=step, params=params, opt_state={"count": step}, ema=None)
        saves = Checkpoints(partial)
        saves.save(0, state, {"next_step": 0}, {"imported": format.name}, force=True)
        saves.close()
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _on_host(params: Any) -> Any:
    """NumPy arrays as JAX arrays on the CPU, which share their memory.

    Orbax copies NumPy arrays before it writes them: the import of a model would take four times
    its size instead of two.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS names accelerators alone
        return params
    return jax.tree.map(lambda leaf: jax.device_put(leaf, cpu), params)


def _record(format: Format, checkpoint: Checkpoint) -> dict[str, Any]:
    folder = checkpoint.path.is_dir()
    float32 = np.dtype(np.float32)
    return {
        "format": format.name,
        "parts": list(format.parts),
        "container": checkpoint.container,
        "folder": folder,
        "file": checkpoint.path.name,
        "inside": list(checkpoint.inside),
        "prefix": checkpoint.prefix,
        "dtypes": {n: str(t.dtype) for n, t in checkpoint.tensors.items() if t.dtype != float32},
        "config": dict(checkpoint.config) if folder else {},
    }


def read_record(model_dir: Path) -> dict[str, Any] | None:
    """How the official file of an imported workdir was laid out; None for any other folder."""
    path = model_dir / RECORD_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def export_official(model_dir: str | Path, output: str | Path, format_name: str = "") -> Path:
    """Writes a model in the layout of the official code.

    Args:
      model_dir: a workdir or an exported folder.
      output: a folder that does not exist, or is empty.
      format_name: which format; "" for that of an imported model.

    Returns:
      The file, or the folder of a Hugging Face model.

    Raises:
      UserError: the model is of no such format, or `output` holds something.
    """
    model_dir, output = find_model(model_dir), Path(output).expanduser()
    record = read_record(model_dir)
    if not format_name and record is None:
        raise UserError(
            f"{model_dir} was not imported, so it is of no official format by itself; say which "
            "one to write: --official=cacophony, say"
        )
    new = record is None or (format_name and format_name != record["format"])
    record = _new_record(format_name) if new else record
    assert record is not None
    format = get_format(record["format"])
    config, params, tokenizer = read_model(model_dir)
    config = ConfigDict(config.to_dict())
    config.tokenizer.vocab_size = text_rows(config, tokenizer)
    kept = None
    if not new:  # another format has other buffers than those that came with the checkpoint
        path = model_dir / KEPT_NAME
        kept = {n: t.read() for n, t in read_safetensors(path).items()} if path.is_file() else {}
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output={output} is there already; name a new folder")
    if new:
        _refuse_other_model(format, config, dict(from_alm(format, config, params, kept)))
    output.mkdir(parents=True, exist_ok=True)

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for name, array in from_alm(format, config, params, kept):
            dtype = np.dtype(record["dtypes"].get(name, array.dtype))
            yield record["prefix"] + name, np.asarray(array, dtype)

    target = output / (record["file"] if not record["folder"] else "model.safetensors")
    inside = tuple(record["inside"])
    if record["folder"]:
        (output / "config.json").write_text(json.dumps(record["config"], indent=2) + "\n")
    if record["container"] == "flax":
        write_flax(target, tensors(), inside)
    elif record["container"] == "torch" and not record["folder"]:
        write_torch(target, tensors(), inside)
    else:
        listed = [(name, a.shape, a.dtype) for name, a in tensors()]
        write_safetensors(target, listed, tensors())
    return output if record["folder"] else target


def read_otherwise(
    format: Format, config: ConfigDict, tensors: Mapping[str, np.ndarray]
) -> list[tuple[str, Any, Any]]:
    """What the official code would compute otherwise, from a file of our tensors.

    Most of a model is in the code that reads its tensors, not in them.

    Args:
      format: the kind of file.
      config: the model's.
      tensors: `from_alm`'s.

    Returns:
      Key, our value and the official code's, of every field of the config that differs.
    """
    rows = vocab_size(config)
    told = format.configure(in_memory(tensors))
    ours = flatten(export_config(config, rows))
    for key, value in flatten(told).items():
        if value is None and ours.get(key) is not None:  # what no tensor tells
            told.update_from_flattened_dict({key: ours[key]})
    theirs = flatten(export_config(told, rows))
    return list(contradictions(ours, theirs, format.choices))


def _refuse_other_model(format: Format, config: ConfigDict, tensors: dict[str, np.ndarray]) -> None:
    """Refuses to write what the official code would read as another model."""
    found = read_otherwise(format, config, tensors)
    if found:
        listed = "\n  ".join(f"{key}={ours!r}, there {there!r}" for key, ours, there in found[:8])
        raise UserError(
            f"--official={format.name}: the tensors fit, but the official code computes something "
            f"else with them:\n  {listed}\nWrite --format=torch, hf or onnx, which hold the model "
            "as it is; or train with the official values of these fields"
        )


def _new_record(name: str) -> dict[str, Any]:
    get_format(name)
    if name not in _NEW:
        raise UserError(
            f"--official={name}: only an imported model can be written as that; choose one of "
            f"{list(_NEW)}"
        )
    container, inside = _NEW[name]
    return {
        "format": name,
        "container": container,
        "folder": False,
        "file": name + _SUFFIXES[container],
        "inside": inside,
        "prefix": "",
        "dtypes": {},
        "config": {},
    }
