"""What a checkpoint tells about its model's config, and what is left to the user's choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alm_jax.config import apply_overrides, flatten
from alm_jax.errors import UserError

# Fields below model, patches and frontend that a user may choose when importing; the others are
# facts about the checkpoint.
_CHOICES = {
    "dtype",
    "dropout",
    "attention",
    "attention_dropout",
    "drop_path",
    "init",
    "remat",
    "unroll",
    "causal",
}


def configured(
    told: ConfigDict, overrides: Sequence[str], *, path: Path, choices: tuple[str, ...]
) -> ConfigDict:
    """The config that follows from a checkpoint, with the user's overrides.

    Args:
      told: a format's `configure`; placeholders are what the checkpoint does not tell.
      overrides: `key=value`.
      path: the checkpoint's.
      choices: as in `contradictions`.

    Raises:
      UserError: an override contradicts what the checkpoint tells.
    """
    before = flatten(told)  # placeholders read as None
    config = apply_overrides(told, overrides)
    for key, value, fact in contradictions(flatten(config), before, choices):
        raise UserError(f"config.{key}={value!r} contradicts {path}, which has {fact!r}")
    return config


def contradictions(
    config: Mapping[str, Any], told: Mapping[str, Any], choices: tuple[str, ...]
) -> Iterator[tuple[str, Any, Any]]:
    """Where a config says otherwise than a checkpoint.

    Args:
      config: flattened.
      told: flattened config that follows from the checkpoint; None is what it does not tell.
      choices: beginnings of further keys that are the user's to choose, the format's `choices`.

    Yields:
      Key, value in `config`, value in `told`.
    """
    for key, value in config.items():
        fact = key.startswith(("model.", "patches.", "frontend.", "tokenizer.vocab_size"))
        chosen = key.startswith(choices) or key.rpartition(".")[2] in _CHOICES
        if fact and not chosen and told.get(key) not in (None, value):
            yield key, value, told[key]
