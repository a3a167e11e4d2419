"""Models with a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from alm_jax.interop.torch_modelling.audio_side import AudioSide, Heard
from alm_jax.interop.torch_modelling.heads import Classifier


class LabelSide(AudioSide):
    """The classifier that was fine-tuned."""

    def build(self, fields: Mapping[str, Any]) -> None:
        """Makes the parts that config.json names."""
        super().build(fields)
        self.classifier = Classifier(fields["model"]["classifier"], self.audio.width)

    @torch.inference_mode()
    def classify(self, audio: Any, sample_rate: int = 16000) -> Tensor:
        """Logits [n, Y] of clips (see `embed_audio`); of a long clip, of its first window."""
        clips = self.clips(audio, sample_rate)
        heard = (self.listen(*self.batch([clip[: self.window]])) for clip in clips)
        return torch.cat([self.classifier(h.hidden, h.mask) for h in heard])

    def compared(self, golden: Mapping[str, Any], heard: Heard) -> dict[str, tuple[Any, Tensor]]:
        """(wanted, found) of each output in golden.npz, by name."""
        found = super().compared(golden, heard)
        logits = self.classifier(heard.hidden, heard.mask)
        found["class_logits"] = (golden["class_logits"], logits)
        return found
