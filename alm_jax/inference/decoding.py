"""Captions token by token: greedy, sampling (temperature, nucleus), beam search.

The model is a function that takes one token a row and the key-value caches and returns the logits
of the next. Everything runs inside one jitted loop.
Shapes: B batch, K beams, L tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from alm_jax.config_values import parse_arg
from alm_jax.errors import ConfigError, UserError, did_you_mean

METHODS = ("greedy", "sample", "beam")
# (token [R, 1], caches, position) -> (logits [R, V], caches), R rows.
StepFunction = Callable[[jax.Array, Any, jax.Array], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a caption is chosen.

    Attributes:
      method: "greedy" takes the likeliest token each time; "sample" draws; "beam" keeps the `beams`
        likeliest beginnings.
      temperature: of "sample"; logits are divided by it. Below 1 it favours the likely.
      top_p: of "sample"; draws among the likeliest tokens that together have this probability
        (nucleus sampling, Holtzman et al. 2020, arXiv 1904.09751). 1: among all.
      beams: K of "beam".
      length_penalty: of "beam"; a caption's log-probability is divided by its length, eos included,
        to this power. 0 favours short captions, 1 compares means a token.
      seed: of "sample"; the same clip and seed give the same caption, whatever the batch.
    """

    method: str = "greedy"
    temperature: float = 1.0
    top_p: float = 1.0
    beams: int = 4
    length_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            hint = did_you_mean(self.method, METHODS)
            raise UserError(f"decode={self.method!r}: must be one of {', '.join(METHODS)}{hint}")
        for name, good, wanted in (
            ("temperature", self.temperature > 0, "above 0 (greedy is --decode=greedy)"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("beams", self.beams >= 1, "at least 1"),
        ):
            if not good:
                raise UserError(f"decode: {name}={getattr(self, name)} must be {wanted}")

    @classmethod
    def parse(cls, text: str) -> Decoding:
        """Reads `METHOD[:FIELD=VALUE,...]`, such as `sample:temperature=0.5,seed=1`.

        Raises:
          UserError: an unknown method or field, or a value that makes no sense.
        """
        method, _, arguments = text.partition(":")
        fields = dataclasses.asdict(cls())
        del fields["method"]
        try:
            given = parse_arg(arguments, **fields)
        except ConfigError as error:
            raise UserError(f"decode={text}: {error}") from error
        return cls(method=method, **vars(given))


def nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    """Logits [..., V] with -inf outside the smallest set that has the probability `top_p`."""
    order = jnp.argsort(-logits, axis=-1)
    probability = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    rank = jnp.argsort(order, axis=-1)
    kept = jnp.take_along_axis(before < top_p, rank, axis=-1)
    return jnp.where(kept, logits, -jnp.inf)


def pick(logits: jax.Array, keys: jax.Array, position: jax.Array, how: Decoding) -> jax.Array:
    """The next token [B] int32 of logits [B, V]; keys [B] are the rows' own."""
    if how.method == "greedy":
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled = logits.astype(jnp.float32) / how.temperature
    if how.top_p < 1.0:
        scaled = nucleus(scaled, how.top_p)
    draw = jax.vmap(lambda key, row: jax.random.categorical(jax.random.fold_in(key, position), row))
    return draw(keys, scaled).astype(jnp.int32)


def generate(
    step: StepFunction,
    caches: Any,
    keys: jax.Array,
    *,
    bos: int | jax.Array,
    eos: int | jax.Array,
    max_length: int,
    how: Decoding,
) -> jax.Array:
    """Greedy or sampled tokens.

    Args:
      step: the model.
      caches: its empty caches for B rows and `max_length` tokens.
      keys: [B] PRNG keys, one a row; only "sample" draws.
      bos: id before the first token.
      eos: id that ends a caption.
      max_length: L.
      how: greedy or sample.

    Returns:
      [B, L] int32 after bos; eos, then zeros at the end. The loop stops when all rows have ended.
    """
    batch = keys.shape[0]

    def unfinished(carry: tuple) -> jax.Array:
        position, _, ended, _, _ = carry
        return (position < max_length) & ~ended.all()

    def one(carry: tuple) -> tuple:
        position, token, ended, caches, out = carry
        logits, caches = step(token[:, None], caches, position)
        token = jnp.where(ended, 0, pick(logits, keys, position, how)).astype(jnp.int32)
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], position, axis=1)
        return position + 1, token, ended | (token == eos), caches, out

    start = (
        jnp.zeros((), jnp.int32),
        jnp.full((batch,), bos, jnp.int32),
        jnp.zeros((batch,), bool),
        caches,
        jnp.zeros((batch, max_length), jnp.int32),
    )
    return jax.lax.while_loop(unfinished, one, start)[-1]


