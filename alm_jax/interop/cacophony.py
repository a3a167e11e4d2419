"""Cacophony's official parameter tree -> the parameters of `AudioTextModel`.

Source: gzhu06/Cacophony, the trees of `AudioMAE.ckpt` and `Cacophony.ckpt` (['0']['params']).
A name on either side that the map does not cover is an error, so nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from alm_jax.errors import UserError

_ROBERTA = {
    "attention.query": "attention/self/query",
    "attention.key": "attention/self/key",
    "attention.value": "attention/self/value",
    "attention.out": "attention/output/dense",
    "attention_norm": "attention/output/LayerNorm",
    "mlp.up": "intermediate/dense",
    "mlp.down": "output/dense",
    "mlp_norm": "output/LayerNorm",
}
_ROBERTA_CROSS = {
    "cross.query": "crossattention/self/query",
    "cross.key": "crossattention/self/key",
    "cross.value": "crossattention/self/value",
    "cross.out": "crossattention/output/dense",
    "cross_norm": "crossattention/output/LayerNorm",
}
_AUDIO = {
    "attention.query": "MultiHeadDotProductAttention_0/query",
    "attention.key": "MultiHeadDotProductAttention_0/key",
    "attention.value": "MultiHeadDotProductAttention_0/value",
    "attention.out": "MultiHeadDotProductAttention_0/out",
    "attention_norm": "LayerNorm_0",
    "mlp.up": "MLP_0/Dense_0",
    "mlp.down": "MLP_0/Dense_1",
    "mlp_norm": "LayerNorm_1",
}


class _Tree:
    """The official tree, slash-joined, with a record of what has been read."""

    def __init__(self, flat: Mapping[str, np.ndarray]):
        self.flat = flat
        self.read: set[str] = set()
        self.params: dict[str, np.ndarray] = {}

    def get(self, name: str) -> np.ndarray:
        if name not in self.flat:
            raise UserError(f"Cacophony checkpoint: {name} is missing")
        self.read.add(name)
        return np.asarray(self.flat[name], np.float32)

    def dense(self, ours: str, theirs: str) -> None:
        """Dense or LayerNorm; the audio attention's kernels lose their separate head axis."""
        has_heads = "MultiHeadDotProductAttention" in theirs
        if f"{theirs}/scale" in self.flat:
            self.params[f"{ours}.scale"] = self.get(f"{theirs}/scale")
        else:
            kernel = self.get(f"{theirs}/kernel")
            if has_heads and theirs.endswith("/out"):
                kernel = kernel.reshape(-1, kernel.shape[-1])
            elif has_heads:
                kernel = kernel.reshape(kernel.shape[0], -1)
            self.params[f"{ours}.kernel"] = kernel
        bias = self.get(f"{theirs}/bias")
        self.params[f"{ours}.bias"] = bias.reshape(-1) if has_heads else bias

    def audio_stack(self, ours: str, theirs: str) -> None:
        """Unrolled audio layers -> one stacked layer."""
        layers: list[dict[str, np.ndarray]] = []
        while f"{theirs}/AudioEncoderLayer_{len(layers)}/LayerNorm_0/scale" in self.flat:
            layer = _Tree(self.flat)
            for mine, official in _AUDIO.items():
                layer.dense(mine, f"{theirs}/AudioEncoderLayer_{len(layers)}/{official}")
            self.read |= layer.read
            layers.append(layer.params)
        for name in layers[0]:
            stacked = np.stack([layer[name] for layer in layers])
            self.params[f"{ours}.transformer.blocks.{name}"] = stacked
        self.params[f"{ours}.positions.freq"] = self.get(f"{theirs}/freq_positional_embedding")
        self.dense(f"{ours}.embed", f"{theirs}/Dense_0")
        self.dense(f"{ours}.norm", f"{theirs}/LayerNorm_0")

    def roberta_stack(self, ours: str, theirs: str, names: Mapping[str, str]) -> None:
        """Scanned RoBERTa layers, stacked on both sides."""
        for mine, official in names.items():
            self.dense(
                f"{ours}.transformer.blocks.{mine}",
                f"{theirs}/encoder/layer/ScanFlaxRobertaLayer_0/{official}",
            )

    def done(self) -> dict[str, Any]:
        left = sorted(set(self.flat) - self.read)
        if left:
            raise UserError(f"Cacophony checkpoint: unexpected parameters {left[:10]}")
        return nnx.traversals.unflatten_mapping(
            {tuple(name.split(".")): value for name, value in self.params.items()}
        )


def stage1_params(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of the masked autoencoder from `AudioMAE.ckpt`'s leaves, slash-joined names.

    Raises:
      UserError: names a parameter that is missing or has no place.
    """
    tree = _Tree(flat)
    tree.audio_stack("audio", "AudioEncoder_0")
    tree.audio_stack("mae_decoder", "AudioDecoder_0")
    tree.params["mae_decoder.restore"] = tree.get("AudioDecoder_0/restore_patch")
    tree.dense("mae_decoder.predict", "AudioDecoder_0/Dense_1")
    return tree.done()


def stage2_params(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Parameters of the contrastive-captioning model from `Cacophony.ckpt`'s leaves.

    Raises:
      UserError: names a parameter that is missing or has no place.
    """
    tree = _Tree(flat)
    tree.audio_stack("audio", "audio_module")
    tree.params["audio_pool.query"] = tree.get("audio_attention_pool/query")[None]
    for leaf in ("kernel", "bias"):  # one official Dense makes keys and values
        both = tree.get(f"audio_attention_pool/Dense_0/{leaf}")
        halves = np.split(both, 2, axis=-1)
        tree.params[f"audio_pool.key.{leaf}"], tree.params[f"audio_pool.value.{leaf}"] = halves
    tree.dense("audio_pool.out", "audio_attention_pool/Dense_1")
    for mine, official in (
        ("words", "word_embeddings"),
        ("positions", "position_embeddings"),
        ("token_type", "token_type_embeddings"),
    ):
        tree.params[f"text.{mine}"] = tree.get(f"text_module/embeddings/{official}/embedding")
    tree.dense("text.embed_norm", "text_module/embeddings/LayerNorm")
    tree.roberta_stack("text", "text_module", _ROBERTA)
    tree.params["text_pool.query"] = tree.get("text_module/pooler/attention_pool_query")
    tree.dense("text_pool.key", "text_module/pooler/key_proj")
    tree.dense("text_pool.value", "text_module/pooler/value_proj")
    tree.dense("text_proj", "text_proj")
    tree.roberta_stack("caption_decoder", "decoder_module", _ROBERTA | _ROBERTA_CROSS)
    tree.dense("caption_decoder.predict", "decoder_module/decoder_proj")
    tree.params["logit_scale"] = tree.get("logit_scale")
    return tree.done()
