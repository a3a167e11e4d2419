"""Embeddings and captions of a clip: its own, whatever is beside it in the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alm_jax.inference.decoding import Decoding
from alm_jax.inference.jitted import Inference
from alm_jax.train_state import model_graph
from tests.quick_jit import quick_jit
from tests.random_params import draw_like
from tests.small_configs import stage2

RATE, V, BOS = 16_000, 40, 1
SECONDS = [1.0, 0.37, 0.61, 0.02]
RNG = np.random.default_rng(0)
CLIPS = [(RNG.standard_normal(round(s * RATE)) * 3000).astype(np.int16) for s in SECONDS]
# The quickstart completes its last patch with silence; the paper drops the frames of that patch; a
# centred front end has frames that reach past the end of the clip.
VARIANTS = {
    "quickstart": [],
    "paper": ["patches.time=16", "patches.freq=16", "patches.tail=drop"],
    "centred": ["frontend.framing=centre_reflect", "frontend.power=2"],
}


def padded(clips, samples, filler=0):
    """Batch of clips [B, samples] and their lengths; what lies past a clip is `filler`."""
    audio = np.full((len(clips), samples), filler, np.int16)
    for row, clip in enumerate(clips):
        audio[row, : len(clip)] = clip
    return audio, np.array([len(clip) for clip in clips], np.int32)


@functools.cache
def model(variant):
    config = stage2(*VARIANTS[variant])
    graph, abstract = model_graph(config, V)
    return Inference(config, graph), draw_like(nnx.to_pure_dict(abstract))


@functools.cache
def compiled(variant, method, **options):
    return quick_jit(getattr(model(variant)[0], method), **options)


def embed(variant, audio, length):
    return np.asarray(compiled(variant, "_embed_audio")(model(variant)[1], audio, length))


@pytest.fixture(scope="module")
def together():
    """Embeddings of all clips, padded with noise, under the quickstart's front end."""
    return embed("quickstart", *padded(CLIPS, 2 * RATE, filler=20_000))


@pytest.mark.parametrize(
    ("variant", "row"), [("quickstart", 1), ("quickstart", 3), ("paper", 1), ("centred", 1)]
)
def test_embedding_does_not_depend_on_batch_and_padding(variant, row):
    """The same file would be found or not, depending on the files it was embedded with."""
    batch = embed(variant, *padded(CLIPS, 2 * RATE, filler=20_000))
    np.testing.assert_allclose(np.linalg.norm(batch, axis=1), 1, atol=1e-6)
    alone = embed(variant, *padded(CLIPS[row : row + 1], len(CLIPS[row])))
    np.testing.assert_allclose(alone[0], batch[row], atol=1e-5)
    # A model that gives all clips one embedding would pass the above.
    difference = np.abs(batch[:, None] - batch[None]).max(-1)
    assert difference[~np.eye(len(CLIPS), dtype=bool)].min() > 1e-2


def test_order_in_the_batch_changes_nothing(together):
    """As above, for the order of the files."""
    order = np.array([2, 0, 3, 1])
    audio, length = padded(CLIPS, 2 * RATE)
    moved = embed("quickstart", audio[order], length[order])
    np.testing.assert_allclose(moved, together[order], atol=1e-5)


def test_pcm_and_float_are_the_same_sound(together):
    """Samples from librosa would get other embeddings than the same file by its path."""
    audio, length = padded(CLIPS, 2 * RATE)
    wide = (audio / 32767).astype(np.float32)
    np.testing.assert_allclose(embed("quickstart", wide, length), together, atol=1e-5)


def test_text_embedding_does_not_depend_on_padding():
    """A query would find other files when it is asked beside a longer one."""
    tokens = RNG.integers(4, V, (3, 12)).astype(np.int32)
    mask = np.arange(12) < np.array([[12], [5], [3]])
    run, params = compiled("quickstart", "_embed_text"), model("quickstart")[1]
    batch = run(params, np.where(mask, tokens, 0), mask)
    np.testing.assert_allclose(batch, run(params, np.where(mask, tokens, 9), mask), atol=1e-5)
    alone = run(params, tokens[1:2, :5], mask[1:2, :5])
    np.testing.assert_allclose(alone[0], batch[1], atol=1e-5)


