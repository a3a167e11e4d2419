"""What a checkpoint tells about its model's config, and what is left to the user's choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from alm_jax.config import apply_overrides, flatten
from alm_jax.errors import UserError
from alm_jax.interop.checkpoint import Checkpoint

if TYPE_CHECKING:
    from alm_jax.interop.importing import Format

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


def configured(format: Format, checkpoint: Checkpoint, overrides: Sequence[str]) -> ConfigDict:
    """The format's config of a checkpoint, with the user's overrides.

    Raises:
      UserError: an override contradicts what the checkpoint tells.
    """
    told = format.configure(checkpoint)
    before = flatten(told)  # placeholders read as None
    config = apply_overrides(told, overrides)
    for key, value, fact in contradictions(format, flatten(config), before):
        raise UserError(f"config.{key}={value!r} contradicts {checkpoint.path}, which has {fact!r}")
    return config


def contradictions(
    format: Format, config: Mapping[str, Any], told: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Where a config says otherwise than a checkpoint.

    Args:
      format: the checkpoint's kind.
      config: flattened.
      told: flattened config that follows from the checkpoint; None is what it does not tell.

    Yields:
      Key, value in `config`, value in `told`.
    """
    for key, value in config.items():
        fact = key.startswith(("model.", "patches.", "frontend.", "tokenizer.vocab_size"))
        chosen = key.startswith(format.choices) or key.rpartition(".")[2] in _CHOICES
        if fact and not chosen and told.get(key) not in (None, value):
            yield key, value, told[key]
