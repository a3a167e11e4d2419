"""Official checkpoints in and out: what a format is, and the functions that all formats share.

A format (`audiomae.py`, `cacophony.py`, ...) says only what is its own: how the config follows from
the checkpoint, and its table of links. `to_alm` and `from_alm` do the rest: they compare every name
and shape before anything is read, account for every tensor, and refuse what is left over.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy learns bfloat16)
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.checkpoints import flat_names
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.interop.checkpoint import Checkpoint, Tensor
from alm_jax.interop.facts import configured
from alm_jax.interop.links import ANYTHING, Buffer, Link, Links, not_covered
from alm_jax.interop.tensors import aligned
from alm_jax.patterns import compiled
from alm_jax.train_state import model_graph


def in_memory(
    tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None
) -> Checkpoint:
    """A checkpoint of arrays by official name, and a config.json's content."""
    return Checkpoint(
        Path("memory"),
        {name: Tensor(a.shape, a.dtype, lambda a=a: a) for name, a in tensors.items()},  # type: ignore[misc]
        config or {},
    )


@dataclasses.dataclass(frozen=True)
class Format:
    """What one kind of official checkpoint is.

    Attributes:
      name: of `alm import --format=`.
      summary: a line for `--help`.
      configure: the experiment's config of a checkpoint: a shipped config with every size, head
        count and constant that tensors and config.json tell. What they do not tell is a
        `ml_collections.config_dict.placeholder(int, required=True)`; the user is asked for it. The
        rows of the text embedding go to `tokenizer.vocab_size`.
      links: the table of a config. All parameters of `parts` must be filled, each once.
      parts: the top-level parts that the checkpoint holds; empty: the whole model.
      writable: whether the official file follows from our parameters.
      wrapper: regular expression of what some files of this kind put before every name.
      ignored: regular expression of official names that belong to other heads: left out.
      choices: beginnings of config keys that are the user's to choose although they lie below
        model, patches or frontend.
      prepare: changes tensors that no link can, by a config: (checkpoint, config) -> checkpoint.
    """

    name: str
    summary: str
    configure: Callable[[Checkpoint], ConfigDict]
    links: Callable[[ConfigDict], Links]
    parts: tuple[str, ...] = ()
    writable: bool = True
    wrapper: str = ""
    ignored: str = ""
    choices: tuple[str, ...] = ()
    prepare: Callable[[Checkpoint, ConfigDict], Checkpoint] | None = None


@dataclasses.dataclass
class Imported:
    """A checkpoint in our names.

    Attributes:
      config: the experiment.
      params: nested dict of float32 arrays.
      loaded: official names that became parameters.
      kept: official tensors that are no parameter, for the way back.
      ignored: official names that the format leaves out.
      missing: official names that the checkpoint lacks and the user allowed.
      unexpected: official names that have no place and the user allowed; they are in `kept` too.
    """

    config: ConfigDict
    params: dict[str, Any]
    loaded: list[str]
    kept: dict[str, np.ndarray]
    ignored: list[str]
    missing: list[str]
    unexpected: list[str]


def shipped_config(spec: str) -> ConfigDict:
    """A shipped config that `configure` may change: not locked, and of no data: others trained."""
    config = ConfigDict(load_config(spec).to_dict())
    config.data.dir = ""
    return config


def vocab_size(config: ConfigDict) -> int:
    """Rows of the text embedding of an imported model, 0 without a text side."""
    return 0 if config.model.text is None else int(config.tokenizer.vocab_size)


