"""Greedy, sampling and beam search against enumeration, on a model of a few tokens."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.inference.decoding import Decoding, beam_search, clip_keys, generate, nucleus

V, WIDTH, BOS, EOS, LENGTH, B = 4, 5, 1, 2, 4, 3
RNG = np.random.default_rng(0)
TABLE, MIX, OUT = (RNG.standard_normal(s) for s in ((V, WIDTH), (WIDTH, WIDTH), (WIDTH, V)))
START = RNG.standard_normal((B, WIDTH))


def step(token, state, position):
    """A recurrent model: what it says depends on all tokens before."""
    state = jnp.tanh(state @ MIX + jnp.asarray(TABLE)[token[:, 0]])
    return 2.0 * state @ OUT, state


def log_probability(clip, tokens):
    """Of a sequence, in float64, the independent way."""
    state, previous, total = START[clip], BOS, 0.0
    for token in tokens:
        state = np.tanh(state @ MIX + TABLE[previous])
        logits = 2.0 * state @ OUT
        total += logits[token] - np.log(np.exp(logits).sum())
        previous = token
    return total


def all_captions():
    """Every sequence that ends with eos, or is cut at the limit."""
    for length in range(1, LENGTH + 1):
        for tokens in itertools.product(range(V), repeat=length):
            ends = tokens[-1] == EOS
            if EOS not in tokens[:-1] and (ends or length == LENGTH):
                yield tokens


def padded(tokens):
    return [*tokens, *[0] * (LENGTH - len(tokens))]


def run(how, keys=None, start=START):
    keys = jax.random.split(jax.random.key(how.seed), len(start)) if keys is None else keys
    limits = dict(bos=BOS, eos=EOS, max_length=LENGTH, how=how)
    return np.asarray(jax.jit(lambda s, k: generate(step, s, k, **limits))(start, keys))


def beams(how):
    state = np.repeat(START, how.beams, axis=0)
    limits = dict(bos=BOS, eos=EOS, max_length=LENGTH, how=how)
    found = jax.jit(lambda s: beam_search(step, s, lambda c, i: c[i], B, **limits))(state)
    return tuple(map(np.asarray, found))


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_wide_beam_is_exhaustive_search(penalty):
    """Beam search would return another caption than the likeliest, and nobody could tell."""
    tokens, scores = beams(Decoding("beam", beams=4**LENGTH, length_penalty=penalty))
    for clip in range(B):
        every = {t: log_probability(clip, t) / len(t) ** penalty for t in all_captions()}
        best = max(every, key=every.get)
        assert tokens[clip].tolist() == padded(best)
        np.testing.assert_allclose(scores[clip], every[best], rtol=1e-5)


def test_one_beam_is_greedy():
    """A beam of one would not be what greedy decoding gives."""
    tokens, _ = beams(Decoding("beam", beams=1))
    np.testing.assert_array_equal(tokens, run(Decoding()))


def test_more_beams_are_not_worse():
    """The reordering of the caches would mix up the beginnings of captions."""
    for beams_ in (2, 3, 5):
        tokens, scores = beams(Decoding("beam", beams=beams_))
        for clip in range(B):
            cut = tokens[clip].tolist()
            cut = cut[: cut.index(EOS) + 1] if EOS in cut else cut
            # The score is that of the very tokens that are returned.
            np.testing.assert_allclose(scores[clip], log_probability(clip, cut), rtol=1e-5)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.5, 0.8)])
def test_samples_are_distributed_as_the_softmax_says(temperature, top_p):
    """Temperature or nucleus would favour other words than the user asked for."""
    how = Decoding("sample", temperature=temperature, top_p=top_p)
    count = 4000
    keys = jax.random.split(jax.random.key(7), count)
    tokens = run(how, keys, np.repeat(START[:1], count, axis=0))
    state = np.tanh(START[0] @ MIX + TABLE[BOS])
    assert_drawn(tokens[:, 0], 2.0 * state @ OUT / temperature, top_p)
    # Second tokens follow the state that the first one led to.
    first = np.bincount(tokens[tokens[:, 0] != EOS, 0]).argmax()
    logits = 2.0 * np.tanh(state @ MIX + TABLE[first]) @ OUT / temperature
    assert_drawn(tokens[tokens[:, 0] == first, 1], logits, top_p)


def assert_drawn(tokens, logits, top_p):
    probability = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probability)
    kept = order[: 1 + np.searchsorted(np.cumsum(probability[order]), top_p)]
    expected = np.zeros(V)
    expected[kept] = probability[kept] / probability[kept].sum()
    found = np.bincount(tokens, minlength=V) / len(tokens)
    assert (found[expected == 0] == 0).all()
    # Four standard deviations of a binomial share.
    limit = 4 * np.sqrt(expected * (1 - expected) / len(tokens))
    assert (np.abs(found - expected) <= limit).all()


def test_nucleus_keeps_the_smallest_set():
    """`top_p` would keep a word too many or, at a small value, none at all."""
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25]]))
    kept = np.isfinite(np.asarray(nucleus(logits, 0.7)))
    assert kept[0].tolist() == [False, True, False, True]
    assert kept[1].sum() == 3
    assert np.isfinite(np.asarray(nucleus(logits, 1e-6))).sum(axis=1).tolist() == [1, 1]


def test_seed_and_clip_decide():
    """The same file and seed would give another caption in another batch, or padded longer."""
    rng = np.random.default_rng(0)
    clips = (rng.standard_normal((3, 500)) * 3000).astype(np.int16)
    length = np.array([500, 400, 300])
    data = lambda keys: np.asarray(jax.random.key_data(keys))  # noqa: E731
    keys = data(clip_keys(1, clips, length))
    noise = np.concatenate([clips, np.full((3, 70), 9, np.int16)], axis=1)
    np.testing.assert_array_equal(data(clip_keys(1, noise[::-1], length[::-1]))[::-1], keys)
    wide = (clips / 32767).astype(np.float32)
    np.testing.assert_array_equal(data(clip_keys(1, wide, length)), keys)
    assert len({tuple(key) for key in [*keys, *data(clip_keys(2, clips, length))]}) == 6
    many = np.repeat(START, 10, axis=0)
    first, again, other = (run(Decoding("sample", seed=s), start=many) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampel", "did you mean 'sample'"),
        ("sample:temperature=0", "temperature=0.0 must be above 0"),
        ("sample:top_p=1.5", "top_p=1.5"),
        ("beam:beams=0", "beams=0"),
        ("beam:bems=3", "did you mean 'beams'"),
    ],
)
def test_bad_settings(text, message):
    """A misspelt setting would be ignored."""
    with pytest.raises(UserError, match=message):
        Decoding.parse(text)


def test_parse():
    """The settings of the command line would not be those that are used."""
    how = Decoding.parse("sample:temperature=0.5,top_p=0.9,seed=3")
    assert how == Decoding("sample", temperature=0.5, top_p=0.9, seed=3)
    assert Decoding.parse("beam") == Decoding("beam")
