"""Parameters taken over from another run, such as stage 1's encoder into stage 2."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.errors import UserError
from alm_jax.train_state import TrainState, join


def init_from(state: TrainState, config: ConfigDict) -> tuple[TrainState, list[str]]:
    """Replaces the parts that `config` names by those of a trained workdir.

    Args:
      state: the freshly initialised state.
      config: `workdir` ("" for none), `parts`, top-level names of the model such as ("audio",), and
        `skip`, regular expressions of names that are not taken over.

    Returns:
      The new state, and the names of the parameters taken over.

    Raises:
      UserError: if the workdir is missing, or a parameter of a named part is absent, left over or
        of another shape on either side.
    """
    if not config.workdir:
        return state, []
    path = Path(config.workdir)
    if not (path / "checkpoints").is_dir():
        raise UserError(f"init_from.workdir={config.workdir}: there is no {path}/checkpoints")
    checkpoints = Checkpoints(path, read_only=True)
    try:
        source, _ = checkpoints.restore_params()
    finally:
        checkpoints.close()
    parts = tuple(config.parts)
    skip = tuple(config.get("skip", ()))
    old = _named(source, parts, skip)
    new = _named(join(state.params, state.stats), parts, skip)
    problems = [f"{n} is only in {path}" for n in old.keys() - new.keys()]
    problems += [f"{n} is missing in {path}" for n in new.keys() - old.keys()]
    problems += [
        f"{n} is {old[n].shape} in {path} but {new[n].shape} here"
        for n in old.keys() & new.keys()
        if old[n].shape != new[n].shape
    ]
    absent = tuple(part for part in parts if part not in state.params)
    if absent or not parts:
        problems.append(f"the model has no part named any of {absent}")
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        raise UserError(
            f"init_from.workdir={config.workdir} does not fit model parts {parts}:\n  {shown}\n"
            "Give the same model.audio, patches and front end as that run."
        )

    def replace(tree: Any) -> Any:
        def pick(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return jax.device_put(old[name], leaf.sharding) if name in old else leaf

        return jax.tree_util.tree_map_with_path(pick, tree)

    ema = None if state.ema is None else replace(state.ema)
    trees = dict(params=replace(state.params), ema=ema, stats=replace(state.stats))
    return state.replace(**trees), sorted(old)


def _named(tree: Any, parts: tuple[str, ...], skip: tuple[str, ...]) -> dict[str, Any]:
    """Name -> leaf of the parts, without the names to skip."""
    return {
        name: leaf
        for name, leaf in flat_names(tree).items()
        if name.split(".")[0] in parts and not any(re.search(p, name) for p in skip)
    }
