"""The text side that LAION-CLAP's and Hugging Face's checkpoints share: RoBERTa with its pooler."""

from __future__ import annotations

from ml_collections import ConfigDict, config_dict

from alm_jax.interop.huggingface_text import huggingface_layer
from alm_jax.interop.importing import Checkpoint
from alm_jax.interop.links import Links, table, torch_linear, torch_norm

# Width of the published towers -> heads, which no tensor's shape tells.
HEADS = {768: 12, 1024: 16}


def text_sizes(config: ConfigDict, checkpoint: Checkpoint, prefix: str) -> None:
    """Sets what the tensors under `prefix` (with its dot) tell of the text tower."""
    text, model = config.model.text, config.model
    words = checkpoint.shape(f"{prefix}embeddings.word_embeddings.weight")
    config.tokenizer.vocab_size, width = words
    start = prefix.replace(".", r"\.")
    text.update(width=width, depth=checkpoint.count(rf"{start}encoder\.layer\.(\d+)\."))
    text.heads = HEADS.get(width, config_dict.placeholder(int, required=True))
    text.mlp_dim = checkpoint.shape(f"{prefix}encoder.layer.0.intermediate.dense.weight")[0]
    model.max_positions = checkpoint.shape(f"{prefix}embeddings.position_embeddings.weight")[0]
    most = model.max_positions - text.position_offset
    config.data.max_text_length = min(config.data.max_text_length, most)


def text_links(prefix: str, config: ConfigDict) -> Links:
    """The table of tower and pooler; `prefix` has its dot."""
    links: Links = []
    links += table(f"{prefix}embeddings.word_embeddings.weight", "text.words")
    links += table(f"{prefix}embeddings.position_embeddings.weight", "text.positions")
    links += table(f"{prefix}embeddings.token_type_embeddings.weight", "text.token_type")
    links += torch_norm(f"{prefix}embeddings.LayerNorm", "text.embed_norm")
    for layer in range(config.model.text.depth):
        links += huggingface_layer(
            f"{prefix}encoder.layer.{layer}", "text.transformer.blocks", layer
        )
    links += torch_linear(f"{prefix}pooler.dense", "text_pool.out")
    return links
