"""Waveforms and strings -> inputs of the model.

Shapes: B batch, S samples, L text length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, ProcessorMixin, SequenceFeatureExtractor


class AlmFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms -> zero-padded float32 [B, S] at the model's rate, and their lengths [B].

    The log-mel front end is part of the model. Samples are rounded to 16 bits, as the model was
    trained.
    """

    model_input_names = ["input_values", "audio_lengths"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        **kwargs: Any,
    ):
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: str | None = "pt",
    ) -> BatchFeature:
        """Makes a batch.

        Args:
          audio: one mono clip [S], or several: int16, or float with full scale 1.
          sampling_rate: of the clips in Hz; None is the model's. Another one is resampled, which
            needs the package soxr.
          padding: True pads to the longest clip, "max_length" to `max_length`, False not at all.
          max_length: samples at the model's rate.
          truncation: cut clips at `max_length`.
          return_tensors: "pt", "np" or None.

        Raises:
          ValueError: something is no mono clip, or soxr is needed and not installed.
        """
        single = getattr(audio, "ndim", 0) == 1 or np.isscalar(audio[0])
        clips = [self.clip(clip, sampling_rate) for clip in ([audio] if single else audio)]
        if truncation and max_length:
            clips = [clip[:max_length] for clip in clips]
        lengths = [len(clip) for clip in clips]
        if padding:
            fixed = max_length if padding == "max_length" and max_length else 0
            size = max(fixed, *lengths) if len(lengths) > 1 else max(fixed, lengths[0])
            clips = [np.pad(clip, (0, size - len(clip))) for clip in clips]
        features = {"input_values": clips, "audio_lengths": np.asarray(lengths, np.int64)}
        return BatchFeature(features, tensor_type=return_tensors)

    def clip(self, clip: Any, sampling_rate: int | None) -> np.ndarray:
        """float32 [S] at the model's rate of one clip."""
        x = np.asarray(clip)
        is_audio = x.dtype == np.int16 or (x.dtype.kind == "f" and np.isfinite(x).all())
        if not is_audio or x.ndim != 1 or not x.size:
            raise ValueError(
                "a clip must be mono samples [S], S > 0, int16 or finite floats in [-1, 1]; got "
                f"{x.dtype} {list(x.shape)}"
            )
        rate = self.sampling_rate if sampling_rate is None else sampling_rate
        if x.dtype != np.int16 or rate != self.sampling_rate:
            full_scale = np.float32(32767 if x.dtype == np.int16 else 1)
            x = np.asarray(x, np.float32) / full_scale
            if rate != self.sampling_rate:
                x = _resampled(x, rate, self.sampling_rate)
            x = np.rint(np.clip(x, -1.0, 1.0) * 32767.0).astype(np.int16)
        return np.asarray(x, np.float32) * np.float32(1 / 32767)


def _resampled(x: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    try:
        import soxr
    except ImportError:
        raise ValueError(
            f"the audio has {rate} Hz, the model needs {wanted}: resample it, or pip install soxr"
        ) from None
    return soxr.resample(x, rate, wanted)


class AlmProcessor(ProcessorMixin):
    """Feature extractor and tokenizer as one."""

    def __init__(self, feature_extractor: AlmFeatureExtractor, tokenizer: Any):
        super().__init__(feature_extractor, tokenizer)

    def __call__(
        self,
        audio: Any = None,
        text: str | Sequence[str] | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """The inputs of the model.

        Args:
          audio: see `AlmFeatureExtractor`.
          text: one string, or several; long ones are cut as in training.
          sampling_rate: of the audio in Hz.
          return_tensors: "pt", "np" or None.
          kwargs: other arguments of the feature extractor.
        """
        out = BatchFeature()
        if audio is not None:
            out.update(
                self.feature_extractor(
                    audio, sampling_rate, return_tensors=return_tensors, **kwargs
                )
            )
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            out.update(
                self.tokenizer(texts, padding=True, truncation=True, return_tensors=return_tensors)
            )
            out.pop("token_type_ids", None)
        return out
