"""Fields that a later version of this project has added: what a saved config lacks of them.

A new field's default keeps what was computed before there was the field, so a run that was started
without it goes on with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from alm_jax.config import config_diff, flatten
from alm_jax.config_files import run_file, shipped_configs


def differences(saved: ConfigDict, config: ConfigDict) -> list[str]:
    """As `config_diff`, without fields that `saved` lacks and that have their default in `config`.

    Args:
      saved: config of a run, perhaps of an earlier version.
      config: config of today.
    """
    known, new, defaults = flatten(saved), flatten(config), _defaults(config)
    added = {
        key
        for key in new.keys() - known.keys()
        if key in defaults and repr(new[key]) == repr(defaults[key])
    }
    return [line for line in config_diff(saved, config) if line.partition(":")[0] not in added]


def _defaults(config: ConfigDict) -> dict[str, Any]:
    """The values that stand for a field where it is absent, of all fields that have one."""
    common = run_file(next(iter(shipped_configs().values())).with_name("common.py"))
    groups = {"objectives.contrastive": dict(common.contrastive())}
    for group, fields in _groups().items():
        if config.model.get(group.removeprefix("model.")) is not None:
            groups[group] = _declared(fields(config))
    found = {f"{group}.{name}": v for group, fields in groups.items() for name, v in fields.items()}
    return found | flatten(common.base())


def _groups() -> Mapping[str, Callable[[ConfigDict], Any]]:
    """Groups of fields that a dataclass declares: name -> function of the config to the fields."""
    from alm_jax.models.mae_decoders import decoder_config  # late: they import JAX
    from alm_jax.models.text_roberta import TextConfig
    from alm_jax.models.towers import tower_config
    from alm_jax.models.transformer import TransformerConfig

    return {
        "model.audio": tower_config,
        "model.mae_decoder": lambda config: decoder_config(config.model.mae_decoder),
        "model.text": lambda config: TextConfig(**config.model.text),
        "model.caption_decoder": lambda config: TransformerConfig(**config.model.caption_decoder),
    }


def _declared(fields: Any) -> dict[str, Any]:
    return {
        field.name: field.default
        for field in dataclasses.fields(fields)
        if field.default is not dataclasses.MISSING
    }
