"""The formats of `alm export`, by name; a module is imported when its format is asked for."""

from __future__ import annotations

import importlib

from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.interop.layouts import TORCH, Layout

# Name -> function (config -> layout): one format may fit different models differently.
FORMATS = {
    "torch": lambda config: TORCH,
    "hf": lambda config: importlib.import_module("alm_jax.interop.hf_layout").layout(config),
    "onnx": lambda config: importlib.import_module("alm_jax.interop.onnx_layout").LAYOUT,
}


def get_layout(name: str, config: ConfigDict) -> Layout:
    """The layout of a format's name for a model.

    Raises:
      UserError: there is none.
    """
    if name not in FORMATS:
        raise UserError(f"--format={name}: must be one of {', '.join(FORMATS)}")
    return FORMATS[name](config)
