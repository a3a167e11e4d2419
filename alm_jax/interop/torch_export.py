"""A trained model as a folder for PyTorch without this package, proven equal before it is kept.

model.safetensors   every parameter, float32, one entry a layer
config.json         the experiment's config with every default spelt out, and the group `export`
tokenizer.model     sentencepiece; only with a text side
modeling_alm.py     the model in PyTorch
golden.npz          inputs and the JAX model's outputs
README.md           model card
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alm_jax.checkpoints import flat_names
from alm_jax.config import save_config
from alm_jax.errors import UserError
from alm_jax.interop import model_card, torch_modelling_path
from alm_jax.interop.exported import WEIGHTS_NAME, export_config, is_export, read_model
from alm_jax.interop.parity import ParityReport, Reference, check
from alm_jax.interop.tensors import write_safetensors
from input_pipeline.audio_files import to_int16
from input_pipeline.text import FILE_NAME, Tokenizer

MODULE_NAME = "modeling_alm.py"
GOLDEN_NAME = "golden.npz"


def export_torch(
    model_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    clips: Sequence[np.ndarray] | None = None,
    captions: Sequence[str] | None = None,
    results: Mapping[str, Mapping[str, Any]] | None = None,
    data: model_card.DataSummary | None = None,
) -> ParityReport:
    """Exports a trained model and proves that PyTorch computes the same.

    Everything is written beside `output` first, read back by PyTorch, run, and compared with JAX;
    only then does it take the place of `output`. Whatever goes wrong, an earlier export stays.

    Args:
      model_dir: a run's workdir, or an exported folder.
      output: the folder to write; an earlier export there is replaced.
      clips: real sounds to compare on, int16 [S] or float [S] in [-1, 1], at the model's sample
        rate. None: synthetic waves only.
      captions: real captions to compare on.
      results: rows of results.json for the model card.
      data: what the model was trained on, for the model card.

    Returns:
      The largest relative differences between JAX and PyTorch.

    Raises:
      UserError: PyTorch is not installed; `model_dir` holds no model; `output` holds something that
        is no export; the outputs differ by more than 1e-4 relative; or the embeddings have
        collapsed or are not finite.
    """
    config, params, tokenizer = read_model(model_dir)
    return export_params(
        config,
        params,
        tokenizer,
        output,
        clips=clips,
        captions=captions,
        results=results,
        data=data,
    )


def export_params(
    config: ConfigDict,
    params: Any,
    tokenizer: Tokenizer | None,
    output: str | os.PathLike[str],
    *,
    clips: Sequence[np.ndarray] | None = None,
    captions: Sequence[str] | None = None,
    results: Mapping[str, Mapping[str, Any]] | None = None,
    data: model_card.DataSummary | None = None,
) -> ParityReport:
    """Like `export_torch`, from a config, nested dict of arrays and tokenizer in memory."""
    require_torch()
    output = Path(output).expanduser().absolute()
    _refuse_foreign(output)
    config = export_config(config, tokenizer.vocab_size if tokenizer is not None else 0)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.parent / f".{output.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        save_config(config, partial / "config.json")
        write_safetensors(partial / WEIGHTS_NAME, flat_names(params))
        if tokenizer is not None:
            tokenizer.save(partial / FILE_NAME)
        shutil.copyfile(torch_modelling_path(), partial / MODULE_NAME)
        module = load_module(partial)
        model = module.AudioTextModel.from_pretrained(partial)
        report, golden = check(
            module, model, Reference(config, params, tokenizer), _pcm(clips), captions
        )
        np.savez_compressed(partial / GOLDEN_NAME, allow_pickle=False, **golden)
        card = model_card.model_card(config, report, results=results, data=data)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _replace(output, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def load_module(folder: Path) -> ModuleType:
    """Imports an export's modelling file afresh, leaving no bytecode in the folder."""
    path = Path(folder) / MODULE_NAME
    spec = importlib.util.spec_from_file_location(f"alm_export_{abs(hash(str(path)))}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module


def require_torch() -> None:
    """Raises a UserError with the remedy if PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise UserError(
            "the export runs the PyTorch model to prove that it is right, and PyTorch is not "
            "installed: pip install 'alm_jax[torch]' (in a checkout: pip install -e '.[torch]')"
        )


def _refuse_foreign(output: Path) -> None:
    """Refuses to replace what is not an export."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output} is a file; give --output the path of a folder")
    if any(output.iterdir()) and not is_export(output):
        raise UserError(
            f"{output} is a folder that holds something else than an export; give another "
            "--output, or a new folder inside it"
        )


def _pcm(clips: Sequence[np.ndarray] | None) -> list[np.ndarray] | None:
    """int16 [S] of clips that are int16 or float in [-1, 1]."""
    if clips is None:
        return None
    arrays = [np.asarray(clip) for clip in clips]
    for number, clip in enumerate(arrays):
        if clip.ndim != 1 or not clip.size or clip.dtype.kind not in "if":
            raise UserError(
                f"clip {number} for the comparison has shape {clip.shape} and type {clip.dtype}; "
                "give mono samples [S], int16 or float in [-1, 1]"
            )
    return [
        clip if clip.dtype == np.int16 else to_int16(clip.astype(np.float32)) for clip in arrays
    ]


def _replace(output: Path, new: Path) -> None:
    """Puts the folder `new` in the place of `output`."""
    old = new.with_suffix(".old")
    if output.exists():
        output.rename(old)
    try:
        new.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
