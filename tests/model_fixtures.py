"""Tiny models with random parameters, saved as real workdirs; made once a test process.

Functions rather than fixtures, so that any test module may use them: `clap_workdir()`.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

import alm_jax
from alm_jax.checkpoints import Checkpoints
from alm_jax.config import load_config, save_config
from alm_jax.inference.model import Model
from alm_jax.train_state import TrainState, model_graph
from input_pipeline.text import FILE_NAME, Tokenizer

CAPTIONS = [
    "a dog barks twice in the distance",
    "a woman says the number seven",
    "a man counts from one to ten in Spanish",
    "heavy rain on a tin roof",
    "an explosion with a long echo",
    "a soft bell rings three times",
    "звонок телефона",
    "κουδούνι",
    "电话铃声",
]
_SMALLER = [
    "model.audio.width=32",
    "model.audio.depth=2",
    "model.audio.heads=2",
    "model.audio.mlp_dim=64",
    "data.max_seconds=2.0",
    "eval.bucket_seconds=(0.5,)",
]
_SMALLER_TEXT = [
    f"model.{part}.{key}"
    for part in ("text", "caption_decoder")
    for key in ("width=32", "depth=1", "heads=2", "mlp_dim=64")
] + ["model.embed_dim=24", "model.audio_pool.heads=2", "data.max_text_length=16"]
_SMALLER_MAE = [
    f"model.mae_decoder.{key}" for key in ("width=32", "depth=1", "heads=2", "mlp_dim=64")
]


@functools.cache
def clap_workdir() -> Path:
    """A stage-2 workdir: audio and text towers and a caption decoder; windows of 2 s."""
    return _save("clap", load_config("quickstart", _SMALLER + _SMALLER_TEXT))


@functools.cache
def mae_workdir() -> Path:
    """A stage-1 workdir: audio tower and decoder, no text side."""
    return _save("mae", load_config("quickstart:mae", _SMALLER + _SMALLER_MAE))


@functools.cache
def clap_model() -> Model:
    """`clap_workdir()`, loaded."""
    return alm_jax.load(clap_workdir())


@functools.cache
def tiny_tokenizer() -> Tokenizer:
    """A tokenizer of `CAPTIONS`: little more than bytes."""
    return Tokenizer.train(CAPTIONS, 340, character_coverage=1.0)


@functools.cache
def _root() -> Path:
    folder = tempfile.mkdtemp(prefix="alm_jax_test_models_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _save(name: str, config: ConfigDict) -> Path:
    """Saves freshly drawn parameters as `alm train` would."""
    workdir = _root() / name
    workdir.mkdir()
    save_config(config, workdir / "config.json")
    tiny_tokenizer().save(workdir / FILE_NAME)
    _, abstract = model_graph(config, tiny_tokenizer().vocab_size)
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(abstract))
    rng = np.random.default_rng(0)
    # Drawn by NumPy: compiling the model's own initialisation would take longer than the tests.
    params = {
        path: np.asarray(("scale" in path[-1]) + 0.1 * rng.standard_normal(leaf.shape), leaf.dtype)
        for path, leaf in flat.items()
    }
    step = np.ones((), np.int32)
    state = TrainState(
        step=step,
        params=nnx.traversals.unflatten_mapping(params),
        opt_state={"count": step},
        ema=None,
    )
    saves = Checkpoints(workdir)
    metadata = {"config_name": config.name}
    saves.save(1, state, {"next_step": 1}, metadata, force=True)
    saves.close()
    return workdir
