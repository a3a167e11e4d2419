"""Audio-language pretraining in JAX.

`alm_jax.load(DIR)` gives a trained model (see `alm_jax.inference.model`); everything else is a
submodule. The package itself imports nothing, so that `import alm_jax` and `alm --help` are
immediate.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from alm_jax.inference.model import load


def __getattr__(name: str) -> Any:
    """Imports `load` (and with it JAX) on first use."""
    if name == "load":
        from alm_jax.inference.model import load

        return load
    raise AttributeError(f"module 'alm_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), "load"])
