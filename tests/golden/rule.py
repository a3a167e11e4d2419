"""The rule that generated the weights and inputs of the golden files, so that they need no storage.

Every array is a function of its official name, shape and seed: standard normal numbers from numpy's
default generator seeded with [seed, crc32(name)], scaled by what the name says the array is.
"""

import zlib

import numpy as np

POOL_QUERIES = ("query", "attention_pool_query")


def normal(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float64 standard normal numbers belonging to a name; also the rule for model inputs."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.standard_normal(tuple(shape))


def flax_weight(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 parameter of an official flax tree; `name` is slash-joined."""
    x = normal(name, shape, seed)
    leaf = name.rsplit("/", 1)[-1]
    own = tuple(shape)[1:] if "Scan" in name else tuple(shape)  # without the stacked layers
    if not shape:
        x = np.full((), np.log(1 / 0.07))
    elif leaf in POOL_QUERIES:
        pass
    elif leaf == "bias":
        x = 0.02 * x
    elif leaf == "scale":
        x = 1.0 + 0.1 * x
    elif leaf == "kernel":
        projects_in = len(own) == 3 and "/out/" not in name
        x = x / np.sqrt(own[0] if projects_in else np.prod(own[:-1]))
    else:
        x = 0.05 * x  # tables, tokens, positions
    return x.astype(np.float32)


def torch_weight(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 parameter of an official PyTorch state dict; `name` is dotted.

    Constants that the official constructors compute (tables of indices, counters) follow no rule.
    """
    x = normal(name, shape, seed)
    *parents, leaf = name.split(".")
    decibels = "bn0" in parents or ("batch_norm" in parents and "audio_encoder" in parents)
    is_table = parents[-1:] and parents[-1].endswith(("_embeddings", "wte", "wpe", "shared"))
    if leaf == "running_mean":
        x = 3.0 * x - 30.0 if decibels else 0.1 * x
    elif leaf == "running_var":
        x = (200.0 if decibels else 1.0) * np.exp(0.1 * x)
    elif not shape:
        x = np.full((), np.log(1 / 0.07))
    elif "relative_" in name:
        x = 0.5 * x
    elif leaf in POOL_QUERIES:
        pass
    elif leaf.endswith("bias"):
        x = 0.02 * x
    elif len(shape) == 1 and leaf in ("weight", "tau"):
        x = 1.0 + 0.1 * x
    elif leaf in ("weight", "in_proj_weight") and not is_table:
        x = x * np.sqrt((2.0 if tuple(shape[2:]) == (3, 3) else 1.0) / np.prod(shape[1:]))
    else:
        x = 0.05 * x  # tables, tokens, positions
    return x.astype(np.float32)


def uniform(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 numbers in [0, 1) belonging to a name: noise that decides what is masked."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return generator.random(tuple(shape)).astype(np.float32)


def spectrogram(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 noise [..., T, F] whose mean and spread change from one 16 x 16 square to another."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    *lead, frames, bins = shape
    x = generator.standard_normal(tuple(shape))
    squares = [generator.standard_normal((*lead, frames // 16, bins // 16)) for _ in range(2)]
    spread, mean = (np.kron(square, np.ones((16, 16))) for square in squares)
    return (x * np.exp(0.5 * spread) + mean).astype(np.float32)


def waveform(sample_rate: int, seconds: float, seed: int = 0) -> np.ndarray:
    """int16 clip of the goldens: chirp, three decaying tones, noise, 0.1 s of digital silence."""
    n = round(sample_rate * seconds)
    rng = np.random.default_rng([seed, sample_rate, n])
    t = np.arange(n) / sample_rate
    low, high = 60.0 * (1 + seed), 0.45 * sample_rate
    cycles = low * seconds / np.log(high / low) * ((high / low) ** (t / seconds) - 1)
    x = 0.3 * np.sin(2 * np.pi * cycles)
    for _ in range(3):
        onset = rng.uniform(0, seconds * 0.8)
        pitch = rng.uniform(100, 1200)
        decay = np.where(t >= onset, np.exp(-(t - onset) * 6), 0)
        x += 0.2 * decay * sum(np.sin(2 * np.pi * pitch * h * t) / h for h in (1, 2, 3, 5))
    x += 0.02 * rng.standard_normal(n)
    quiet = int(0.6 * n)
    x[quiet : quiet + sample_rate // 10] = 0.0
    return np.clip(np.round(x * 32767 * 0.8), -32768, 32767).astype(np.int16)
