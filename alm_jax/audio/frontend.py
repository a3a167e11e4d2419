"""Log-mel front ends inside jit: one definition, one named flavour for each published system.

`log_mel` computes, in float32 whatever the model's dtype is,

    samples -> (repetition, mean removal) -> frames -> (DC removal, pre-emphasis) -> window ->
    DFT -> magnitude or power -> mel filters -> log -> (dynamic range limit) -> (x - mean) / std

with every step a named field of `LogMelConfig`. The valid frames of a zero-padded row are the
frames that the row alone would give.

Shapes: B batch, S samples, T frames, F mel bins.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from alm_jax.audio.frontend_config import FLAVOURS, LogMelConfig
from alm_jax.audio.spectrum import frame_spectrum

__all__ = ["FLAVOURS", "LogMelConfig", "log_mel", "num_frames", "output_frames", "pcm_to_float"]

IntOrArray = TypeVar("IntOrArray", int, np.ndarray, Array)

_PCM_SCALE = 32767.0
_CPU_FRAMES_AT_ONCE = 4096  # frames in one pass: about 2 MB a core


def pcm_to_float(audio: Array) -> Array:
    """int16 PCM of any shape -> float32, with 32767 <-> 1.0 as the datasets are written."""
    return audio.astype(jnp.float32) * np.float32(1.0 / _PCM_SCALE)


def num_frames(length: IntOrArray, cfg: LogMelConfig) -> IntOrArray:
    """Number of valid frames of a clip.

    Args:
        length: samples of the clip at `cfg.sample_rate`: an int, or an integer array of any shape.
        cfg: the front end.

    Returns:
        Frames, of the type given. `'snip_edges'` gives 0 for clips shorter than one window. With
        `fixed_samples` it counts the frames whose centre lies on the clip; `log_mel` returns more.
    """
    if cfg.repeat_to_samples is not None:
        length = _maximum(length, cfg.repeat_to_samples)
    if cfg.fixed_samples is not None:
        length = _minimum(length, cfg.fixed_samples)
    if cfg.framing == "pad_end" or (cfg.fixed_samples is not None and cfg.drop_last_frame):
        return -(-length // cfg.hop_length)
    if cfg.framing == "snip_edges":
        return _maximum(1 + (length - cfg.window_length) // cfg.hop_length, 0)
    return length // cfg.hop_length + (0 if cfg.drop_last_frame else 1)


def output_frames(samples: int, cfg: LogMelConfig) -> int:
    """T of the array that `log_mel` returns for rows of `samples` samples (padding included)."""
    if cfg.repeat_to_samples is not None:
        samples = max(samples, cfg.repeat_to_samples)
    if cfg.fixed_samples is not None:
        samples = cfg.fixed_samples
    if cfg.framing == "centre_reflect":
        return samples // cfg.hop_length + (0 if cfg.drop_last_frame else 1)
    return num_frames(samples, cfg)


def log_mel(audio: Array, cfg: LogMelConfig, *, length: Array | None = None) -> Array:
    """Log-mel spectrogram, normalised as `cfg` says.

    Args:
        audio: float [B, S] mono waveform in [-1, 1] at `cfg.sample_rate`; int16 PCM must go through
            `pcm_to_float` first.
        cfg: the front end.
        length: int [B] valid samples of each row, 1..S; None means all S are valid. What lies
            beyond is ignored, whatever its values.

    Returns:
        float32 [B, T, F] with T = output_frames(S, cfg). The first num_frames(length[b], cfg)
        frames of row b equal those of the unpadded clip; the others hold
        `cfg.normalise(cfg.padding_log_value)`. With `fixed_samples` no frame is overwritten: the
        frames past the clip are what the official code computes from its zero padding.

    Raises:
        TypeError: integer samples.
        ValueError: not a [B, S] array, or no frame fits in S samples.
    """
    if audio.ndim != 2:
        raise ValueError(f"log_mel needs audio of shape [B, S], got {audio.shape}")
    if not jnp.issubdtype(audio.dtype, jnp.floating):
        raise TypeError(
            f"log_mel needs float samples in [-1, 1], got {audio.dtype}; use pcm_to_float"
        )
    total = output_frames(audio.shape[1], cfg)
    audio = audio.astype(jnp.float32)
    if cfg.repeat_to_samples is not None:
        audio, length = _repeat(audio, length, cfg.repeat_to_samples)
    if cfg.fixed_samples is not None:
        if length is None:
            length = jnp.full(audio.shape[:1], min(audio.shape[1], cfg.fixed_samples), jnp.int32)
        length = jnp.minimum(length, cfg.fixed_samples)
        missing = max(0, cfg.fixed_samples - audio.shape[1])
        audio = jnp.pad(audio[:, : cfg.fixed_samples], ((0, 0), (0, missing)))
    if total < 1:
        raise ValueError(
            f"{audio.shape[1]} samples hold no frame of window_length={cfg.window_length} with "
            f"framing={cfg.framing!r}; pad the batch to at least one window"
        )
    audio = _prepare_waveform(audio, length, cfg)
    # Whisper mirrors its zero-padded 30 s, not the clip.
    mirror_at = None if cfg.fixed_samples is not None else length
    values = _to_log(_mel_spectrogram(_pad(audio, mirror_at, cfg), total, cfg), cfg)

    valid = None
    if length is not None and cfg.fixed_samples is None:
        valid = jnp.arange(total) < num_frames(length, cfg)[:, None]
    if cfg.dynamic_range is not None:
        counted = values if valid is None else jnp.where(valid[..., None], values, -jnp.inf)
        peak = jnp.max(counted, axis=(1, 2), keepdims=True)
        values = jnp.maximum(values, peak - cfg.dynamic_range)
    if valid is not None:
        values = jnp.where(valid[..., None], values, cfg.padding_log_value)
    return cfg.normalise(values)


def _minimum(length: IntOrArray, limit: int) -> IntOrArray:
    return min(length, limit) if isinstance(length, int) else length.clip(max=limit)


def _maximum(length: IntOrArray, limit: int) -> IntOrArray:
    return max(length, limit) if isinstance(length, int) else length.clip(min=limit)


def _repeat(audio: Array, length: Array | None, samples: int) -> tuple[Array, Array]:
    """Repeats whole clips shorter than `samples`; returns audio [B, S'] and lengths [B].

    What there is of a clip is copied behind itself until it is long enough: contiguous copies,
    where gathering every sample would be slow on accelerators.
    """
    batch, given = audio.shape
    if length is None:
        length = jnp.full((batch,), given, jnp.int32)
    length = jnp.clip(length, 1, given)
    size = max(given, samples)
    place = jnp.arange(size)
    audio = jnp.pad(audio, ((0, 0), (0, size - given)))
    audio = jnp.where(place < length[:, None], audio, 0.0)
    end = jnp.where(length < samples, samples // length * length, length)

    def moved(row: Array, by: Array) -> Array:
        return lax.dynamic_slice_in_dim(jnp.pad(row, (size, 0)), size - by, size)

    def double(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        clip, filled = carry
        unfinished = filled < end
        clip = clip + jax.vmap(moved)(clip, jnp.where(unfinished, filled, size))
        return clip, jnp.where(unfinished, jnp.minimum(2 * filled, size), filled)

    audio, _ = lax.while_loop(lambda carry: jnp.any(carry[1] < end), double, (audio, length))
    return jnp.where(place < end[:, None], audio, 0.0), jnp.maximum(length, samples)


def _prepare_waveform(audio: Array, length: Array | None, cfg: LogMelConfig) -> Array:
    """Whole-clip steps on [B, S]; samples past `length` come out as zeros."""
    valid = None if length is None else jnp.arange(audio.shape[1]) < length[:, None]
    if valid is not None:
        audio = jnp.where(valid, audio, 0.0)
    if cfg.quantise_int16:
        audio = jnp.trunc(jnp.clip(audio, -1.0, 1.0) * _PCM_SCALE) / _PCM_SCALE
    inside = cfg.framing == "snip_edges"  # then a frame's own mean takes the clip's with it
    if cfg.subtract_waveform_mean and not (cfg.remove_frame_mean and inside):
        count = audio.shape[1] if length is None else jnp.maximum(length, 1)[:, None]
        audio = audio - jnp.sum(audio, axis=1, keepdims=True) / count
        if valid is not None:
            audio = jnp.where(valid, audio, 0.0)
    return audio


def _pad(audio: Array, length: Array | None, cfg: LogMelConfig) -> Array:
    """[B, S] -> [B, S'] so that frame t of the framing starts at sample t * hop."""
    if cfg.framing != "centre_reflect":
        return audio
    half = cfg.fft_length // 2
    samples = audio.shape[1]
    if length is None:
        return jnp.pad(audio, ((0, 0), (half, half)), mode="reflect")
    # Only the mirrored samples are gathered: a gather over the whole clip would dominate the cost.
    last = jnp.maximum(length, 1)[:, None] - 1
    offsets = jnp.arange(1, half + 1)
    head = jnp.take_along_axis(audio, _mirror(-offsets[::-1], last), axis=1)
    tail = jnp.take_along_axis(audio, _mirror(last + offsets, last), axis=1)
    padded = jnp.concatenate([head, audio, jnp.zeros_like(tail)], axis=1)
    place = jax.vmap(lambda row, part, at: lax.dynamic_update_slice(row, part, (at,)))
    return place(padded, tail, jnp.minimum(length, samples) + half)


def _mirror(index: Array, last: Array) -> Array:
    """Position in 0..last that `index` falls on when the clip is mirrored again and again."""
    period = jnp.maximum(2 * last, 1)
    index = index % period
    return jnp.minimum(jnp.minimum(index, period - index), last)


def _mel_spectrogram(audio: Array, total: int, cfg: LogMelConfig) -> Array:
    """[B, S'] -> mel spectrogram [B, T, F] before the log.

    Frames are shifted views of hop-sized blocks, which is several times cheaper than a gather.
    """
    if cfg.framing == "centre_reflect" and cfg.window_position == "centre":
        audio = audio[:, (cfg.fft_length - cfg.window_length) // 2 :]
    batch, hop = audio.shape[0], cfg.hop_length
    overlap = -(-cfg.window_length // hop) - 1  # further blocks that a frame reaches into
    steps = min(total, max(1, round(batch * total / _CPU_FRAMES_AT_ONCE)))
    chunk = -(-total // steps)
    needed = (steps * chunk + overlap) * hop
    audio = jnp.pad(audio, ((0, 0), (0, max(0, needed - audio.shape[1]))))[:, :needed]
    blocks = audio.reshape(batch, -1, hop)

    def some(blocks: Array) -> Array:
        count = blocks.shape[1] - overlap
        frames = jnp.concatenate([blocks[:, i : i + count] for i in range(overlap + 1)], axis=-1)
        return frame_spectrum(frames[..., : cfg.window_length], cfg)

    def in_chunks(blocks: Array) -> Array:
        def body(i: Array) -> Array:
            return some(lax.dynamic_slice_in_dim(blocks, i * chunk, chunk + overlap, axis=1))

        parts = lax.map(body, jnp.arange(steps))
        return jnp.moveaxis(parts, 0, 1).reshape(batch, steps * chunk, cfg.num_mels)

    if steps == 1:
        return some(blocks)
    # On CPU, time chunks that stay in cache take 60% of the time of one pass over everything. The
    # loop runs over time, so a batch that is sharded over devices stays where it is.
    return lax.platform_dependent(
        blocks,
        cpu=lambda blocks: in_chunks(blocks)[:, :total],
        default=lambda blocks: some(blocks[:, : total + overlap]),
    )


def _to_log(values: Array, cfg: LogMelConfig) -> Array:
    values = values + cfg.floor if cfg.floor_mode == "add" else jnp.maximum(values, cfg.floor)
    if cfg.log == "ln":
        return jnp.log(values)
    return jnp.log10(values) * (10.0 if cfg.log == "db" else 1.0)
