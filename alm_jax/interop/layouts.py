"""What a format of `alm export` is: how a folder is filled, and run again to be judged."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from alm_jax.checkpoints import flat_names
from alm_jax.config import save_config
from alm_jax.errors import UserError
from alm_jax.interop.exported import TOKENIZER_FILES, WEIGHTS_NAME
from alm_jax.interop.parity import Compare
from alm_jax.interop.standalone import standalone_source
from alm_jax.interop.tensors import write_safetensors
from input_pipeline.text import Tokenizer

MODULE_NAME = "modeling_alm.py"


class Exported(NamedTuple):
    """A model on its way out.

    Attributes:
      config: `exported.export_config`'s.
      params: nested dict of float32 arrays; None once they are written.
      tokenizer: None without a text side, or where an imported model has none.
    """

    config: ConfigDict
    params: Any
    tokenizer: Tokenizer | None


@dataclasses.dataclass(frozen=True)
class Layout:
    """One format.

    Attributes:
      name: of `--format=`.
      packages: what must be installed to write and run it.
      extra: the extra of this package that brings them.
      write: fills an empty folder.
      open: what the folder holds, loaded as its user loads it: a function that compares it with the
        outputs of the JAX model.
      complete: fills the rest of the folder, when the parameters are no longer in memory.
    """

    name: str
    packages: tuple[str, ...]
    extra: str
    write: Callable[[Path, Exported], None]
    open: Callable[[Path, Exported], Compare]
    complete: Callable[[Path, Exported], None] | None = None

    def require(self) -> None:
        """Raises a UserError with the remedy if a package is not installed."""
        missing = [p for p in self.packages if importlib.util.find_spec(p) is None]
        if missing:
            raise UserError(
                f"the export runs the model that it wrote to prove that it is right, and "
                f"{', '.join(missing)} is not installed: pip install 'alm_jax[{self.extra}]' "
                f"(in a checkout: pip install -e '.[{self.extra}]')"
            )


def load_module(folder: Path) -> ModuleType:
    """Imports an export's modelling file afresh, leaving no bytecode in the folder."""
    path = Path(folder) / MODULE_NAME
    spec = importlib.util.spec_from_file_location(f"alm_export_{abs(hash(str(path)))}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module


def write_model(folder: Path, model: Exported) -> None:
    """Weights, config, tokenizer and modelling file: what torch and hf share."""
    save_config(model.config, folder / "config.json")
    write_safetensors(folder / WEIGHTS_NAME, flat_names(model.params))
    write_tokenizer(folder, model)
    source = standalone_source(model.config.to_dict())
    (folder / MODULE_NAME).write_text(source, encoding="utf-8")


def write_tokenizer(folder: Path, model: Exported) -> None:
    """The tokenizer's own file, if there is one."""
    if model.tokenizer is not None:
        model.tokenizer.save(folder / TOKENIZER_FILES[model.config.export.tokenizer])


def _open_torch(folder: Path, model: Exported) -> Compare:
    module = load_module(folder)
    loaded = module.AudioTextModel.from_pretrained(folder)
    return lambda golden: module.compare(loaded, golden)


TORCH = Layout("torch", ("torch",), "torch", write_model, _open_torch)
