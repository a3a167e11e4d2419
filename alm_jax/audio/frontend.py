"""Log-mel front ends inside jit: one definition, one named flavour for each published system.

`log_mel` computes, in float32 whatever the model's dtype is,

    samples -> (mean removal) -> frames -> (DC removal, pre-emphasis) -> window -> DFT -> magnitude or
    power -> mel filters -> log -> (dynamic range limit) -> (x - mean) / (std * std_multiple)

with every step a named field of `LogMelConfig`. The valid frames of a zero-padded row are the frames
that the row alone would give.

Shapes: B batch, S samples, T frames, F mel bins, W window length, K frequency bins.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from alm_jax.audio import mel

IntOrArray = TypeVar("IntOrArray", int, np.ndarray, Array)

_PRECISION = lax.Precision.HIGHEST  # the default multiplies in bfloat16 on TPU and TF32 on GPU
_PCM_SCALE = 32767.0


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """Every choice a published log-mel front end makes. Lengths in samples, frequencies in Hz.

    Attributes:
        sample_rate: rate of the waveform.
        window_length: samples under the window (W).
        fft_length: DFT size, >= window_length; the windowed frame is zero-padded to it.
        hop_length: samples from one frame's start to the next.
        window: `'hann_periodic'` or `'hann_symmetric'`.
        framing: `'pad_end'` frame t starts at t * hop, zeros follow the clip, ceil(n / hop) frames
            (TensorFlow); `'snip_edges'` only frames that lie inside the clip (Kaldi);
            `'centre_reflect'` frame t is centred on t * hop, the clip is mirrored at both ends,
            1 + n // hop frames (librosa, torch.stft).
        window_position: where a window shorter than the FFT sits in it, `'start'` or `'centre'`. It
            moves the samples a frame covers only when framing is `'centre_reflect'`.
        drop_last_frame: leave out the last centred frame (Whisper).
        fixed_samples: zero-pad or cut every clip to this many samples first (Whisper's 30 s); the
            frames past the clip are then the ones computed on those zeros.
        quantise_int16: round-trip through 16-bit integers (truncation), as LAION-CLAP's loader does.
        subtract_waveform_mean: remove the mean over the clip's valid samples.
        remove_frame_mean: remove each frame's mean before pre-emphasis (Kaldi's remove_dc_offset).
        preemphasis: y[n] = x[n] - preemphasis * x[n - 1] within a frame; 0 is off.
        power: 1 for the magnitude spectrogram, 2 for the power spectrogram.
        num_mels: number of bands (F).
        fmin: lower edge of the filter bank.
        fmax: upper edge of the filter bank; may exceed Nyquist.
        mel_scale: see `mel.hz_to_mel`.
        triangle: see `mel.mel_filter_bank`.
        filter_norm: see `mel.mel_filter_bank`.
        filter_sample_rate: rate the filter bank is built for; None is `sample_rate`. MS-CLAP 2023
            builds it for 32 kHz and feeds 44.1 kHz.
        log: `'ln'`, `'log10'` or `'db'` (10 log10).
        floor: smallest mel value, in the units of the spectrogram.
        floor_mode: `'add'` log(x + floor) or `'max'` log(max(x, floor)).
        dynamic_range: values further than this below the clip's maximum are raised to that limit, in
            log units (Whisper 8, torchaudio's top_db); None is off.
        mean: subtracted from the log values.
        std: divisor, with std_multiple.
        std_multiple: AudioMAE and AST divide by twice their standard deviation.
        padding_log_value: log value, before normalisation, given to frames that are not valid.
    """

    sample_rate: int = 16000
    window_length: int = 400
    fft_length: int = 512
    hop_length: int = 160
    window: Literal["hann_periodic", "hann_symmetric"] = "hann_periodic"
    framing: Literal["pad_end", "snip_edges", "centre_reflect"] = "pad_end"
    window_position: Literal["start", "centre"] = "start"
    drop_last_frame: bool = False
    fixed_samples: int | None = None
    quantise_int16: bool = False
    subtract_waveform_mean: bool = False
    remove_frame_mean: bool = False
    preemphasis: float = 0.0
    power: int = 1
    num_mels: int = 128
    fmin: float = 0.0
    fmax: float = 8000.0
    mel_scale: mel.MelScale = "htk"
    triangle: mel.TriangleShape = "mel"
    filter_norm: mel.FilterNorm = None
    filter_sample_rate: int | None = None
    log: Literal["ln", "log10", "db"] = "ln"
    floor: float = 1e-5
    floor_mode: Literal["add", "max"] = "add"
    dynamic_range: float | None = None
    mean: float = -4.5
    std: float = 5.0
    std_multiple: float = 1.0
    padding_log_value: float = -4.5

    def __post_init__(self) -> None:
        """Checks the fields against each other.

        Raises:
            ValueError: names the field, its value and what is accepted.
        """
        choices = {
            "window": ("hann_periodic", "hann_symmetric"),
            "framing": ("pad_end", "snip_edges", "centre_reflect"),
            "window_position": ("start", "centre"),
            "power": (1, 2),
            "mel_scale": ("htk", "slaney"),
            "triangle": ("mel", "hz"),
            "filter_norm": (None, "slaney"),
            "log": ("ln", "log10", "db"),
            "floor_mode": ("add", "max"),
        }
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise ValueError(
                    f"LogMelConfig.{name}={getattr(self, name)!r} is not one of {accepted}"
                )
        for name in ("sample_rate", "window_length", "hop_length", "num_mels", "std", "floor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"LogMelConfig.{name}={getattr(self, name)!r} must be positive")
        if self.fft_length < self.window_length:
            raise ValueError(
                f"LogMelConfig.fft_length={self.fft_length} is shorter than "
                f"window_length={self.window_length}; give at least the window length"
            )
        if not 0 <= self.fmin < self.fmax:
            raise ValueError(
                f"LogMelConfig needs 0 <= fmin < fmax, got fmin={self.fmin}, fmax={self.fmax}"
            )
        if self.drop_last_frame and self.framing != "centre_reflect":
            raise ValueError("LogMelConfig.drop_last_frame needs framing='centre_reflect'")

    def normalise(self, log_values: Array | float) -> Array | float:
        """Applies (x - mean) / (std * std_multiple) to log values of any shape."""
        return (log_values - self.mean) / (self.std * self.std_multiple)


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
    if cfg.fixed_samples is not None:
        length = _minimum(length, cfg.fixed_samples)
    if cfg.framing == "pad_end" or (cfg.fixed_samples is not None and cfg.drop_last_frame):
        return -(-length // cfg.hop_length)
    if cfg.framing == "snip_edges":
        return _maximum(1 + (length - cfg.window_length) // cfg.hop_length, 0)
    return length // cfg.hop_length + (0 if cfg.drop_last_frame else 1)


def log_mel(audio: Array, cfg: LogMelConfig, *, length: Array | None = None) -> Array:
    """Log-mel spectrogram, normalised as `cfg` says.

    Args:
        audio: float [B, S] mono waveform in [-1, 1] at `cfg.sample_rate` (int16 PCM: `pcm_to_float`).
        cfg: the front end.
        length: int [B] valid samples of each row, 1..S; None means all S are valid. What lies beyond
            is ignored, whatever its values.

    Returns:
        float32 [B, T, F] with T = num_frames(S, cfg), or the frames of `cfg.fixed_samples`. The first
        num_frames(length[b]) frames of row b equal those of the unpadded clip; the others hold
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
    audio = audio.astype(jnp.float32)
    if cfg.fixed_samples is not None:
        if length is None:
            length = jnp.full(audio.shape[:1], min(audio.shape[1], cfg.fixed_samples), jnp.int32)
        length = jnp.minimum(length, cfg.fixed_samples)
        missing = max(0, cfg.fixed_samples - audio.shape[1])
        audio = jnp.pad(audio[:, : cfg.fixed_samples], ((0, 0), (0, missing)))
    total = _computed_frames(audio.shape[1], cfg)
    if total < 1:
        raise ValueError(
            f"{audio.shape[1]} samples hold no frame of window_length={cfg.window_length} with "
            f"framing={cfg.framing!r}; pad the batch to at least one window"
        )
    audio = _prepare_waveform(audio, length, cfg)
    # Whisper mirrors its zero-padded 30 s, not the clip.
    mirror_at = None if cfg.fixed_samples is not None else length
    spectrum = _spectrum(_frames(_pad(audio, mirror_at, cfg), total, cfg), cfg)
    values = _to_log(spectrum, cfg)

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


def _minimum(length, limit: int):
    return min(length, limit) if isinstance(length, int) else length.clip(max=limit)


def _maximum(length, limit: int):
    return max(length, limit) if isinstance(length, int) else length.clip(min=limit)


def _computed_frames(samples: int, cfg: LogMelConfig) -> int:
    if cfg.framing == "centre_reflect":
        return samples // cfg.hop_length + (0 if cfg.drop_last_frame else 1)
    return num_frames(samples, cfg)


def _prepare_waveform(audio: Array, length: Array | None, cfg: LogMelConfig) -> Array:
    """Whole-clip steps on [B, S]; samples past `length` come out as zeros."""
    valid = None if length is None else jnp.arange(audio.shape[1]) < length[:, None]
    if valid is not None:
        audio = jnp.where(valid, audio, 0.0)
    if cfg.quantise_int16:
        audio = jnp.trunc(jnp.clip(audio, -1.0, 1.0) * _PCM_SCALE) / _PCM_SCALE
    if cfg.subtract_waveform_mean:
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
    # Only the 2 * half mirrored samples are gathered; gathering the whole clip costs ten times more.
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


def _frames(audio: Array, total: int, cfg: LogMelConfig) -> Array:
    """[B, S'] -> [B, T, W], by shifted views of hop-sized blocks instead of a gather."""
    hop, width = cfg.hop_length, cfg.window_length
    if cfg.framing == "centre_reflect" and cfg.window_position == "centre":
        audio = audio[:, (cfg.fft_length - width) // 2 :]
    per_frame = -(-width // hop)
    needed = (total + per_frame - 1) * hop
    audio = jnp.pad(audio, ((0, 0), (0, max(0, needed - audio.shape[1]))))[:, :needed]
    blocks = audio.reshape(audio.shape[0], -1, hop)
    parts = [blocks[:, i : i + total] for i in range(per_frame)]
    return jnp.concatenate(parts, axis=-1)[..., :width]


@functools.lru_cache(maxsize=32)
def _filters(cfg: LogMelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mel weights [K, F] float32 of the bins that any filter uses, and those bins' numbers [K]."""
    weights = mel.mel_filter_bank(
        sample_rate=cfg.filter_sample_rate or cfg.sample_rate,
        fft_length=cfg.fft_length,
        num_mels=cfg.num_mels,
        fmin=cfg.fmin,
        fmax=cfg.fmax,
        scale=cfg.mel_scale,
        shape=cfg.triangle,
        norm=cfg.filter_norm,
    )
    used = np.flatnonzero(weights.any(axis=1))
    bins = np.arange(used[0], used[-1] + 1)
    return weights[bins].astype(np.float32), bins


@functools.lru_cache(maxsize=32)
def _dft(cfg: LogMelConfig) -> np.ndarray:
    """Window and DFT in one float32 matrix [W, 2K]: cosine columns, then sine columns."""
    n = np.arange(cfg.window_length)
    period = cfg.window_length - (cfg.window == "hann_symmetric")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / period)
    angle = 2 * np.pi / cfg.fft_length * np.outer(n, _filters(cfg)[1])
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32) * window[
        :, None
    ].astype(np.float32)


def _spectrum(frames: Array, cfg: LogMelConfig) -> Array:
    """[B, T, W] -> magnitude or power mel spectrogram [B, T, F]."""
    if cfg.remove_frame_mean:
        frames = frames - jnp.mean(frames, axis=-1, keepdims=True)
    if cfg.preemphasis:
        previous = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
        frames = frames - cfg.preemphasis * previous
    parts = jnp.matmul(frames, _dft(cfg), precision=_PRECISION)
    bins = parts.shape[-1] // 2
    power = jnp.square(parts[..., :bins]) + jnp.square(parts[..., bins:])
    if cfg.power == 1:
        power = jnp.sqrt(jnp.maximum(power, 1e-30))  # keeps the gradient finite in silence
    return jnp.matmul(power, _filters(cfg)[0], precision=_PRECISION)


def _to_log(values: Array, cfg: LogMelConfig) -> Array:
    values = values + cfg.floor if cfg.floor_mode == "add" else jnp.maximum(values, cfg.floor)
    if cfg.log == "ln":
        return jnp.log(values)
    return jnp.log10(values) * (10.0 if cfg.log == "db" else 1.0)


_CENTRED = LogMelConfig(
    sample_rate=32000,
    window_length=1024,
    fft_length=1024,
    hop_length=320,
    framing="centre_reflect",
    power=2,
    num_mels=64,
    fmin=50.0,
    fmax=14000.0,
    mel_scale="slaney",
    triangle="hz",
    filter_norm="slaney",
    log="db",
    floor=1e-10,
    floor_mode="max",
    mean=0.0,
    std=1.0,
    padding_log_value=-100.0,
)
_LAION = dataclasses.replace(_CENTRED, sample_rate=48000, hop_length=480)
_M2D = dataclasses.replace(
    _CENTRED,
    sample_rate=16000,
    window_length=400,
    fft_length=400,
    hop_length=160,
    num_mels=80,
    fmax=8000.0,
    log="ln",
    floor=1.1920929e-07,
    floor_mode="add",
    mean=-7.1,
    std=4.2,
    padding_log_value=-7.1,
)

FLAVOURS: dict[str, LogMelConfig] = {
    # gzhu06/Cacophony, src/caco/caco_eval_utils.py (tensorflow-io spectrogram and mel scale);
    # ln(x + 1e-5) * 0.2 + 0.9, padding patches are zero.
    "cacophony": LogMelConfig(),
    # facebookresearch/AudioMAE dataset.py and YuanGongND/ast dataloader.py (torchaudio's Kaldi fbank);
    # AudioSet statistics. Clips are zero-padded before normalisation, hence padding_log_value 0.
    "kaldi_fbank": LogMelConfig(
        window="hann_symmetric",
        framing="snip_edges",
        subtract_waveform_mean=True,
        remove_frame_mean=True,
        preemphasis=0.97,
        power=2,
        fmin=20.0,
        floor=1.1920929e-07,
        floor_mode="max",
        mean=-4.2677393,
        std=4.5689974,
        std_multiple=2.0,
        padding_log_value=0.0,
    ),
    # LAION-AI/CLAP htsat.py (torchlibrosa in the model) and laion_clap/training/data.py get_mel.
    "laion_clap": _LAION,
    "laion_clap_fusion": dataclasses.replace(_LAION, mel_scale="htk", filter_norm=None),
    # microsoft/CLAP: 2022 is Cnn14; 2023's HTSAT wrapper keeps the 32 kHz filters for 44.1 kHz audio.
    "msclap2022": dataclasses.replace(_CENTRED, sample_rate=44100),
    "msclap2023": dataclasses.replace(_CENTRED, sample_rate=44100, filter_sample_rate=32000),
    # qiuqiangkong/audioset_tagging_cnn Cnn14 and RetroCirce/HTS-Audio-Transformer.
    "panns": _CENTRED,
    "panns_16k": dataclasses.replace(
        _CENTRED,
        sample_rate=16000,
        window_length=512,
        fft_length=512,
        hop_length=160,
        fmax=8000.0,
    ),
    "htsat": _CENTRED,
    # nttcslab/m2d examples/portable_m2d.py (nnAudio); the statistics are the published defaults.
    "m2d": _M2D,
    "m2d_32k": dataclasses.replace(
        _M2D,
        sample_rate=32000,
        window_length=800,
        fft_length=800,
        hop_length=320,
        fmax=16000.0,
    ),
    # openai/whisper log_mel_spectrogram; large-v3 has num_mels=128.
    "whisper": LogMelConfig(
        window_length=400,
        fft_length=400,
        framing="centre_reflect",
        drop_last_frame=True,
        fixed_samples=480000,
        power=2,
        num_mels=80,
        mel_scale="slaney",
        triangle="hz",
        filter_norm="slaney",
        log="log10",
        floor=1e-10,
        floor_mode="max",
        dynamic_range=8.0,
        mean=-4.0,
        std=4.0,
        padding_log_value=-10.0,
    ),
}
