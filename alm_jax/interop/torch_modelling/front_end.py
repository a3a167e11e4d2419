"""The log-mel front end, whole batches at a time and without a branch on their lengths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


def hz_to_mel(hz: Any, scale: str) -> np.ndarray:
    """Mels of frequencies in Hz: "htk", or "slaney" (linear to 1 kHz, logarithmic above)."""
    hz = np.asarray(hz, np.float64)
    if scale == "htk":
        return 1127.0 * np.log1p(hz / 700.0)
    logarithmic = 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
    return np.where(hz < 1000, hz * 3 / 200, logarithmic)


def mel_to_hz(mel: np.ndarray, scale: str) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    if scale == "htk":
        return 700.0 * np.expm1(mel / 1127.0)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) / 27 * np.log(6.4)))


def mel_filters(c: Mapping[str, Any]) -> np.ndarray:
    """Triangular weights [fft_length // 2 + 1, F] float64; the row of 0 Hz is zero."""
    scale, rate = c["mel_scale"], c["filter_sample_rate"] or c["sample_rate"]
    mels = np.linspace(hz_to_mel(c["fmin"], scale), hz_to_mel(c["fmax"], scale), c["num_mels"] + 2)
    bins = np.arange(c["fft_length"] // 2 + 1) * (rate / c["fft_length"])
    in_mel = c["triangle"] == "mel"  # else the sides of a triangle are straight over Hz
    place, edges = (hz_to_mel(bins, scale), mels) if in_mel else (bins, mel_to_hz(mels, scale))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (place[:, None] - left) / (centre - left)
    falling = (right - place[:, None]) / (right - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    if c["filter_norm"] == "slaney":
        edges_hz = mel_to_hz(mels, scale)
        weights *= 2.0 / (edges_hz[2:] - edges_hz[:-2])
    return weights


class LogMel(nn.Module):
    """The log-mel front end; `c` is the group "frontend" of config.json."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.c = c
        filters = mel_filters(c)
        used = np.flatnonzero(filters.any(axis=1))
        bins = np.arange(used[0], used[-1] + 1)
        # The DFT as the JAX model computes it, to the same float32 rounding: time zero lies in the
        # middle of the Hann window, whose two halves then share one cosine and one sine matrix.
        self.period = c["window_length"] - (c["window"] == "hann_symmetric")
        self.middle = (self.period + 1) // 2
        n = np.arange(self.middle, c["window_length"])[:, None]
        window = 0.5 - 0.5 * np.cos(2 * np.pi * n / self.period)
        angle = 2 * np.pi / c["fft_length"] * (n - self.period / 2) * bins
        cosine, sine = np.cos(angle) * window, np.sin(angle) * window
        if self.period % 2 == 0:
            cosine[0] *= 0.5  # the middle sample belongs to both halves
        # Attributes rather than buffers: float32 whatever the model's type, and never loaded.
        self.cosine = torch.from_numpy(cosine.astype(np.float32))
        self.sine = torch.from_numpy(sine.astype(np.float32))
        self.filters = torch.from_numpy(filters[bins].astype(np.float32))

    def num_frames(self, length: Tensor) -> Tensor:
        """Frames that belong to clips of `length` samples."""
        c = self.c
        if c.get("repeat_to_samples"):
            length = length.clamp(min=c["repeat_to_samples"])
        if c["fixed_samples"]:
            length = length.clamp(max=c["fixed_samples"])
        hop = c["hop_length"]
        if c["framing"] == "pad_end" or (c["fixed_samples"] and c["drop_last_frame"]):
            return (length + hop - 1) // hop
        if c["framing"] == "snip_edges":
            return (1 + (length - c["window_length"]) // hop).clamp(min=0)
        return length // hop + (not c["drop_last_frame"])

    def output_frames(self, samples: int) -> int:
        """T that `forward` returns for rows of `samples` samples, padding included."""
        c = self.c
        if c.get("repeat_to_samples"):
            samples = max(samples, c["repeat_to_samples"])
        if c["fixed_samples"]:
            samples = c["fixed_samples"]
        if c["framing"] == "pad_end":
            return (samples + c["hop_length"] - 1) // c["hop_length"]
        if c["framing"] == "snip_edges":
            return max(0, 1 + (samples - c["window_length"]) // c["hop_length"])
        return samples // c["hop_length"] + (not c["drop_last_frame"])

    def normalise(self, x: Any) -> Any:
        """(x - mean) / (std * std_multiple)."""
        return (x - self.c["mean"]) / (self.c["std"] * self.c["std_multiple"])

    @property
    def silence(self) -> float:
        """What a normalised spectrogram holds past a clip's last frame."""
        return float(self.normalise(self.c["padding_log_value"]))

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-mel [B, T, F] of waveform [B, S] in [-1, 1] with `lengths` [B] valid samples."""
        c = self.c
        total = self.output_frames(waveform.shape[1])
        x = waveform.float()
        if lengths is None:
            lengths = torch.full_like(x[:, 0], x.shape[1], dtype=torch.int64)
        counts = self.num_frames(lengths)
        x, lengths = self.prepare(x, lengths)
        values = self.log_values(self.frames(self.mirror(x, lengths), total))
        if c["fixed_samples"]:
            valid = torch.ones_like(values[..., :1], dtype=torch.bool)
        else:
            valid = (torch.arange(total, device=x.device) < counts[:, None])[..., None]
        if c["dynamic_range"] is not None:
            peak = values.masked_fill(~valid, -torch.inf).amax((1, 2), keepdim=True)
            values = torch.maximum(values, peak - c["dynamic_range"])
        return self.normalise(torch.where(valid, values, float(c["padding_log_value"])))

    def prepare(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Steps on whole clips; samples past the length come out as zeros."""
        c = self.c
        if c.get("repeat_to_samples"):
            least = c["repeat_to_samples"]
            place = torch.arange(max(x.shape[1], least), device=x.device)
            times = torch.full_like(lengths, least) // lengths
            whole = torch.where(lengths < least, times * lengths, lengths)
            x = x.gather(1, place % lengths[:, None])
            x = torch.where(place < whole[:, None], x, 0.0)
            lengths = lengths.clamp(min=least)
        if c["fixed_samples"]:
            lengths = lengths.clamp(max=c["fixed_samples"])
            x = functional.pad(x, (0, c["fixed_samples"]))[:, : c["fixed_samples"]]
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        x = torch.where(valid, x, 0.0)
        if c["quantise_int16"]:
            x = torch.trunc(x.clamp(-1.0, 1.0) * 32767.0) / 32767.0
        if c["subtract_waveform_mean"]:
            x = torch.where(valid, x - x.sum(1, keepdim=True) / lengths[:, None], 0.0)
        return x, lengths

    def mirror(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Where frames are centred, puts the clip's mirror image before and behind it."""
        c = self.c
        if c["framing"] != "centre_reflect":
            return x
        if c["fixed_samples"]:
            lengths = torch.full_like(lengths, c["fixed_samples"])
        half, last = c["fft_length"] // 2, lengths[:, None] - 1
        place = torch.arange(-half, x.shape[1] + half, device=x.device)
        period = (2 * last).clamp(min=1)
        index = place % period
        index = torch.minimum(torch.minimum(index, period - index), last)
        x = torch.where(place < lengths[:, None] + half, x.gather(1, index), 0.0)
        skipped = (c["fft_length"] - c["window_length"]) // 2
        return x[:, skipped:] if c["window_position"] == "centre" else x

    def frames(self, x: Tensor, total: int) -> Tensor:
        """[B, T, window_length] of waveform [B, S]; zeros follow it."""
        hop, window = self.c["hop_length"], self.c["window_length"]
        x = functional.pad(x, (0, hop + window))
        start = hop * torch.arange(total, device=x.device)
        return x[:, start[:, None] + torch.arange(window, device=x.device)]

    def log_values(self, frames: Tensor) -> Tensor:
        """Log-mel [B, T, F] of frames [B, T, window_length], before normalisation."""
        c = self.c
        if c["remove_frame_mean"]:
            frames = frames - frames.mean(-1, keepdim=True)
        if c["preemphasis"]:
            before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
            frames = frames - c["preemphasis"] * before
        right = frames[..., self.middle :]
        first = self.period - c["window_length"] + 1
        left = frames[..., first : self.period - self.middle + 1].flip(-1)
        cosine, sine, filters = (
            m.to(frames.device) for m in (self.cosine, self.sine, self.filters)
        )
        power = ((right + left) @ cosine).square() + ((right - left) @ sine).square()
        mel = (power.clamp(min=1e-30).sqrt() if c["power"] == 1 else power) @ filters
        mel = mel + c["floor"] if c["floor_mode"] == "add" else mel.clamp(min=c["floor"])
        return mel.log() if c["log"] == "ln" else mel.log10() * (10 if c["log"] == "db" else 1)