class _Beams(NamedTuple):
    """What beam search carries; the beams of a row are in descending order of score."""

    position: jax.Array
    tokens: jax.Array  # [B, K, L]
    last: jax.Array  # [B, K]
    ended: jax.Array  # [B, K]
    log_probability: jax.Array  # [B, K]
    length: jax.Array  # [B, K], eos included
    caches: Any


def beam_search(
    step: StepFunction,
    caches: Any,
    select: Callable[[Any, jax.Array], Any],
    batch: int,
    *,
    bos: int | jax.Array,
    eos: int | jax.Array,
    max_length: int,
    how: Decoding,
) -> tuple[jax.Array, jax.Array]:
    """The likeliest caption among those that `how.beams` beams visit.

    An ended caption keeps its place among the beams until likelier ones push it out, so with at
    least as many beams as there are beginnings the search is exhaustive.

    Args:
      step: the model, for B * K rows, row-major.
      caches: its empty caches for B * K rows and `max_length` tokens.
      select: (caches, index [B * K]) -> caches of these rows, which are of the same clip each.
      batch: B.
      bos: id before the first token.
      eos: id that ends a caption.
      max_length: L.
      how: `beams` and `length_penalty`.

    Returns:
      The best tokens [B, L] int32 after bos (eos, then zeros at the end), and their scores [B].
    """
    beams = how.beams
    rows = jnp.arange(batch)[:, None]

    def score(log_probability: jax.Array, length: jax.Array) -> jax.Array:
        return log_probability / jnp.maximum(length, 1).astype(jnp.float32) ** how.length_penalty

    def unfinished(state: _Beams) -> jax.Array:
        # Without a reward for length, what is still open can only fall behind an ended leader.
        ended = state.ended[:, 0] if how.length_penalty <= 0 else state.ended.all(axis=1)
        return (state.position < max_length) & ~ended.all()

    def one(state: _Beams) -> _Beams:
        token = state.last.reshape(batch * beams, 1)
        logits, caches = step(token, state.caches, state.position)
        vocabulary = logits.shape[-1]
        each = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, vocabulary)
        # An ended beam has one continuation, which changes nothing.
        stay = jnp.where(jnp.arange(vocabulary) == 0, 0.0, -jnp.inf)
        each = jnp.where(state.ended[..., None], stay, each)
        total = state.log_probability[..., None] + each
        length = state.length + ~state.ended
        ranked = score(total, length[..., None]).reshape(batch, beams * vocabulary)
        _, chosen = jax.lax.top_k(ranked, beams)
        parent, token = chosen // vocabulary, (chosen % vocabulary).astype(jnp.int32)
        flat_parent = (rows * beams + parent).reshape(-1)
        was_ended = jnp.take_along_axis(state.ended, parent, axis=1)
        tokens = jnp.take_along_axis(state.tokens, parent[..., None], axis=1)
        tokens = jax.lax.dynamic_update_slice_in_dim(
            tokens, token[..., None], state.position, axis=2
        )
        return _Beams(
            state.position + 1,
            tokens,
            token,
            was_ended | (token == eos),
            jnp.take_along_axis(total.reshape(batch, -1), chosen, axis=1),
            jnp.take_along_axis(length, parent, axis=1),
            select(caches, flat_parent),
        )

    # All beams begin alike: only the first may be continued.
    first = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
    start = _Beams(
        jnp.zeros((), jnp.int32),
        jnp.zeros((batch, beams, max_length), jnp.int32),
        jnp.full((batch, beams), bos, jnp.int32),
        jnp.zeros((batch, beams), bool),
        jnp.broadcast_to(first, (batch, beams)),
        jnp.zeros((batch, beams), jnp.int32),
        caches,
    )
    last = jax.lax.while_loop(unfinished, one, start)
    return last.tokens[:, 0], score(last.log_probability, last.length)[:, 0]


def clip_keys(seed: int | jax.Array, audio: jax.Array, audio_length: jax.Array) -> jax.Array:
    """[B] keys that follow from the seed and each clip's samples, not from batch or padding.

    Args:
      seed: an integer.
      audio: [B, S] int16, or float in [-1, 1].
      audio_length: [B] samples of each clip.
    """
    if jnp.issubdtype(audio.dtype, jnp.floating):
        audio = jnp.round(audio * 32767.0)
    place = jnp.arange(audio.shape[1], dtype=jnp.uint32)
    inside = place[None, :] < audio_length[:, None].astype(jnp.uint32)
    samples = jnp.where(inside, audio, 0).astype(jnp.int32).astype(jnp.uint32)
    # A multiplicative hash modulo 2^32; odd factors lose no bit of a sample.
    digest = jnp.sum(samples * ((2 * place + 1) * jnp.uint32(0x9E3779B1)), axis=1)
    key = jax.random.key(seed)
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(digest)
