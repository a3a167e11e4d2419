"""The whole model, and the comparison with the numbers of the JAX model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alm_jax.interop.torch_modelling.caption_side import CaptionSide
from alm_jax.interop.torch_modelling.files import read_safetensors
from alm_jax.interop.torch_modelling.label_side import LabelSide
from alm_jax.interop.torch_modelling.mae_side import MaeSide
from alm_jax.interop.torch_modelling.tokenizers import TOKENIZERS


class Parts(CaptionSide, MaeSide, LabelSide):
    """What this model is made of; see the base classes."""


class AudioTextModel(Parts, nn.Module):
    """Front end, towers, poolers and decoders of one exported model."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.config = config
        self.build(config)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AudioTextModel:
        """The model of an exported folder, on the CPU, in evaluation mode."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with torch.device("meta"):  # the file brings the memory
            model = cls(config)
        model.load_state_dict(read_safetensors(folder / "model.safetensors"), assign=True)
        if config["export"]["tokenizer"]:
            model.tokenizer = TOKENIZERS[config["export"]["tokenizer"]](folder)
        return model.eval().requires_grad_(False)


def relative_difference(wanted: np.ndarray, found: np.ndarray) -> float:
    """Largest difference over the rows of [..., n], relative to the row's norm or maximum."""
    wanted, error = np.abs(np.float64(wanted)), np.abs(np.float64(found) - wanted)
    by_norm = np.linalg.norm(error, axis=-1) / np.maximum(np.linalg.norm(wanted, axis=-1), 1e-30)
    by_maximum = error.max(axis=-1) / np.maximum(wanted.max(axis=-1), 1e-30)
    return float(max(by_norm.max(), by_maximum.max()))


@torch.inference_mode()
def compare(model: Any, golden: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative difference of what the model computes from each output in golden.npz.

    The entries `audio`, `audio_length`, `text`, `text_mask`, `visible`, `dropped` are inputs.
    """
    lengths = torch.tensor(golden["audio_length"], device=model.device).long()
    heard = model.listen(model.to_float(golden["audio"]), lengths)
    found = model.compared(golden, heard)
    return {n: relative_difference(a, b.numpy(force=True)) for n, (a, b) in found.items()}


def main(folder: Path) -> None:
    """Prints how far the model in `folder` is from golden.npz."""
    model = AudioTextModel.from_pretrained(folder)
    with np.load(folder / "golden.npz") as golden:
        for name, difference in compare(model, dict(golden)).items():
            print(f"{name:16s} differs by {difference:.1e}")
