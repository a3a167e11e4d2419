"""The model of modeling_alm.py as a transformers model.

from transformers import AutoModel
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)

Shapes: B batch, S samples, L text length, J joint width, Y classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from alm_jax.interop.torch_modelling.model import Parts


class AlmConfig(PreTrainedConfig):
    """config.json: the groups of the experiment as attributes."""

    model_type = "alm_jax"


@dataclasses.dataclass
class AlmOutput(ModelOutput):
    """What `AlmModel` gives; what was not asked for, or the model does not have, is None.

    Attributes:
      audio_embeds: [B, J] unit norm.
      text_embeds: [B, J] unit norm.
      logits_per_audio: [B, B] cosines times exp(logit_scale), plus logit_bias if any, a row a clip.
      logits_per_text: its transpose.
      class_logits: [B, Y] of the first window of each clip.
    """

    audio_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    logits_per_audio: Tensor | None = None
    logits_per_text: Tensor | None = None
    class_logits: Tensor | None = None


class AlmModel(PreTrainedModel, Parts):
    """The parts of modeling_alm.py under transformers' loading and saving."""

    config_class = AlmConfig
    main_input_name = "input_values"
    input_modalities = ["audio", "text"]  # noqa: RUF012

    def __init__(self, config: AlmConfig):
        super().__init__(config)
        self.build(config.to_dict())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Draws what a checkpoint lacks; layers of torch as transformers draws them."""
        super()._init_weights(module)
        if not isinstance(module, nn.Linear | nn.LayerNorm):
            for parameter in module._parameters.values():
                if parameter is not None:
                    init.normal_(parameter, std=0.02)

    def forward(
        self,
        input_values: Tensor | None = None,
        audio_lengths: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> AlmOutput:
        """Embeddings of clips and texts, and how well they fit.

        Args:
          input_values: [B, S] float waveforms in [-1, 1] at the model's rate. Those longer than
            `config.data["max_seconds"]` are embedded window by window.
          audio_lengths: [B] samples of each clip; all S if None.
          input_ids: [B, L] token ids.
          attention_mask: [B, L]; all ones if None.
          unused: ignored.
        """
        out = AlmOutput()
        if input_values is not None:
            out["audio_embeds"] = self.get_audio_features(input_values, audio_lengths)
            if hasattr(self, "classifier"):
                rows = self.rows(input_values, audio_lengths)
                heard = self.listen(*self.batch([row[: self.window] for row in rows]))
                out["class_logits"] = self.classifier(heard.hidden, heard.mask)
        if input_ids is not None:
            out["text_embeds"] = self.get_text_features(input_ids, attention_mask)
        if out.audio_embeds is not None and out.text_embeds is not None:
            logits = self.logits(out.audio_embeds, out.text_embeds)
            out["logits_per_audio"], out["logits_per_text"] = logits, logits.T
        return out

    def rows(self, input_values: Tensor, audio_lengths: Tensor | None) -> list[Tensor]:
        """The clips [S] of a padded batch."""
        if audio_lengths is None:
            return list(input_values)
        return [x[:n] for x, n in zip(input_values, audio_lengths.tolist(), strict=True)]

    def get_audio_features(
        self, input_values: Tensor, audio_lengths: Tensor | None = None
    ) -> Tensor:
        """Unit-norm embeddings [B, J] of waveforms [B, S]; see `forward`."""
        return self.embed_clips(self.rows(input_values, audio_lengths), len(input_values))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Unit-norm embeddings [B, J] of token ids [B, L]; see `forward`."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return self.text_embedding(input_ids, attention_mask.bool())
