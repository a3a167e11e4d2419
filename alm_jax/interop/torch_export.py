"""A trained model as a folder that needs none of this package, proven equal before it is kept.

--format=torch (alm_jax.interop.layouts):

model.safetensors   every parameter, float32, one entry a layer
config.json         the experiment's config with every default spelt out, and the group `export`
tokenizer.model     sentencepiece, or tokenizer.json; only with a text side
modeling_alm.py     the model in PyTorch, no more than this one needs
golden.npz          inputs and the JAX model's outputs
README.md           model card

--format=hf (alm_jax.interop.hf_layout, clap_layout) and onnx (onnx_layout) differ as said there.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.interop import model_card
from alm_jax.interop.export_formats import get_layout
from alm_jax.interop.exported import (
    EXPORT_MARK,
    export_config,
    is_export,
    read_model,
    text_rows,
)
from alm_jax.interop.layouts import MODULE_NAME, TORCH, Exported, load_module
from alm_jax.interop.memory import give_back
from alm_jax.interop.parity import ParityReport, Reference, check, record
from input_pipeline.audio_files import to_int16
from input_pipeline.text import Tokenizer

__all__ = ["MODULE_NAME", "export_params", "export_torch", "load_module", "require_torch"]

GOLDEN_NAME = "golden.npz"


def export_torch(
    model_dir: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    clips: Sequence[np.ndarray] | None = None,
    captions: Sequence[str] | None = None,
    results: Mapping[str, Mapping[str, Any]] | None = None,
    data: model_card.DataSummary | None = None,
    format: str = "torch",
) -> ParityReport:
    """Exports a trained model and proves that the export computes the same.

    Everything is written beside `output` first, read back as its user will, run, and compared with
    JAX; only then does it take the place of `output`. Whatever goes wrong, an earlier export stays.

    Args:
      model_dir: a run's workdir, or an exported folder.
      output: the folder to write; an earlier export there is replaced.
      clips: real sounds to compare on, int16 [S] or float [S] in [-1, 1], at the model's sample
        rate. None: synthetic waves only.
      captions: real captions to compare on.
      results: rows of results.json for the model card.
      data: what the model was trained on, for the model card.
      format: a key of `layouts.FORMATS`.

    Returns:
      The largest relative differences between JAX and the export.

    Raises:
      UserError: a package that the format needs is not installed; `model_dir` holds no model;
        `output` holds something that is no export; the model is not of the format's kind; the
        outputs differ by more than 1e-4 relative; or the embeddings have collapsed or are not
        finite.
    """
    made = functools.partial(read_model, model_dir)
    return _export(made, output, clips, captions, results, data, format)


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
    format: str = "torch",
) -> ParityReport:
    """Like `export_torch`, from a config, nested dict of arrays and tokenizer in memory."""

    def made() -> tuple[ConfigDict, Any, Tokenizer | None]:
        return config, params, tokenizer

    return _export(made, output, clips, captions, results, data, format)


def _export(
    made: Callable[[], tuple[ConfigDict, Any, Tokenizer | None]],
    output: str | os.PathLike[str],
    clips: Sequence[np.ndarray] | None,
    captions: Sequence[str] | None,
    results: Mapping[str, Mapping[str, Any]] | None,
    data: model_card.DataSummary | None,
    format: str,
) -> ParityReport:
    """Writes, runs in JAX, forgets, and runs what was written: never two models in memory.

    `made` gives config, parameters and tokenizer; who makes them there keeps no reference.
    """
    config, params, tokenizer = made()
    config = export_config(config, text_rows(config, tokenizer), tokenizer)
    layout = get_layout(format, config)
    layout.require()
    output = Path(output).expanduser().absolute()
    _refuse_foreign(output)
    # A checkpoint may hold bfloat16: an export is float32, and so is what it must equal.
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    model = Exported(config, params, tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.parent / f".{output.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        layout.write(partial, model)
        with tempfile.TemporaryDirectory(prefix="alm_export_") as folder:
            reference = Reference(config, params, tokenizer)
            wanted = record(reference, _pcm(clips), captions, Path(folder))
            model = model._replace(params=None)
            del params, reference
            give_back()  # the reference is part of a cycle
            if layout.complete is not None:
                layout.complete(partial, model)
                give_back()  # the PyTorch model, which the traced graphs refer to
            report, golden = check(layout.open(partial, model), wanted)
        np.savez_compressed(partial / GOLDEN_NAME, allow_pickle=False, **golden)
        card = model_card.model_card(config, report, layout.name, results=results, data=data)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _replace(output, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def require_torch() -> None:
    """Raises a UserError with the remedy if PyTorch is not installed."""
    TORCH.require()


def _refuse_foreign(output: Path) -> None:
    """Refuses to replace what is not an export."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output} is a file; give --output the path of a folder")
    ours = is_export(output) or (output / EXPORT_MARK).is_file()
    if any(output.iterdir()) and not ours:
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
