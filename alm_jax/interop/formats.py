"""The formats of `alm import`, by name; a module is imported when its format is asked for."""

from __future__ import annotations

import importlib
import importlib.util

from alm_jax.errors import UserError, did_you_mean
from alm_jax.interop.importing import Format

# Name -> module and attribute.
MODULES = {
    "audiomae": "alm_jax.interop.audiomae:FORMAT",
    "cacophony": "alm_jax.interop.cacophony:FORMAT",
    "laion_clap": "alm_jax.interop.laion_clap:FORMAT",
    "hf_clap": "alm_jax.interop.hf_clap:FORMAT",
    "htsat": "alm_jax.interop.htsat:FORMAT",
    "roberta": "alm_jax.interop.huggingface_text:ROBERTA",
    "bert": "alm_jax.interop.huggingface_text:BERT",
    "vit": "alm_jax.interop.huggingface_vit:FORMAT",
}


def names() -> list[str]:
    """The formats that can be read."""
    return [
        name for name, place in MODULES.items() if importlib.util.find_spec(place.partition(":")[0])
    ]


def get_format(name: str) -> Format:
    """The format of a name.

    Raises:
      UserError: there is none.
    """
    known = names()
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"unknown --format={name}{hint} (formats: {', '.join(known)})")
    module, _, attribute = MODULES[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
