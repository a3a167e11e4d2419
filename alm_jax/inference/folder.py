"""What a folder with a model must hold, and what to say when it does not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alm_jax.checkpoints import flat_names
from alm_jax.errors import UserError
from alm_jax.interop.exported import WEIGHTS_NAME


def find_model(folder: str | os.PathLike[str]) -> Path:
    """Returns the path of a run's workdir or an exported folder.

    Args:
      folder: local path; `~` is the home folder.

    Raises:
      UserError: it holds neither; the message names what was looked for, and where near by it is.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"no folder {path}: give the workdir of a run, or an exported folder")
    if _holds_model(path):
        return path
    # runs/quickstart instead of runs/quickstart/clap, or .../checkpoints instead of the workdir.
    near = [*path.absolute().parents[:2], *sorted(child for child in path.iterdir())]
    found = [str(other) for other in near if _holds_model(other)]
    hint = f"; did you mean {' or '.join(found[:3])}?" if found else ""
    raise UserError(
        f"{path} holds no model: it is neither a run's workdir (config.json and checkpoints/) nor"
        f" an exported folder (config.json and {WEIGHTS_NAME}){hint}"
    )


def _holds_model(path: Path) -> bool:
    weights = (path / "checkpoints").is_dir() or (path / WEIGHTS_NAME).is_file()
    return weights and (path / "config.json").is_file()


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
            f"the parameters in {origin} are not those of its config and tokenizer:"
            f" {'; '.join(problems[:3])}{more}. Were files of two runs mixed?"
        )
