"""A model and a dataset that several protocols are run on: each clip is embedded once."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import numpy as np

from alm_jax.errors import UserError
from alm_jax.evaluators.clips import Clips
from alm_jax.evaluators.metrics.zero_shot import TEMPLATES, build_prompts, ensemble_prompts
from alm_jax.evaluators.suite import embed_clips, open_clips
from alm_jax.inference.model import Model
from input_pipeline.own_data import REPORT
from input_pipeline.sources import resolve_version


class Session:
    """Clips and embeddings, read and computed when first asked for.

    Attributes:
      model: what is scored.
      data: the dataset's folder, or a table for protocols that take one.
      split: the split to take instead of a protocol's own; "" for its own.
    """

    def __init__(self, model: Model, data: str | os.PathLike[str], split: str = ""):
        """Opens nothing yet.

        Args:
          model: a trained model.
          data: a prepared dataset or a table.
          split: instead of the protocols' own.
        """
        self.model = model
        self.data = Path(data).expanduser()
        self.split = split
        self._clips: dict[tuple[str, bool], Clips] = {}
        self._audio: dict[str, np.ndarray] = {}

    @functools.cached_property
    def layout(self) -> str:
        """The `alm prepare` format that the dataset was made of; "" if it does not say."""
        if self.data.is_file():
            return ""
        path = Path(resolve_version(self.data)) / REPORT
        try:
            return str(json.loads(path.read_text(encoding="utf-8")).get("format", ""))
        except (OSError, ValueError, AttributeError):
            return ""

    def clips(self, split: str, *, text: bool = True) -> Clips:
        """A split, or the one to take instead; checked against the model, which may need text."""
        if self.data.is_file():
            raise UserError(
                f"--data={self.data} is a file: this protocol takes the folder of a prepared "
                "dataset (`alm prepare --input=DIR --output=DIR`)"
            )
        return self.training_clips(self.split or split, text=text)

    def training_clips(self, split: str, *, text: bool = True) -> Clips:
        """A split by its own name, to learn from."""
        if (split, text) not in self._clips:
            self._clips[split, text] = open_clips(self.model, self.data, split, text=text)
        return self._clips[split, text]

    def audio(self, clips: Clips) -> np.ndarray:
        """Embeddings [n, J] float32 of the clips of a split."""
        if clips.split not in self._audio:
            self._audio[clips.split] = embed_clips(self.model, clips)
        return self._audio[clips.split]

    def classes(self, names: tuple[str, ...], prompt: str) -> np.ndarray:
        """Embeddings [c, J] of classes: the mean direction of their prompts."""
        templates = TEMPLATES[prompt]
        prompts = self.model.embed_text(build_prompts(names, templates))
        return ensemble_prompts(prompts, len(templates))
