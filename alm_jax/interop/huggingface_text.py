"""RoBERTa and BERT from Hugging Face as the text tower of a model that is yet to be trained.

    alm import --format=roberta --checkpoint=roberta-base --output=runs/roberta-base
    alm train --config=... --config.init_from.workdir=runs/roberta-base \
        --config.init_from.parts=text

The tower is bidirectional as it was trained; `--config.model.text.causal=true` describes it as
Cacophony uses it. A training config decides anew, so one import serves both.
Source: transformers `modeling_roberta.py`, `modeling_bert.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict, config_dict

from alm_jax.errors import UserError
from alm_jax.interop.importing import Checkpoint, Format, shipped_config
from alm_jax.interop.links import Change, Link, Links, slots, table, torch_linear, torch_norm

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_HEADS = r"(lm_head|cls|classifier|qa_outputs)\..*|(.*\.)?(position_ids|token_type_ids)"


def hf_activation(checkpoint: Checkpoint, key: str = "hidden_act") -> str:
    """Our name of the activation that config.json names.

    Raises:
      UserError: one that we do not have.
    """
    name = checkpoint.config.get(key, "gelu")
    if name not in _ACTIVATIONS:
        raise UserError(
            f"{checkpoint.path}: config.json has {key}={name!r}; known are {sorted(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def hf_number(checkpoint: Checkpoint, key: str, width: int, base: int | None = None) -> Any:
    """An integer of config.json that no shape tells; at the base size the published one.

    Returns:
      The number, or a placeholder that asks the user for it.
    """
    if key in checkpoint.config:
        return int(checkpoint.config[key])
    if base is not None and width == 768:
        return base
    return config_dict.placeholder(int, required=True)


def _configure(eps: float, offset: int) -> Callable[[Checkpoint], ConfigDict]:
    """Config of a tower; `eps` and `offset` are what the family has where config.json is silent."""

    def configure(checkpoint: Checkpoint) -> ConfigDict:
        kind = checkpoint.config.get("position_embedding_type") or "absolute"
        if kind != "absolute":
            raise UserError(
                f"{checkpoint.path}: config.json has position_embedding_type={kind!r}; only "
                "'absolute' positions can be imported"
            )
        rows, width = checkpoint.shape("embeddings.word_embeddings.weight")
        config = shipped_config("cacophony")
        text, model = config.model.text, config.model
        text.update(width=width, causal=False)
        text.depth = checkpoint.count(r"encoder\.layer\.(\d+)\.")
        text.heads = hf_number(checkpoint, "num_attention_heads", width, base=12)
        text.mlp_dim = checkpoint.shape("encoder.layer.0.intermediate.dense.weight")[0]
        text.activation = hf_activation(checkpoint)
        text.eps = float(checkpoint.config.get("layer_norm_eps", eps))
        # RoBERTa counts positions from one past its padding id, whose row padding takes.
        if offset:
            text.position_offset = int(checkpoint.config.get("pad_token_id", offset - 1)) + 1
        model.caption_decoder = None
        del config.objectives.captioning
        model.max_positions = checkpoint.shape("embeddings.position_embeddings.weight")[0]
        most = model.max_positions - text.get("position_offset", 0)
        config.data.max_text_length = min(config.data.max_text_length, most)
        pooled = "pooler.dense.weight" in checkpoint.tensors
        model.text_pool = ConfigDict(dict(kind="first_tanh" if pooled else "mean"))
        model.dtype = "float32"
        config.tokenizer.vocab_size = rows
        return config

    return configure


def _links(token_types: int) -> Callable[[ConfigDict], Links]:
    def links(config: ConfigDict) -> Links:
        found: Links = []
        found += table("embeddings.word_embeddings.weight", "text.words")
        found += table("embeddings.position_embeddings.weight", "text.positions")
        # A single sentence is of type 0; the row of type 1 has no use here.
        first = Change(lambda x: x[:1], lambda x: np.repeat(x, token_types, axis=0))
        types = "embeddings.token_type_embeddings.weight"
        found += [Link(types, slots("text.token_type"), first)]
        found += torch_norm("embeddings.LayerNorm", "text.embed_norm")
        for layer in range(config.model.text.depth):
            found += huggingface_layer(f"encoder.layer.{layer}", "text.transformer.blocks", layer)
        if config.model.text_pool.kind == "first_tanh":
            found += torch_linear("pooler.dense", "text_pool.out")
        return found

    return links


def huggingface_layer(there: str, here: str, layer: int) -> Links:
    """One layer of a BERT or RoBERTa encoder as transformers names it."""
    found: Links = []
    for name in ("query", "key", "value"):
        source = f"{there}.attention.self.{name}"
        found += torch_linear(source, f"{here}.attention.{name}", layer=layer)
    found += torch_linear(f"{there}.attention.output.dense", f"{here}.attention.out", layer=layer)
    found += torch_norm(f"{there}.attention.output.LayerNorm", f"{here}.attention_norm", layer)
    found += torch_linear(f"{there}.intermediate.dense", f"{here}.mlp.up", layer=layer)
    found += torch_linear(f"{there}.output.dense", f"{here}.mlp.down", layer=layer)
    found += torch_norm(f"{there}.output.LayerNorm", f"{here}.mlp_norm", layer)
    return found


ROBERTA = Format(
    "roberta",
    "text tower from a Hugging Face RoBERTa folder, for init_from",
    _configure(eps=1e-5, offset=2),
    _links(token_types=1),
    parts=("text", "text_pool"),
    writable=False,
    wrapper=r"roberta\.",
    ignored=_HEADS,
)
BERT = Format(
    "bert",
    "text tower from a Hugging Face BERT folder, for init_from",
    _configure(eps=1e-12, offset=0),
    _links(token_types=2),
    parts=("text", "text_pool"),
    writable=False,
    wrapper=r"bert\.",
    ignored=_HEADS,
)
