"""The text tower with imported RoBERTa and BERT weights against transformers (goldens of 5.23).

Tolerance 2e-5 on values of order 1: the official float32 run is 1.2e-6 away from float64, and sums
here are taken in another order.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.errors import UserError
from alm_jax.interop.huggingface_text import BERT, ROBERTA
from alm_jax.interop.importing import from_alm, in_memory, to_alm
from alm_jax.models.poolers import Pooler
from alm_jax.models.text_roberta import TextConfig, TextRoberta
from tests.interop.official_trees import text_tower

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "text_towers.npz")
ATOL = 2e-5


def imported(format, name, *overrides, wrapper="", extra=None):
    state, config = text_tower(name)
    state = {f"{wrapper}{key}": array for key, array in state.items()} | (extra or {})
    return to_alm(format, in_memory(state, config), overrides)


class Tower(nnx.Module):
    """The imported parts of a model, without the audio side that the config describes too."""

    def __init__(self, config):
        made = dict(dtype=jnp.float32, rngs=nnx.Rngs(0))
        text = TextConfig(**config.model.text)
        self.text = TextRoberta(text, 200, config.model.max_positions, **made)
        self.text_pool = Pooler(width=text.width, **config.model.text_pool, **made)

    def __call__(self, ids, mask):
        hidden = self.text(ids, mask)
        return self.text.embed(ids, mask=mask), hidden, self.text_pool(hidden, mask)


def outputs(found, name):
    """Embeddings, last states and pooled states of the golden's tokens, and their mask."""
    graph, _ = nnx.split(nnx.eval_shape(lambda: Tower(found.config)))
    ids, mask = GOLDEN[f"{name}/input_ids"], GOLDEN[f"{name}/attention_mask"] > 0
    return jax.jit(lambda params: nnx.merge(graph, params)(ids, mask))(found.params), mask


def test_roberta():
    """A model that starts from RoBERTa would start from something else: positions begin at 2."""
    found = imported(ROBERTA, "text_roberta_tiny")
    assert found.config.model.text.position_offset == 2
    (embedded, hidden, pooled), mask = outputs(found, "text_roberta_tiny")
    golden = {key: GOLDEN[f"text_roberta_tiny/{key}"] for key in ("hidden0", "last_hidden")}
    np.testing.assert_allclose(embedded[mask], golden["hidden0"][mask], atol=ATOL)
    np.testing.assert_allclose(hidden[mask], golden["last_hidden"][mask], atol=ATOL)
    np.testing.assert_allclose(pooled, GOLDEN["text_roberta_tiny/pooler"], atol=ATOL)


def test_bert():
    """The same for BERT: epsilon 1e-12, positions from 0. Row 2 is a sentence of type 0 alone."""
    found = imported(BERT, "text_bert_tiny")
    assert found.config.model.text.eps == 1e-12
    (embedded, hidden, pooled), mask = outputs(found, "text_bert_tiny")
    first = mask & (GOLDEN["text_bert_tiny/token_type_ids"] == 0)
    np.testing.assert_allclose(embedded[first], GOLDEN["text_bert_tiny/hidden0"][first], atol=ATOL)
    last = GOLDEN["text_bert_tiny/last_hidden"]
    np.testing.assert_allclose(hidden[2][mask[2]], last[2][mask[2]], atol=ATOL)
    np.testing.assert_allclose(pooled[2], GOLDEN["text_bert_tiny/pooler"][2], atol=ATOL)


def test_other_heads_are_left_out_by_name():
    """roberta-base as published, with its language-model head, would have to be cut by hand."""
    head = {"lm_head.bias": np.zeros(200), "roberta.embeddings.position_ids": np.zeros((1, 40))}
    found = imported(ROBERTA, "text_roberta_tiny", wrapper="roberta.", extra=head)
    assert found.ignored == ["embeddings.position_ids", "lm_head.bias"]
    plain = imported(ROBERTA, "text_roberta_tiny")
    jax.tree.map(np.testing.assert_array_equal, found.params, plain.params)


def test_causal_use():
    """Cacophony reads RoBERTa causally; the same weights must serve both."""
    found = imported(ROBERTA, "text_roberta_tiny", "model.text.causal=true")
    assert found.config.model.text.causal


def test_what_would_load_silently_is_refused():
    """Heads, activation and positions are told by config.json alone, and change every output."""
    state, config = text_tower("text_roberta_tiny")
    with pytest.raises(UserError, match=r"model\.text\.heads=2 contradicts"):
        to_alm(ROBERTA, in_memory(state, config), ["model.text.heads=2"])
    without = {key: value for key, value in config.items() if key != "num_attention_heads"}
    with pytest.raises(UserError, match=r"model\.text\.heads has no default"):
        to_alm(ROBERTA, in_memory(state, without))
    with pytest.raises(UserError, match="hidden_act='quick_gelu'"):
        to_alm(ROBERTA, in_memory(state, config | {"hidden_act": "quick_gelu"}))
    with pytest.raises(UserError, match="position_embedding_type='relative_key'"):
        to_alm(ROBERTA, in_memory(state, config | {"position_embedding_type": "relative_key"}))
    found = to_alm(ROBERTA, in_memory(state, config))
    with pytest.raises(UserError, match="cannot be written"):
        next(from_alm(ROBERTA, found.config, found.params))
