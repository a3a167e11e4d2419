"""Parameters taken over from another run, such as stage 1's encoder into stage 2."""

from __future__ import annotations

import re
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import read_config
from alm_jax.errors import UserError
from alm_jax.patterns import compiled
from alm_jax.train_state import TrainState, join

# Fields of a part that no shape shows and that change what its parameters compute. Not among them:
# `causal` and `position_offset`, for Cacophony reads RoBERTa's parameters otherwise, and means to.
_FACTS = ("tower", "decoder", "heads", "activation", "norm", "eps", "positions", "window", "shift")


def init_from(
    state: TrainState, config: ConfigDict, model: ConfigDict | None = None
) -> tuple[TrainState, list[str]]:
    """Replaces the parts that `config` names by those of trained or imported workdirs.

    Args:
      state: the freshly initialised state.
      config: `workdir` ("" for none; several joined by commas), `parts`, top-level names of the
        model such as ("audio",), each taken from the first workdir that has it, and `skip`, regular
        expressions of names that are not taken over.
      model: `config.model` of this run; given, it is compared with that of the workdir.

    Returns:
      The new state, and the names of the parameters taken over.

    Raises:
      UserError: if a workdir is missing, or a parameter of a named part is absent, left over or of
        another shape on either side, or a part has other heads, activation or the like.
    """
    if not config.workdir:
        return state, []
    parts = tuple(config.parts)
    skip = compiled(config.get("skip", ()), "init_from.skip")
    old: dict[str, Any] = {}
    problems: list[str] = []
    taken_from: dict[str, Any] = {}  # part -> workdir
    for path in map(epath.Path, config.workdir.split(",")):
        source = _read(path)
        here = set(parts) & source.keys() - taken_from.keys()
        taken_from |= dict.fromkeys(here, path)
        old |= _named(source, tuple(here), skip)
        problems += [] if model is None else _other_facts(path, model, sorted(here))
    new = _named(join(state.params, state.stats), parts, skip)

    def place(name: str) -> Any:
        return taken_from.get(name.split(".")[0], config.workdir)

    problems += [f"{n} is only in {place(n)}" for n in old.keys() - new.keys()]
    problems += [f"{n} is missing in {place(n)}" for n in new.keys() - old.keys()]
    problems += [
        f"{n} is {old[n].shape} in {place(n)} but {new[n].shape} here"
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
            "Give the same model, patches and front end as in config.json there, or leave names "
            "out: init_from.skip"
        )

    def replace(tree: Any) -> Any:
        def pick(path, leaf):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            return jax.device_put(old[name], leaf.sharding) if name in old else leaf

        return jax.tree_util.tree_map_with_path(pick, tree)

    ema = None if state.ema is None else replace(state.ema)
    trees = dict(params=replace(state.params), ema=ema, stats=replace(state.stats))
    return state.replace(**trees), sorted(old)


def _read(path: epath.Path) -> dict[str, Any]:
    if not (path / "checkpoints").is_dir():
        raise UserError(f"init_from.workdir={path}: there is no {path}/checkpoints")
    checkpoints = Checkpoints(path, read_only=True)
    try:
        return checkpoints.restore_params()[0]
    finally:
        checkpoints.close()


def _other_facts(path: epath.Path, model: ConfigDict, parts: list[str]) -> list[str]:
    """What a workdir's config says of the parts that this run's contradicts."""
    if not (path / "config.json").is_file():
        return []
    theirs = read_config(path / "config.json").model
    problems = []
    for part in parts:
        there, here = theirs.get(part), model.get(part)
        if there is None or here is None:
            continue
        problems += [
            f"model.{part}.{name} is {there[name]!r} in {path} but {here[name]!r} here"
            for name in _FACTS
            if name in there and name in here and there[name] != here[name]
        ]
    return problems


def _named(tree: Any, parts: tuple[str, ...], skip: list[re.Pattern[str]]) -> dict[str, Any]:
    """Name -> leaf of the parts, without the names to skip."""
    return {
        name: leaf
        for name, leaf in flat_names(tree).items()
        if name.split(".")[0] in parts and not any(p.search(name) for p in skip)
    }
