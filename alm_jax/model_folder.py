"""Finds out what a folder holds, a run or an export, and reads the model in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import read_config
from alm_jax.errors import UserError
from input_pipeline.text import FILE_NAME, Tokenizer


def read_folder(folder: str | os.PathLike[str]) -> tuple[ConfigDict, Any, Tokenizer | None, Path]:
    """Reads a run's workdir (its last whole checkpoint) or a folder that `alm export` wrote.

    Args:
      folder: local path; `~` is the home folder.

    Returns:
      The config, the parameters (nested dict of arrays), the tokenizer (None if the model has no
      text side), and the folder's path.

    Raises:
      UserError: it is neither, or a part is missing.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"no folder {path}: give the workdir of a run, or an exported folder")
    if _is_workdir(path):
        config = read_config(path / "config.json")
        tokenizer = None if config.model.text is None else Tokenizer.load(path / FILE_NAME)
        checkpoints = Checkpoints(path, read_only=True)
        try:
            params, _ = checkpoints.restore_params()
        finally:
            checkpoints.close()
    elif _is_export(path):
        from alm_jax.interop.exported import read_export

        config, params, tokenizer = read_export(path)
    else:
        raise UserError(_neither(path))
    return config, params, tokenizer, path


def check_fit(wanted: Any, found: Any, origin: str) -> None:
    """Compares names and shapes, before JAX fails on them with a message about tracers.

    Args:
      wanted: nested dict of the model's arrays or their shapes.
      found: nested dict of the arrays that were read.
      origin: where they were read.

    Raises:
      UserError: they differ; names the first few.
    """
    want: Mapping[str, Any] = flat_names(wanted)
    have: Mapping[str, Any] = flat_names(found)
    problems = [f"{name} is missing" for name in sorted(want.keys() - have.keys())]
    problems += [f"{name} is not in the model" for name in sorted(have.keys() - want.keys())]
    problems += [
        f"{name} is {tuple(have[name].shape)}, not {tuple(want[name].shape)}"
        for name in sorted(want.keys() & have.keys())
        if tuple(have[name].shape) != tuple(want[name].shape)
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"the parameters in {origin} are not those of its config.json and {FILE_NAME}:"
            f" {'; '.join(problems[:3])}{more}. Were files of two runs mixed?"
        )


def _is_workdir(path: Path) -> bool:
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


def _is_export(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def _neither(path: Path) -> str:
    """Says what was looked for, and where near by it is."""
    near = sorted(child for child in path.iterdir() if child.is_dir())
    found = [
        str(child)
        for child in [*path.parents[:2], *near]
        if _is_workdir(child) or _is_export(child)
    ]
    hint = f"; did you mean {' or '.join(found[:3])}?" if found else ""
    return (
        f"{path} holds no model: neither a run's workdir (config.json and checkpoints/) nor an"
        f" exported folder (config.json and *.safetensors){hint}"
    )
