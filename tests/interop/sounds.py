"""Sounds to embed: no two alike, no licence."""

import numpy as np

RATE = 16000


def sound(seconds: float, seed: int) -> np.ndarray:
    """int16 [S], S >= 1: a few gliding partials and noise, different for every seed."""
    rng = np.random.default_rng(seed)
    time = np.arange(max(1, round(seconds * RATE))) / RATE
    wave = 0.02 * rng.standard_normal(len(time))
    for _ in range(3):
        start, glide = rng.uniform(100, 5000), rng.uniform(-1, 1)
        wave += 0.2 * np.sin(2 * np.pi * (start * time + 50 * glide * time**2) + rng.uniform(0, 6))
    return np.rint(np.clip(wave, -1, 1) * 32767).astype(np.int16)
