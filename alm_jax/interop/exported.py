"""Exported folders read back into JAX, without PyTorch; and any model folder, exported or not."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from safetensors import SafetensorError, safe_open

import alm_jax
from alm_jax.audio.frontend import LogMelConfig
from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import read_config
from alm_jax.errors import UserError
from alm_jax.interop.tensors import from_torch
from alm_jax.models.mae_decoders import decoder_config
from alm_jax.models.text_roberta import TextConfig
from alm_jax.models.towers import tower_config
from alm_jax.models.transformer import TransformerConfig
from alm_jax.train_state import model_graph
from input_pipeline.text import FILE_NAME, Tokenizer

FORMAT = "alm_jax"
FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
RECORD_NAME = "official.json"  # in a workdir that `alm import` wrote, see `imported`
STACKS = ("audio", "mae_decoder", "text", "caption_decoder")


def export_config(config: ConfigDict, vocab_size: int) -> ConfigDict:
    """The config of an exported folder: every default spelt out, so that no reader must know them.

    Args:
      config: the experiment.
      vocab_size: rows of the text embedding, 0 without a text side.

    Returns:
      The config with all fields of front end, stacks and poolers, `model.dtype` "float32", and a
      group `export`: `format`, `format_version`, `alm_jax_version`, `vocab_size`.
    """
    tree = config.copy_and_resolve_references().to_dict()
    tree["frontend"] = dataclasses.asdict(LogMelConfig(**tree["frontend"]))
    model = tree["model"]
    for name in STACKS:
        if model.get(name) is not None:
            model[name] = dataclasses.asdict(_fields(config, name))
    for name in ("audio_pool", "text_pool"):
        if model.get(name) is not None:
            model[name] = {"heads": 1, "output": True, **model[name]}
    if model.get("text") is not None:
        model.setdefault("projection", "linear")
    model["dtype"] = "float32"
    tree["export"] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "alm_jax_version": alm_jax.__version__,
        "vocab_size": vocab_size,
    }
    return ConfigDict(tree)


def _fields(config: ConfigDict, stack: str) -> Any:
    """The dataclass of one of `STACKS`."""
    if stack == "audio":
        return tower_config(config)
    if stack == "mae_decoder":
        return decoder_config(config.model.mae_decoder)
    return (TextConfig if stack == "text" else TransformerConfig)(**config.model[stack])


def is_export(folder: Path) -> bool:
    """Whether `alm export` wrote the folder."""
    if not ((folder / "config.json").is_file() and (folder / WEIGHTS_NAME).is_file()):
        return False
    return "export" in read_config(folder / "config.json")


def read_export(
    folder: str | os.PathLike[str],
) -> tuple[ConfigDict, dict[str, Any], Tokenizer | None]:
    """Reads what `alm export` wrote.

    Args:
      folder: the exported folder.

    Returns:
      The config (as the experiment's, defaults spelt out, float32), the parameters as nested dicts
      of float32 numpy arrays, identical to those exported, and the tokenizer (None without a text
      side).

    Raises:
      UserError: not an exported folder, a newer format, or tensors that are missing, left over, of
        another shape, or cut short.
    """
    folder = Path(folder)
    config = read_config(folder / "config.json")
    if "export" not in config or config.export.get("format") != FORMAT:
        raise UserError(
            f"{folder / 'config.json'} has no group 'export' of format {FORMAT!r}: the folder was "
            "not written by `alm export`"
        )
    version = config.export.format_version
    if version != FORMAT_VERSION:
        raise UserError(
            f"{folder} has export format {version}, this alm_jax reads {FORMAT_VERSION}; it was "
            f"written by alm_jax {config.export.alm_jax_version}: install that version"
        )
    vocab_size = int(config.export.vocab_size)
    tokenizer = None if config.model.text is None else Tokenizer.load(folder / FILE_NAME)
    if tokenizer is not None and tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder / FILE_NAME} has {tokenizer.vocab_size} pieces, but the model {vocab_size}: "
            "it belongs to another model; export again"
        )
    tree = config.to_dict()
    del tree["export"]
    experiment = ConfigDict(tree)
    experiment.lock()
    return experiment, _read_params(folder / WEIGHTS_NAME, config, vocab_size), tokenizer


def _read_params(path: Path, config: ConfigDict, vocab_size: int) -> dict[str, Any]:
    try:
        with safe_open(path, "np") as file:
            left = set(file.keys())
            _, abstract = model_graph(config, vocab_size)
            flat = flat_names(nnx.to_pure_dict(abstract))
            shapes = {name: tuple(leaf.shape) for name, leaf in flat.items()}

            def read(name: str) -> np.ndarray:
                if name not in left:
                    raise ValueError(f"{name} is missing")
                left.remove(name)
                return file.get_tensor(name)

            params = from_torch(shapes, read)
    except FileNotFoundError:
        raise UserError(f"there is no {path}; export again") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} does not fit its config.json: {error}; export again") from error
    if left:
        shown = ", ".join(sorted(left)[:5])
        raise UserError(f"{path} holds {len(left)} tensors too many ({shown}); export again")
    return nnx.traversals.unflatten_mapping({tuple(n.split(".")): v for n, v in params.items()})


def _imported_without_tokenizer(path: Path) -> bool:
    record = path / RECORD_NAME
    if not record.is_file():
        return False
    if parts := json.loads(record.read_text(encoding="utf-8")).get("parts"):
        raise UserError(
            f"{path} holds only {', '.join(parts)} of a model: train from it with "
            f"--config.init_from.workdir={path} --config.init_from.parts={','.join(parts)}"
        )
    return not (path / FILE_NAME).is_file()


def read_model(
    folder: str | os.PathLike[str],
) -> tuple[ConfigDict, dict[str, Any], Tokenizer | None]:
    """Config, parameters (numpy) and tokenizer of a run's workdir or of an exported folder.

    Of a workdir, the newest whole checkpoint (its moving average, where there is one) is taken. The
    tokenizer is None for a model without a text side, or imported without one.

    Raises:
      UserError: it is neither, or holds one tower only, or a part is missing.
    """
    path = Path(folder)
    if is_export(path):
        return read_export(path)
    if not (path / "checkpoints").is_dir():
        raise UserError(
            f"{path} is neither a run's workdir (config.json and checkpoints/) nor an exported "
            f"folder (config.json and {WEIGHTS_NAME})"
        )
    config = read_config(path / "config.json")
    tokenizer = None
    # An imported model may lack its tokenizer; a trained one never does.
    if config.model.text is not None and not _imported_without_tokenizer(path):
        tokenizer = Tokenizer.load(path / FILE_NAME)
    checkpoints = Checkpoints(path, read_only=True)
    try:
        params, _ = checkpoints.restore_params()
    finally:
        checkpoints.close()
    return config, params, tokenizer
