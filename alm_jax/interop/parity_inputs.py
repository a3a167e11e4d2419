"""What an export is tried on beside recordings: waves and sentences that need no licence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

ROWS = 4  # clips in a comparison: few, since caption logits [B, L, V] of a large model are big
_FLOOR = 8 / 32767  # -72 dB of full scale
# For models whose own captions are not at hand: short and long, several scripts, none at all.
SENTENCES = (
    "a dog barks twice while rain falls on a tin roof",
    "собака лает",
    "",
    "雨の音",
    "speech",
    "a violin playing the note C4",
    "a door creaks, then slams shut; footsteps fade away on gravel and an engine starts far off",
    "Ἀκούω: wind",
)


def synthetic_clips(sample_rate: int, max_samples: int, shortest: int = 1) -> list[np.ndarray]:
    """Eight waves int16 [S] that need no licence: noise, chirp, tones, clicks, silence, one sample.

    All but silence have a floor of faint noise, as recordings do: bands 110 dB below a pure tone
    hold float32 rounding, which a logarithm without one would make the most of.

    Args:
      sample_rate: Hz.
      max_samples: S of the longest.
      shortest: S of the shortest; more than one sample for front ends that repeat short clips,
        since a repeated sample is a constant, whose other bands are nothing but rounding.
    """
    rng = np.random.default_rng(0)
    seconds = np.arange(max_samples) / sample_rate
    nyquist = sample_rate / 2
    length = seconds[-1] + 1 / sample_rate
    sweep = 50 * seconds + 0.4 * nyquist * seconds**2 / length
    clicks = np.zeros(max_samples)
    clicks[:: max(1, sample_rate // 9)] = 0.9
    harmonics = sum(np.sin(2 * np.pi * 220 * k * seconds) / k for k in range(1, 6))
    waves = [
        (0.2 * rng.standard_normal(max_samples), 1.0),
        (0.5 * np.sin(2 * np.pi * sweep), 0.61),
        (0.3 * harmonics * np.exp(-3 * seconds), 0.37),
        (np.full(max_samples, 0.25), 0.0),  # the shortest
        (clicks, 0.83),
        (0.001 * np.sin(2 * np.pi * 1000 * seconds), 0.5),
        (np.cumsum(rng.standard_normal(max_samples)) / np.sqrt(10.0 * max_samples), 0.071),
        (np.zeros(max_samples), 0.2),
    ]
    clips = []
    for wave, share in waves:
        floor = _FLOOR * rng.standard_normal(max_samples) * bool(np.any(wave))
        pcm = np.rint(np.clip(wave + floor, -1, 1) * 32767).astype(np.int16)
        clips.append(pcm[: max(shortest, round(share * max_samples))])
    return clips


def batches(
    clips: Sequence[np.ndarray], captions: Sequence[str]
) -> Iterator[tuple[list[np.ndarray], list[str]]]:
    """Batches of `ROWS` clips and captions of both lists; the shorter one repeats its last."""
    rows = max(len(clips), len(captions))
    for first in range(0, rows, ROWS):
        index = range(first, first + ROWS)
        yield (
            [clips[min(i, len(clips) - 1)] for i in index],
            [captions[min(i, len(captions) - 1)] for i in index],
        )
