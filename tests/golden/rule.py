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
