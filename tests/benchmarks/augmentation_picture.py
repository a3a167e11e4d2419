"""Draws docs/images/augmentation.png: what each augmentation does to a recording.

python -m tests.benchmarks.augmentation_picture data/opensounds/default
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from alm_jax.audio.augment import (
    AugmentConfig,
    augment_spectrogram,
    augment_waveform,
    change_speed,
)
from alm_jax.audio.frontend import FLAVOURS, log_mel, num_frames
from alm_jax.audio.mixup import mix_waveforms
from input_pipeline.concatenate import join_audio
from input_pipeline.sources import open_source

FILE = Path(__file__).parents[2] / "docs" / "images" / "augmentation.png"
CFG = FLAVOURS["cacophony"]
SAMPLES = 3 * CFG.sample_rate
# Stronger than in training, so that they show.
PANELS: dict[str, dict[str, float | int]] = {
    "as recorded": {},
    "time_roll": {"time_roll": 1.0},
    "gain_db": {"gain_db": 24.0},
    "background": {"background_probability": 1.0},
    "noise": {"noise_probability": 1.0},
    "speed": {"speed": 0.6},
    "time_stretch": {"time_stretch": 0.6},
    "frequency_shift_bins": {"frequency_shift_bins": 30.0},
    "frequency_scale": {"frequency_scale": 0.6},
    "band_gain": {"band_gain": 1.0},
    "time_masks": {"time_masks": 2, "time_mask_frames": 60, "time_mask_fraction": 0.3},
    "frequency_masks": {"frequency_masks": 2, "frequency_mask_bins": 30},
}


def clips(directory: str) -> list[np.ndarray]:
    """Two recordings of two to three seconds that are not speech."""
    source = open_source(directory, "train")
    found = [
        example["audio"]
        for example in source
        if example["kind"] == "effect" and 2 * CFG.sample_rate < len(example["audio"]) < SAMPLES
    ]
    return [found[2], found[7]]


def picture(audio: jax.Array, length: jax.Array, fields: dict[str, float | int]) -> np.ndarray:
    """Normalised log-mel [T, F] of the first row."""
    cfg, keys = AugmentConfig(**fields), jax.random.split(jax.random.key(4), len(audio))
    audio, length = change_speed(keys, audio, length, cfg)
    audio = augment_waveform(keys, audio, length, cfg)
    mel = log_mel(audio, CFG, length=length)
    mel, _ = augment_spectrogram(keys, mel, num_frames(length, CFG), cfg, padding_value=CFG.silence)
    return np.asarray(mel[0])


def main(argv: Sequence[str]) -> None:
    """Writes the picture."""
    (directory,) = argv
    one, other = clips(directory)
    audio, length = np.zeros((2, SAMPLES), np.float32), np.array([len(one), len(other)])
    for row, clip in enumerate((one, other)):
        audio[row, : len(clip)] = clip / np.float32(32768)
    waves, lengths = jnp.asarray(audio), jnp.asarray(length)
    shown = {name: picture(waves, lengths, fields) for name, fields in PANELS.items()}
    half = jnp.full(1, 0.5)
    mixed = mix_waveforms(waves[:1], lengths[:1], waves[1:], lengths[1:], half)
    shown["mixup"] = picture(mixed, jnp.full(1, length.max()), {})
    joined = np.concatenate(join_audio(one, other, SAMPLES, (0.0, 0.0)))
    row = jnp.asarray(joined / np.float32(32768))[None]
    shown["concat"] = picture(row, jnp.full(1, len(joined)), {})
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 5, figsize=(11, 5.2), layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    limits = {"vmin": CFG.silence - 1.2, "vmax": 1.2}
    for axis, (name, mel) in zip(axes.flat, shown.items(), strict=False):
        axis.imshow(mel.T, origin="lower", aspect="auto", cmap="magma", **limits)
        axis.set_title(name, fontsize=10, family="monospace")
    FILE.parent.mkdir(exist_ok=True)
    figure.savefig(FILE, dpi=60)
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