def parameter_shapes(format: Format, config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Dotted name -> shape of the parameters that a checkpoint of the format fills.

    Raises:
      UserError: the config's values fit no model, such as heads that do not divide a width.
    """
    try:
        _, abstract = model_graph(config, vocab_size(config))
    except ValueError as error:
        raise UserError(f"no model has this config: {error}; see --config.model") from error
    return {
        name: tuple(leaf.shape)
        for name, leaf in flat_names(nnx.to_pure_dict(abstract)).items()
        if not format.parts or name.partition(".")[0] in format.parts
    }


def to_alm(
    format: Format,
    checkpoint: Checkpoint,
    overrides: Sequence[str] = (),
    *,
    allow_missing: str | None = None,
    allow_unexpected: str | None = None,
) -> Imported:
    """Reads a checkpoint into our parameters.

    Args:
      format: its kind.
      checkpoint: what was opened; its tensors are read one by one.
      overrides: `key=value` of the config; facts that the checkpoint tells cannot be overridden.
      allow_missing: regular expression of official names (all of it must match) that the checkpoint
        may lack; their parameters are drawn from `config.seed`.
      allow_unexpected: the same for names that have no place.

    Raises:
      UserError: a tensor is missing, left over, or of another shape; an override contradicts the
        checkpoint; a field that it does not tell was not given.
    """
    checkpoint, ignored = _relevant(format, checkpoint)
    told = format.configure(checkpoint)
    config = configured(told, overrides, path=checkpoint.path, choices=format.choices)
    if format.prepare is not None:
        checkpoint = format.prepare(checkpoint, config)
    shapes = parameter_shapes(format, config)
    table = format.links(config)
    if bare := not_covered(table, shapes):
        raise ValueError(f"format {format.name}: the links do not fill {bare[:5]} exactly once")
    links = {link.official: link for link in table if isinstance(link, Link)}
    buffers = {link.official: link for link in table if isinstance(link, Buffer)}
    present = checkpoint.tensors
    missing = sorted(links.keys() - present.keys())
    unexpected = sorted(present.keys() - links.keys() - buffers.keys())
    problems = _wrong_shapes(links, shapes, present)
    refused = _refused(missing, allow_missing, "--allow-missing")
    problems += [f"{name} is missing" for name in refused]
    refused = _refused(unexpected, allow_unexpected, "--allow-unexpected")
    problems += [f"{name} is unexpected" for name in refused]
    if problems:
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise UserError(
            f"{checkpoint.path} does not fit --format={format.name}:\n  {shown}{more}\nIf a name is"
            " meant to be missing or left over: --allow-missing=REGEX, --allow-unexpected=REGEX"
        )
    flat = _initial(config, shapes, [links[name] for name in missing])
    for name in sorted(links.keys() & present.keys()):
        link, tensor = links[name], present[name].read()
        for slot, part in zip(link.slots, link.parts(tensor), strict=True):
            flat[slot.name][slot.index] = part
    kept = {}
    for name in [*(n for n in buffers if n in present), *unexpected]:
        kept[name] = np.array(present[name].read())
        if name in buffers:
            _check_buffer(buffers[name], kept[name], checkpoint.path)
    return Imported(
        config,
        nnx.traversals.unflatten_mapping({tuple(n.split(".")): v for n, v in flat.items()}),
        sorted(links.keys() & present.keys()),
        kept,
        ignored,
        missing,
        unexpected,
    )


def from_alm(
    format: Format,
    config: ConfigDict,
    params: Mapping[str, Any],
    kept: Mapping[str, np.ndarray] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """The official tensors of a model, one by one: the inverse of `to_alm`.

    Args:
      format: the kind to write.
      config: the experiment.
      params: nested dict of arrays.
      kept: what `to_alm` put aside; None for a model that was never imported, whose buffers are
        computed.

    Yields:
      Official name and array (a view where possible).

    Raises:
      UserError: the format cannot be written, the parameters are of other shapes, or the official
        file needs a tensor that only an imported model has.
    """
    if not format.writable:
        raise UserError(
            f"--format={format.name}: a model was initialised from such a checkpoint, but cannot "
            "be written as one: its values were averaged, cut or resampled"
        )
    flat = flat_names(params)
    shapes = parameter_shapes(format, config)
    wrong = [n for n in shapes if n not in flat or tuple(flat[n].shape) != shapes[n]]
    left = [] if format.parts else sorted(flat.keys() - shapes.keys())
    if wrong or left:
        raise UserError(
            f"the parameters do not fit --format={format.name}: {(wrong + left)[:5]} differ from "
            "what config.json describes"
        )
    table = format.links(config)
    if bare := not_covered(table, shapes):
        raise UserError(f"--format={format.name} has no place for {bare[:5]} of this model")
    for link in table:
        if isinstance(link, Link):
            yield link.official, link.whole(flat)
        elif kept is None and link.value is not None:
            yield link.official, link.value()
        elif kept is None and link.required:
            raise UserError(
                f"--format={format.name} needs {link.official}, which is in no model of ours; only "
                "a model that was imported can be written in this format"
            )
    yield from (kept or {}).items()


def _relevant(format: Format, checkpoint: Checkpoint) -> tuple[Checkpoint, list[str]]:
    """The checkpoint without the format's wrapper and without other heads, whose names follow."""
    found = {re.sub(f"^(?:{format.wrapper})", "", n): t for n, t in checkpoint.tensors.items()}
    ignored = sorted(n for n in found if format.ignored and re.fullmatch(format.ignored, n))
    tensors = {name: tensor for name, tensor in found.items() if name not in ignored}
    if len(found) < len(checkpoint.tensors):
        raise UserError(f"{checkpoint.path} holds names both with and without {format.wrapper!r}")
    return dataclasses.replace(checkpoint, tensors=tensors), ignored


def _refused(names: Sequence[str], allowed: str | None, flag: str) -> list[str]:
    patterns = compiled([] if allowed is None else [allowed], flag)
    return [name for name in names if not any(p.fullmatch(name) for p in patterns)]


def _wrong_shapes(
    links: Mapping[str, Link],
    shapes: Mapping[str, tuple[int, ...]],
    present: Mapping[str, Tensor],
) -> list[str]:
    problems = []
    for name in sorted(links.keys() & present.keys()):
        wanted, found = links[name].shape(shapes), present[name].shape
        if wanted != tuple(found):
            into = ", ".join(slot.name for slot in links[name].slots)
            problems.append(f"{name} is {tuple(found)}, but {into} needs {wanted}")
    return problems


def _initial(
    config: ConfigDict, shapes: Mapping[str, tuple[int, ...]], missing: Sequence[Link]
) -> dict[str, np.ndarray]:
    """Arrays to fill; where a part stays missing, freshly drawn."""
    names = {slot.name for link in missing for slot in link.slots}
    drawn: dict[str, Any] = {}
    if names:
        from alm_jax.train_state import build_model

        model = build_model(config, vocab_size(config), config.seed)
        drawn = flat_names(nnx.to_pure_dict(nnx.state(model)))
    flat = {name: aligned(shape) for name, shape in shapes.items()}
    for name in names:
        flat[name][...] = drawn[name]
    return flat


def _check_buffer(buffer: Buffer, found: np.ndarray, path: Path) -> None:
    if buffer.value is None or buffer.tolerance == ANYTHING:
        return
    wanted = buffer.value()
    if wanted.shape != found.shape or not np.allclose(found, wanted, rtol=0, atol=buffer.tolerance):
        raise UserError(
            f"{path}: the constant {buffer.official} {found.shape} is not the one this format has "
            f"{wanted.shape}: the model computes something else than --format says"
        )
