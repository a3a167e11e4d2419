"""Models with a text side: the joint space of sounds and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from alm_jax.interop.torch_modelling.audio_side import AudioSide, Heard
from alm_jax.interop.torch_modelling.heads import POOLERS, PROJECTIONS, normalize
from alm_jax.interop.torch_modelling.text import TextRoberta
from alm_jax.interop.torch_modelling.tokenizers import Tokenizer


class TextSide(AudioSide):
    """Text tower, poolers and projections."""

    def build(self, fields: Mapping[str, Any]) -> None:
        """Makes the parts that config.json names."""
        super().build(fields)
        model, width = fields["model"], self.audio.width
        head, text = model["projection"], model["text"]
        joint = self.embed_dim = model["embed_dim"]
        self.has_text = True
        self.audio_pool = POOLERS[model["audio_pool"]["kind"]](model["audio_pool"], width)
        same = head == "linear" and width == joint
        self.audio_proj = nn.Identity() if same else PROJECTIONS[head](width, joint)
        self.text = TextRoberta(text, fields["export"]["vocab_size"], model["max_positions"])
        self.text_pool = POOLERS[model["text_pool"]["kind"]](model["text_pool"], text["width"])
        self.text_proj = PROJECTIONS[head](text["width"], joint)
        self.logit_scale = nn.Parameter(torch.empty(()))
        biased = model.get("logit_bias_init") is not None  # trained with the sigmoid loss
        self.logit_bias = nn.Parameter(torch.empty(())) if biased else None

    def audio_embedding(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Unit-norm embeddings [B, J] of the audio tower's states [B, N', D]."""
        return normalize(self.audio_proj(self.audio_pool(hidden, mask)))

    def text_embedding(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Unit-norm embeddings [B, J] of token ids [B, L] with mask [B, L]."""
        return normalize(self.text_proj(self.text_pool(self.text(tokens, mask), mask)))

    def needs_tokenizer(self) -> Tokenizer:
        """The tokenizer, or an error."""
        if self.tokenizer is None:
            raise ValueError("this model was exported without a tokenizer; give it token ids")
        return self.tokenizer

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Unit-norm embeddings [n, J] of n strings, cut at `data.max_text_length` tokens."""
        tokenizer = self.needs_tokenizer()
        texts = [texts] if isinstance(texts, str) else list(texts)
        out = [torch.zeros(0, self.embed_dim, device=self.device)]
        for first in range(0, len(texts), batch_size):
            part = texts[first : first + batch_size]
            tokens, mask = tokenizer.encode(part, self.fields["data"]["max_text_length"])
            out.append(self.text_embedding(tokens.to(self.device), mask.to(self.device)))
        return torch.cat(out)

    def logits(self, audio: Tensor, text: Tensor) -> Tensor:
        """[n, m] of embeddings [n, J] and [m, J]: cosines times exp(logit_scale), plus the bias."""
        logits = self.logit_scale.exp() * audio @ text.T
        return logits if self.logit_bias is None else logits + self.logit_bias

    @torch.inference_mode()
    def similarity(self, audio: Tensor, text: Tensor) -> Tensor:
        """See `logits`."""
        return self.logits(audio, text)

    def compared(self, golden: Mapping[str, Any], heard: Heard) -> dict[str, tuple[Any, Tensor]]:
        """(wanted, found) of each output in golden.npz, by name."""
        found = super().compared(golden, heard)
        tokens, mask = (
            torch.from_numpy(golden[name]).to(self.device) for name in ("text", "text_mask")
        )
        found["text_embedding"] = (golden["text_embedding"], self.text_embedding(tokens, mask))
        return found