def test_captions_are_the_greedy_choice_until_the_end():
    """Generated captions would not be what the model finds likeliest, or run on after their end."""
    inference, params = model("quickstart")
    audio, length = padded(CLIPS, RATE)
    size = 10

    @quick_jit
    def next_tokens(params, tokens):
        """Choices after every prefix of tokens [B, L], by full passes without a cache."""
        whole = nnx.merge(inference.graph, params)
        patches = inference.patches(audio, length)
        mask = np.ones(tokens.shape, bool)
        hidden = whole.text(tokens, mask)
        logits = whole.caption_decoder(hidden, mask, whole.audio(patches), patches.mask)
        return jnp.argmax(logits, axis=-1)

    tokens = np.zeros((len(CLIPS), size + 1), np.int32)
    tokens[:, 0] = BOS
    for position in range(size):
        tokens[:, position + 1] = np.asarray(next_tokens(params, tokens))[:, position]
    free = tokens[:, 1:]
    # The end token is the one that a row says in the middle, so that one ends early.
    eos = free[0, size // 2]
    want = free.copy()
    for row in want:
        if eos in row:
            row[list(row).index(eos) + 1 :] = 0
    assert (want[0] == 0).any()
    run = compiled("quickstart", "_caption", static_argnames="max_length")
    got = run(params, audio, length, BOS, eos, max_length=size)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(run(params, audio, length, BOS, V, max_length=size), free)


def test_beam_search_is_exhaustive_where_it_can_be():
    """Beams would read each other's caches, and captions be worse than greedy ones."""
    inference, params = model("quickstart")
    audio, length = padded(CLIPS[:2], RATE)
    every = np.stack([np.full(V, BOS), np.arange(V)], axis=1)  # all first tokens

    @quick_jit
    def log_probabilities(params):
        """Of the first token [2, V], and of the second after each first [2, V, V]."""
        whole = nnx.merge(inference.graph, params)
        patches = inference.patches(audio, length)
        mask = np.ones((2 * V, 2), bool)
        hidden = whole.text(np.tile(every, (2, 1)), mask)
        states, known = (jnp.repeat(x, V, axis=0) for x in (whole.audio(patches), patches.mask))
        logits = whole.caption_decoder(hidden, mask, states, known)
        both = jax.nn.log_softmax(logits).reshape(2, V, 2, V)
        return both[:, 0, 0], both[:, :, 1]

    first, second = map(np.asarray, log_probabilities(params))
    eos = int(first[0].argsort()[-3])
    total = first[:, :, None] + second
    total[:, eos] = -np.inf
    total[:, eos, 0] = first[:, eos]  # ended, then zeros
    want = np.stack(np.unravel_index(total.reshape(2, -1).argmax(1), (V, V)), axis=1)
    run = compiled("quickstart", "_caption", static_argnames=("max_length", "how"))
    got = run(params, audio, length, BOS, eos, max_length=2, how=Decoding("beam", beams=V))
    np.testing.assert_array_equal(got, want)


def test_sampled_captions_follow_seed_and_clip():
    """A sampled caption could not be had again, or changed with the files beside it."""
    params = model("quickstart")[1]
    audio, length = padded(CLIPS, RATE)
    run = compiled("quickstart", "_caption", static_argnames=("max_length", "how"))

    def sample(seed, audio, length):
        how = Decoding("sample", temperature=1.5)
        return np.asarray(run(params, audio, length, BOS, V, seed, max_length=6, how=how))

    found = sample(1, audio, length)
    np.testing.assert_array_equal(sample(1, audio[::-1], length[::-1])[::-1], found)
    assert (sample(2, audio, length) != found).any()
