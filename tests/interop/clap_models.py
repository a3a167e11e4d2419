"""Tiny LAION-CLAPs with random parameters and a byte-level BPE tokenizer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import soxr
import tokenizers
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.config import load_config
from alm_jax.train_state import model_graph
from input_pipeline.audio_files import to_int16
from input_pipeline.json_tokenizer import JsonTokenizer

RATE = 48_000
_MARKS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_SIZES = [
    "frontend.num_mels=16", "patches.freq=16", "frontend.repeat_to_samples=48000",
    "data.max_seconds=1.0", "eval.bucket_seconds=(1.0,)", "data.max_text_length=16",
    "model.audio.dim=16", "model.audio.depths=(2,2)", "model.audio.heads=(2,4)",
    "model.audio.window=4", "model.audio.picture=64", "model.audio.chunk_frames=101",
    "model.text.width=32", "model.text.depth=2", "model.text.heads=4", "model.text.mlp_dim=64",
    "model.max_positions=20", "model.embed_dim=8",
]  # fmt: skip
_LONGER = ["data.max_seconds=3.0", "eval.bucket_seconds=(1.0,3.0)"]


def resampled(clips: list[np.ndarray]) -> list[np.ndarray]:
    """Recordings int16 [S] at 16 kHz as int16 at `RATE`."""
    made = (soxr.resample(clip.astype(np.float32) / 32767, 16_000, RATE) for clip in clips)
    return [to_int16(np.clip(clip, -1.0, 1.0)) for clip in made]


def tokenizer() -> JsonTokenizer:
    """RoBERTa's kind: ids <s> 0, <pad> 1, </s> 2, <unk> 3, <mask> 4, then bytes and merges."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(_MARKS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["a dog barks", "rain on a tin roof", "a bell rings"] * 4, trainer)
    return JsonTokenizer(json.dumps(json.loads(bpe.to_str())).encode())


def clap(fused: bool = False) -> tuple[ConfigDict, dict[str, Any], JsonTokenizer]:
    """Config, parameters and tokenizer."""
    made = tokenizer()
    spec = "laion_clap:fusion" if fused else "laion_clap"
    rows = f"tokenizer.vocab_size={made.vocab_size}"
    config = load_config(spec, [*_SIZES, *(_LONGER if fused else ()), rows])
    _, abstract = model_graph(config, made.vocab_size)
    rng = np.random.default_rng(0)
    flat = nnx.traversals.flatten_mapping(nnx.to_pure_dict(abstract))

    def draw(path: tuple, shape: tuple[int, ...]) -> np.ndarray:
        # Texts must differ by their words, which the first state only hears of by attention, and
        # clips by more than a common bias. Larger, and float32 is no longer good for 1e-5: not in
        # PyTorch either, whose own float64 tells.
        size = 0.1
        if path[-1] == "kernel":
            size = 0.2 if path[0] == "audio" else 0.3
        elif path[0] == "audio_proj":
            size = 0.01
        value = size * rng.standard_normal(shape)
        if path[-1] in ("scale", "var"):
            value = 1.0 + np.abs(value)
        elif path[:2] == ("audio", "input_norm") and path[-1] == "mean":
            value -= 30.0  # dB
        elif path == ("text", "words"):
            value *= 10.0
        return np.asarray(value, np.float32)

    params = {path: draw(path, leaf.shape) for path, leaf in flat.items()}
    params[("audio", "input_norm", "var")] *= 200.0
    return config, nnx.traversals.unflatten_mapping(params), made
