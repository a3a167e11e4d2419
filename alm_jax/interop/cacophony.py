"""Cacophony's official checkpoints: `AudioMAE.ckpt` (stage 1) and `Cacophony.ckpt` (stage 2).

Source: gzhu06/Cacophony, the parameter trees of the two files (['0']['params']).
"""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict, config_dict

from alm_jax.interop.importing import Checkpoint, Format, shipped_config
from alm_jax.interop.links import Link, Links, flax_dense, flax_norm, reshape, slots, table

# Width of the published audio tower -> heads of its pooler, which no tensor's shape tells.
_POOL_HEADS = {768: 8}
_SCAN = "encoder/layer/ScanFlaxRobertaLayer_0"


def _configure(checkpoint: Checkpoint) -> ConfigDict:
    if "AudioEncoder_0/Dense_0/kernel" in checkpoint.tensors:
        config = shipped_config("cacophony_mae")
        _audio_sizes(config.model.audio, checkpoint, "AudioEncoder_0")
        _audio_sizes(config.model.mae_decoder, checkpoint, "AudioDecoder_0")
        config.model.dtype = "float32"  # as the official code runs
        return config
    config = shipped_config("cacophony")
    model = config.model
    model.dtype = "float32"
    _audio_sizes(model.audio, checkpoint, "audio_module")
    width = model.audio.width
    model.audio_pool.heads = _POOL_HEADS.get(width, config_dict.placeholder(int, required=True))
    words, _ = checkpoint.shape("text_module/embeddings/word_embeddings/embedding")
    config.tokenizer.vocab_size = words
    positions = checkpoint.shape("text_module/embeddings/position_embeddings/embedding")
    model.max_positions = positions[0]
    config.data.max_text_length = min(config.data.max_text_length, positions[0])
    model.embed_dim = checkpoint.shape("text_proj/kernel")[1]
    for part, name in ((model.text, "text_module"), (model.caption_decoder, "decoder_module")):
        depth, part_width, mlp = checkpoint.shape(f"{name}/{_SCAN}/intermediate/dense/kernel")
        part.update(width=part_width, depth=depth, mlp_dim=mlp)
        if part_width != 768:
            part.heads = config_dict.placeholder(int, required=True)
    return config


def _audio_sizes(part: ConfigDict, checkpoint: Checkpoint, name: str) -> None:
    attention = "AudioEncoderLayer_0/MultiHeadDotProductAttention_0/query/kernel"
    width, heads, _ = checkpoint.shape(f"{name}/{attention}")
    part.update(width=width, heads=heads)
    part.depth = checkpoint.count(rf"{name}/AudioEncoderLayer_(\d+)/")
    part.mlp_dim = checkpoint.shape(f"{name}/AudioEncoderLayer_0/MLP_0/Dense_0/kernel")[1]


def _links(config: ConfigDict) -> Links:
    model = config.model
    links: Links = []
    if model.mae_decoder is not None:
        links += _audio("AudioEncoder_0", "audio", model.audio)
        links += _audio("AudioDecoder_0", "mae_decoder", model.mae_decoder)
        links += table("AudioDecoder_0/restore_patch", "mae_decoder.restore")
        links += flax_dense("AudioDecoder_0/Dense_1", "mae_decoder.predict")
        return links
    links += _audio("audio_module", "audio", model.audio)
    width = model.audio.width
    query = reshape((width,), (1, width))
    links += [Link("audio_attention_pool/query", slots("audio_pool.query"), query)]
    links += flax_dense("audio_attention_pool/Dense_0", "audio_pool.key", "audio_pool.value")
    links += flax_dense("audio_attention_pool/Dense_1", "audio_pool.out")
    text = "text_module/embeddings"
    links += table(f"{text}/word_embeddings/embedding", "text.words")
    links += table(f"{text}/position_embeddings/embedding", "text.positions")
    links += table(f"{text}/token_type_embeddings/embedding", "text.token_type")
    links += flax_norm(f"{text}/LayerNorm", "text.embed_norm")
    links += _roberta("text_module", "text", cross=False)
    links += table("text_module/pooler/attention_pool_query", "text_pool.query")
    links += flax_dense("text_module/pooler/key_proj", "text_pool.key")
    links += flax_dense("text_module/pooler/value_proj", "text_pool.value")
    links += flax_dense("text_proj", "text_proj")
    links += _roberta("decoder_module", "caption_decoder", cross=True)
    links += flax_dense("decoder_module/decoder_proj", "caption_decoder.predict")
    links += table("logit_scale", "logit_scale")
    return links


def _audio(official: str, ours: str, size: ConfigDict) -> Iterator[Link]:
    """An audio stack: one entry a layer there, stacked here; its kernels have a head axis there."""
    yield from table(f"{official}/freq_positional_embedding", f"{ours}.positions.freq")
    yield from flax_dense(f"{official}/Dense_0", f"{ours}.embed")
    yield from flax_norm(f"{official}/LayerNorm_0", f"{ours}.norm")
    width, heads = size.width, size.heads
    split = (heads, width // heads)
    for layer in range(size.depth):
        there, here = f"{official}/AudioEncoderLayer_{layer}", f"{ours}.transformer.blocks"
        for name in ("query", "key", "value", "out"):
            kernel = (*split, width) if name == "out" else (width, *split)
            bias = (width,) if name == "out" else split
            attention = f"{there}/MultiHeadDotProductAttention_0/{name}"
            for leaf, shape, flat in (
                ("kernel", kernel, (width, width)),
                ("bias", bias, (width,)),
            ):
                slot = slots(f"{here}.attention.{name}.{leaf}", layer=layer)
                yield Link(f"{attention}/{leaf}", slot, reshape(shape, flat))
        yield from flax_norm(f"{there}/LayerNorm_0", f"{here}.attention_norm", layer)
        yield from flax_dense(f"{there}/MLP_0/Dense_0", f"{here}.mlp.up", layer=layer)
        yield from flax_dense(f"{there}/MLP_0/Dense_1", f"{here}.mlp.down", layer=layer)
        yield from flax_norm(f"{there}/LayerNorm_1", f"{here}.mlp_norm", layer)


def _roberta(official: str, ours: str, *, cross: bool) -> Iterator[Link]:
    """A RoBERTa stack, its layers on a leading axis on both sides."""
    there, here = f"{official}/{_SCAN}", f"{ours}.transformer.blocks"
    attentions = {"attention": "attention", "cross": "crossattention"}
    for mine, theirs in attentions.items():
        if mine == "cross" and not cross:
            continue
        for name in ("query", "key", "value"):
            yield from flax_dense(f"{there}/{theirs}/self/{name}", f"{here}.{mine}.{name}")
        yield from flax_dense(f"{there}/{theirs}/output/dense", f"{here}.{mine}.out")
        yield from flax_norm(f"{there}/{theirs}/output/LayerNorm", f"{here}.{mine}_norm")
    yield from flax_dense(f"{there}/intermediate/dense", f"{here}.mlp.up")
    yield from flax_dense(f"{there}/output/dense", f"{here}.mlp.down")
    yield from flax_norm(f"{there}/output/LayerNorm", f"{here}.mlp_norm")


FORMAT = Format(
    "cacophony",
    "AudioMAE.ckpt and Cacophony.ckpt of gzhu06/Cacophony (flax msgpack)",
    _configure,
    _links,
)
