"""Models that describe what they hear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from alm_jax.interop.torch_modelling.audio_side import Heard
from alm_jax.interop.torch_modelling.text import CaptionDecoder
from alm_jax.interop.torch_modelling.text_side import TextSide


class CaptionSide(TextSide):
    """Caption decoder and greedy decoding."""

    def build(self, fields: Mapping[str, Any]) -> None:
        """Makes the parts that config.json names."""
        super().build(fields)
        decoder, vocab_size = fields["model"]["caption_decoder"], fields["export"]["vocab_size"]
        self.caption_decoder = CaptionDecoder(decoder, self.audio.width, vocab_size)

    def caption_logits(
        self, tokens: Tensor, mask: Tensor, audio: Tensor, audio_mask: Tensor
    ) -> Tensor:
        """Next-token logits [B, L, V] from tokens [B, L] and audio states [B, N', D]."""
        return self.caption_decoder(self.text(tokens, mask), mask, audio, audio_mask)

    def caption_ids(self, waveform: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        """Greedy captions: ids [B, max_length] after bos, padding after eos."""
        marks = self.fields["export"]["tokens"]
        heard = self.listen(waveform, lengths)
        tokens = torch.full((len(waveform), 1), marks["bos"], device=waveform.device)
        ended = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
        while tokens.shape[1] <= max_length and not ended.all():
            every = torch.ones_like(tokens, dtype=torch.bool)
            logits = self.caption_logits(tokens, every, heard.hidden, heard.mask)[:, -1]
            token = logits.argmax(-1).masked_fill(ended, marks["pad"])
            ended |= token == marks["eos"]
            tokens = torch.cat([tokens, token[:, None]], 1)
        return functional.pad(
            tokens[:, 1:], (0, max_length + 1 - tokens.shape[1]), value=marks["pad"]
        )

    @torch.inference_mode()
    def caption(self, audio: Any, sample_rate: int = 16000, max_length: int = 0) -> list[str]:
        """Greedy captions of clips (see `embed_audio`); of a long clip, of its first window.

        `max_length` counts tokens, 0 is `data.max_text_length`.
        """
        tokenizer = self.needs_tokenizer()
        max_length = max_length or self.fields["data"]["max_text_length"]
        captions = []
        for clip in self.clips(audio, sample_rate):
            ids = self.caption_ids(*self.batch([clip[: self.window]]), max_length)
            text = tokenizer.decode(ids[0].tolist())
            captions.append(" ".join("".join(c if c.isprintable() else " " for c in text).split()))
        return captions

    def compared(self, golden: Mapping[str, Any], heard: Heard) -> dict[str, tuple[Any, Tensor]]:
        """(wanted, found); `caption_ids` by how far its tokens are from the most likely ones."""
        found = super().compared(golden, heard)
        tokens, mask = (
            torch.from_numpy(golden[name]).to(self.device) for name in ("text", "text_mask")
        )
        logits = self.caption_logits(tokens, mask, heard.hidden, heard.mask)
        found["caption_logits"] = (golden["caption_logits"][golden["text_mask"]], logits[mask])
        if "caption_ids" in golden:
            marks = self.fields["export"]["tokens"]
            ids = torch.tensor(golden["caption_ids"], device=self.device).long()
            end = ids == marks["eos"]
            told = end.cumsum(1) - end.long() == 0
            before = torch.cat([torch.full_like(ids[:, :1], marks["bos"]), ids[:, :-1]], 1)
            logits = self.caption_logits(before, torch.ones_like(told), heard.hidden, heard.mask)
            chosen = logits.gather(-1, ids[..., None])[told]
            best = logits.amax(-1)[told][:, None]
            found["caption_ids"] = (best.numpy(force=True), chosen)
        return found
