"""The log-mel front end, whole batches at a time and without a branch on their lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def filtered_table(waves: np.ndarray, c: Mapping[str, Any]) -> np.ndarray:
    """Waves [window_length, K] for frames whose mean and pre-emphasis are yet to be dealt with."""
    following = np.concatenate([waves[1:], np.zeros_like(waves[:1])])
    following[0] += waves[0]  # the first sample's predecessor is itself
    waves = waves - c["preemphasis"] * following
    return waves - waves.mean(0) if c["remove_frame_mean"] else waves


def split_table(table: np.ndarray) -> list[Tensor]:
    """Leading 7 bits of each column, the rest, and the table itself, in float32."""
    step = 2.0 ** (np.ceil(np.log2(np.maximum(np.abs(table).max(0), 1e-30))) - 7)
    high = np.round(table / step) * step
    return [torch.from_numpy(part.astype(np.float32)) for part in (high, table - high, table)]


def split_product(leading: Tensor, rest: Tensor, tables: Sequence[Tensor]) -> Tensor:
    """(leading + rest) [..., n] times a table [n, K]."""
    high, low, whole = (table.to(rest.device) for table in tables)
    return leading @ high + (leading @ low + rest @ whole)


class LogMel(nn.Module):
    """The log-mel front end; `c` is the group "frontend" of config.json."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.c = c
        filters = mel_filters(c)
        used = np.flatnonzero(filters.any(axis=1))
        bins = np.arange(used[0], used[-1] + 1)
        # The DFT as the JAX model computes it: time zero lies in the middle of the Hann window.
        self.period = c["window_length"] - (c["window"] == "hann_symmetric")
        self.middle = (self.period + 1) // 2
        n = np.arange(c["window_length"])[:, None]
        window = 0.5 - 0.5 * np.cos(2 * np.pi * n / self.period)
        angle = 2 * np.pi / c["fft_length"] * (n - self.period / 2) * bins
        waves = window * np.concatenate([np.cos(angle), np.sin(angle)], 1)
        self.filtered = bool(c["remove_frame_mean"] or c["preemphasis"])
        # Attributes rather than buffers: float32 whatever the model's type, and never loaded.
        if c["power"] == 2 and self.filtered:
            self.tables = [split_table(filtered_table(waves, c))]
        else:  # the window's two halves share one cosine and one sine matrix
            halves = waves[self.middle :]
            if self.period % 2 == 0:
                halves[0] *= 0.5  # the middle sample belongs to both halves
            self.tables = [split_table(half) for half in np.split(halves, 2, 1)]
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
        inside = c["framing"] == "snip_edges"  # then a frame's own mean takes the clip's with it
        if c["subtract_waveform_mean"] and not (c["remove_frame_mean"] and inside):
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
        real, imaginary = self.accurate(frames) if c["power"] == 2 else self.rounded(frames)
        spectrum = real.square() + imaginary.square()
        if c["power"] == 1:
            spectrum = spectrum.clamp(min=1e-30).sqrt()
        mel = spectrum @ self.filters.to(frames.device)
        mel = mel + c["floor"] if c["floor_mode"] == "add" else mel.clamp(min=c["floor"])
        return mel.log() if c["log"] == "ln" else mel.log10() * (10 if c["log"] == "db" else 1)

    def rounded(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary part [B, T, K] of the windowed frames' DFT, as float32 has it."""
        c = self.c
        if c["remove_frame_mean"]:
            frames = frames - frames.mean(-1, keepdim=True)
        if c["preemphasis"]:
            before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
            frames = frames - c["preemphasis"] * before
        sums, differences = self.halves(frames)
        (_, _, cosine), (_, _, sine) = self.tables
        return sums @ cosine.to(frames.device), differences @ sine.to(frames.device)

    def accurate(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """As `rounded`, with some more bits: for the logarithm of a power.

        The sums' rounding would drown bands 100 dB below the loudest. Leading bits of samples times
        leading bits of a table's entries add up exactly, and the rest is small.
        """
        shift = frames.abs().amax(-1, keepdim=True) * 2.0**17
        leading = (frames + shift) - shift  # what float32 has places for above 2^17 times the peak
        rest = frames - leading
        if self.filtered:
            real, imaginary = split_product(leading, rest, self.tables[0]).chunk(2, -1)
            return real, imaginary
        parts = zip(self.halves(leading), self.halves(rest), self.tables, strict=True)
        real, imaginary = (split_product(*part) for part in parts)
        return real, imaginary

    def halves(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and differences [B, T, H] of the samples either side of the window's middle."""
        right = frames[..., self.middle :]
        first = self.period - self.c["window_length"] + 1
        left = frames[..., first : self.period - self.middle + 1].flip(-1)
        return right + left, right - left
