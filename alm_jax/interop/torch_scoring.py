"""An exported PyTorch model in the role of a model to evaluate, so that it is scored like JAX's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alm_jax.errors import UserError
from alm_jax.interop.exported import is_export
from alm_jax.interop.torch_export import load_module, require_torch
from input_pipeline.sources import open_source

_CLIPS_AT_ONCE = 256  # held in memory while they are embedded


class TorchModel:
    """The PyTorch model of an exported folder, run by the folder's own modelling file."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Loads the model.

        Raises:
          UserError: PyTorch is not installed, or the folder is no export.
        """
        require_torch()
        path = Path(folder)
        if not is_export(path):
            raise UserError(f"{path} is not a folder that `alm export` wrote")
        self._model = load_module(path).AudioTextModel.from_pretrained(path)

    def embed_clips(self, directory: str, split: str) -> np.ndarray:
        """Unit-norm embeddings [n, J] float32 of a split's clips, in the split's order.

        As in evaluation during training, the first `data.max_seconds` of a clip count.
        """
        source = open_source(directory, split)
        rows = []
        for first in range(0, len(source), _CLIPS_AT_ONCE):
            clips = []
            for i in range(first, min(first + _CLIPS_AT_ONCE, len(source))):
                audio = source[i]["audio"][: self._model.window]
                clips.append(audio if len(audio) else np.zeros(1, np.int16))
            embeddings = self._model.embed_audio(clips, sample_rate=self._model.sample_rate)
            rows.append(embeddings.numpy(force=True))
        return np.concatenate(rows)

    def embed_captions(self, captions: Sequence[str]) -> np.ndarray:
        """Unit-norm embeddings [m, J] float32."""
        return self._model.embed_text(list(captions)).numpy(force=True)
