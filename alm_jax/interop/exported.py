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
from alm_jax.audio.patches import PatchConfig
from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import read_config
from alm_jax.errors import UserError
from alm_jax.interop.tensors import align, from_torch
from alm_jax.models.mae_decoders import decoder_config
from alm_jax.models.text_roberta import TextConfig
from alm_jax.models.towers import tower_config
from alm_jax.models.transformer import TransformerConfig
from alm_jax.train_state import model_graph
from input_pipeline.text import FILE_NAME, Tokenizer

FORMAT = "alm_jax"
FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
EXPORT_MARK = "alm_export.json"  # in exported folders that are not for alm_jax to read
RECORD_NAME = "official.json"  # in a workdir that `alm import` wrote, see `imported`
STACKS = ("audio", "mae_decoder", "text", "caption_decoder")
# Kind of tokenizer -> its file in an exported folder.
TOKENIZER_FILES = {"sentencepiece": FILE_NAME, "json": "tokenizer.json"}
# What `alm export --format=hf` adds to config.json for transformers.
HUGGING_FACE_KEYS = ("architectures", "auto_map", "dtype", "model_type", "transformers_version")


def export_config(
    config: ConfigDict, vocab_size: int, tokenizer: Tokenizer | None = None
) -> ConfigDict:
    """The config of an exported folder: every default spelt out, so that no reader must know them.

    Args:
      config: the experiment.
      vocab_size: rows of the text embedding, 0 without a text side.
      tokenizer: of the model, if it has one.

    Returns:
      The config with all fields of front end, patches, stacks, poolers and classifier,
      `model.dtype` "float32", and a group `export`: `format`, `format_version`, `alm_jax_version`,
      `vocab_size`, `tokenizer` ("", or a key of `TOKENIZER_FILES`), and the ids `tokens` of pad,
      bos and eos.
    """
    tree = config.copy_and_resolve_references().to_dict()
    tree["frontend"] = dataclasses.asdict(LogMelConfig(**tree["frontend"]))
    tree["patches"] = dataclasses.asdict(PatchConfig(**tree["patches"]))
    model = tree["model"]
    if model.get("classifier") is not None:
        model["classifier"] = {"pool": "mean", "eps": 1e-6, **model["classifier"]}
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
        "tokenizer": "" if tokenizer is None else tokenizer_kind(tokenizer),
        "tokens": {
            name: getattr(tokenizer or Tokenizer, f"{name}_id") for name in ("pad", "bos", "eos")
        },
    }
    return ConfigDict(tree)


def tokenizer_kind(tokenizer: Tokenizer) -> str:
    """A key of `TOKENIZER_FILES`: what the tokenizer's file holds."""
    return "json" if tokenizer.model_proto[:1] == b"{" else "sentencepiece"


def text_rows(config: ConfigDict, tokenizer: Tokenizer | None) -> int:
    """Rows of the text embedding; an imported model may lack its tokenizer."""
    if config.model.text is None:
        return 0
    return tokenizer.vocab_size if tokenizer is not None else int(config.tokenizer.vocab_size)


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
    # Folders of earlier versions do not name their tokenizer.
    kind = config.export.get("tokenizer", "" if config.model.text is None else "sentencepiece")
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILES[kind]) if kind else None
    if tokenizer is not None and tokenizer.vocab_size != vocab_size:
        raise UserError(
            f"{folder / TOKENIZER_FILES[kind]} has {tokenizer.vocab_size} pieces, but the model "
            f"{vocab_size}: it belongs to another model; export again"
        )
    tree = config.to_dict()
    for name in ("export", *HUGGING_FACE_KEYS):
        tree.pop(name, None)
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
    align(params)
    return config, params, tokenizer
