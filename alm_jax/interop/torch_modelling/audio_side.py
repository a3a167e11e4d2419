"""What every model has: front end, audio tower, embeddings of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from alm_jax.interop.torch_modelling.front_end import LogMel
from alm_jax.interop.torch_modelling.heads import normalize
from alm_jax.interop.torch_modelling.htsat import Htsat
from alm_jax.interop.torch_modelling.patches import Patches
from alm_jax.interop.torch_modelling.vit import AudioViT

FORMAT_VERSION = 1
TOWERS: dict[str, Any] = {"vit": AudioViT, "htsat": Htsat}


class Heard(NamedTuple):
    """A batch of clips on its way: log-mel, patches, states [B, N', D] and which are the clip's."""

    mel: Tensor
    patches: Patches
    hidden: Tensor
    mask: Tensor


class AudioSide:
    """Front end and audio tower.

    Attributes:
      fields: config.json.
      sample_rate: Hz that waveforms must have.
      window: samples of the longest clip that is embedded in one piece.
      embed_dim: width J of the embeddings.
      has_text: whether there is a text side.
    """

    fields: Mapping[str, Any]
    audio: Any
    tokenizer: Any
    has_text: bool

    def build(self, fields: Mapping[str, Any]) -> None:
        """Makes the parts that config.json names."""
        version = fields["export"]["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"config.json has format {version}, this file reads {FORMAT_VERSION}")
        self.fields = fields
        self.tokenizer, self.has_text = None, False
        self.sample_rate: int = fields["frontend"]["sample_rate"]
        self.window = round(fields["data"]["max_seconds"] * self.sample_rate)
        self.frontend = LogMel(fields["frontend"])
        self.audio = TOWERS[fields["model"]["audio"]["tower"]](fields)
        self.embed_dim = self.audio.width

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.audio.embed.weight.device

    def log_mel(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-mel [B, T, F] of float waveform [B, S] in [-1, 1], valid up to `lengths` [B]."""
        return self.frontend(waveform, lengths)

    def cut(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Patches]:
        """Log-mel [B, T, F] and patches of waveform [B, S] with `lengths` [B] valid samples."""
        mel = self.frontend(waveform, lengths)
        frames = self.frontend.num_frames(lengths).clamp(min=1)
        return mel, self.audio.patches(mel, frames, self.frontend.silence)

    def listen(self, waveform: Tensor, lengths: Tensor) -> Heard:
        """States of float waveform [B, S] in [-1, 1] with `lengths` [B] valid samples."""
        mel, patches = self.cut(waveform, lengths)
        return Heard(mel, patches, self.audio(patches), self.audio.state_mask(patches))

    def audio_embedding(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Unit-norm embeddings [B, J] of states [B, N', D]: their mean over the clip."""
        weight = mask[..., None] / mask.sum(1)[:, None, None]
        return normalize((hidden * weight).sum(1))

    def clips(self, audio: Any, sample_rate: int) -> list[Tensor]:
        """Float clips [S], rounded to 16 bits, of one clip [S] or several."""
        if sample_rate != self.sample_rate:
            raise ValueError(f"the audio has {sample_rate} Hz: resample it to {self.sample_rate}")
        clips = []
        for number, clip in enumerate([audio] if getattr(audio, "ndim", 0) == 1 else audio):
            x = np.asarray(clip)
            is_audio = x.dtype == np.int16 or (x.dtype.kind == "f" and np.isfinite(x).all())
            if not is_audio or x.ndim != 1 or not x.size:
                raise ValueError(
                    f"clip {number} must be mono samples [S], S > 0, int16 or finite floats in "
                    f"[-1, 1]; got {x.dtype} {list(x.shape)}"
                )
            if x.dtype != np.int16:
                x = np.rint(np.clip(np.float32(x), -1.0, 1.0) * 32767.0).astype(np.int16)
            clips.append(self.to_float(x))
        return clips

    def to_float(self, pcm: np.ndarray) -> Tensor:
        """float32 in [-1, 1] of int16."""
        # The float32 nearest to 1 / 32767, as in JAX.
        return torch.tensor(pcm, device=self.device).float() * float(np.float32(1 / 32767))

    def windows(self, clip: Tensor) -> list[Tensor]:
        """A clip [S] as windows of at most `data.max_seconds`.

        A last window shorter than a tenth of the others is dropped, unless it is the only one.
        """
        parts = list(clip.split(self.window))
        short = len(parts) > 1 and len(parts[-1]) < 0.1 * self.window
        return parts[:-1] if short else parts

    def batch(self, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Zero-padded waveform [B, S] and lengths [B] of clips [S]."""
        lengths = torch.tensor([len(part) for part in parts], device=self.device)
        return nn.utils.rnn.pad_sequence(list(parts), batch_first=True), lengths

    def embed_clips(self, clips: Sequence[Tensor], batch_size: int = 16) -> Tensor:
        """Unit-norm embeddings [n, J] of float clips [S]; see `embed_audio`."""
        parts = [self.windows(clip) for clip in clips]
        sizes = [sum(map(len, windows)) for windows in parts]
        flat = [(part, clip) for clip, windows in enumerate(parts) for part in windows]
        flat.sort(key=lambda item: len(item[0]))  # alike lengths together: less padding
        mean = torch.zeros(len(clips), self.embed_dim, device=self.device)
        for first in range(0, len(flat), batch_size):
            some, owner = zip(*flat[first : first + batch_size], strict=True)
            waveform, lengths = self.batch(some)
            share = lengths / lengths.new_tensor([sizes[clip] for clip in owner])
            heard = self.listen(waveform, lengths)
            weighted = self.audio_embedding(heard.hidden, heard.mask) * share[:, None]
            mean = mean.index_add(0, lengths.new_tensor(owner), weighted)
        return normalize(mean)

    @torch.inference_mode()
    def embed_audio(self, audio: Any, sample_rate: int = 16000, batch_size: int = 16) -> Tensor:
        """Unit-norm embeddings of clips.

        Args:
          audio: one clip [S], or several: a list of clips or an array [n, S]; int16 or float.
          sample_rate: Hz; must be the model's.
          batch_size: windows that are computed at once.

        Returns:
          [n, J] float32. A clip longer than `data.max_seconds` gets the mean over its windows,
          weighted by their duration, at unit norm.
        """
        return self.embed_clips(self.clips(audio, sample_rate), batch_size)

    def compared(self, golden: Mapping[str, Any], heard: Heard) -> dict[str, tuple[Any, Tensor]]:
        """(wanted, found) of each output in golden.npz, by name."""
        embedding = self.audio_embedding(heard.hidden, heard.mask)
        return {
            "log_mel": (golden["log_mel"].reshape(len(heard.mel), -1), heard.mel.flatten(1)),
            "audio_embedding": (golden["audio_embedding"], embedding),
        }
