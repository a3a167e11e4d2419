"""The choices of a log-mel front end as named fields, and the published systems as instances."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeVar

from jax import Array

from alm_jax.audio import mel

Values = TypeVar("Values", float, Array)


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
        repeat_to_samples: clips shorter than this are repeated as often as they fit whole, and the
            rest are zeros that count as sound (LAION-CLAP's `repeatpad`); None leaves them.
        quantise_int16: round-trip through truncated 16-bit integers, as LAION-CLAP's loader does.
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
        dynamic_range: values further than this below the clip's maximum are raised to that limit,
            in log units (Whisper 8, torchaudio's top_db); None is off.
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
    repeat_to_samples: int | None = None
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

    @property
    def silence(self) -> float:
        """What a normalised spectrogram holds past a clip's last frame."""
        return float(self.normalise(self.padding_log_value))

    def normalise(self, log_values: Values) -> Values:
        """Applies (x - mean) / (std * std_multiple) to log values of any shape."""
        return (log_values - self.mean) / (self.std * self.std_multiple)


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
    # facebookresearch/AudioMAE dataset.py and YuanGongND/ast dataloader.py (torchaudio's Kaldi
    # fbank), AudioSet statistics. Clips are zero-padded before normalisation: padding_log_value 0.
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
    # microsoft/CLAP: 2022 is Cnn14; 2023's HTSAT wrapper has 32 kHz filters for 44.1 kHz audio.
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
