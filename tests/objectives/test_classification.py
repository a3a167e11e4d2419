"""The classification objective against PyTorch's losses, values and gradients."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from alm_jax.audio.frontend import LogMelConfig
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.objectives.classification import binary_rows, classification, softmax_rows
from alm_jax.objectives.forward import Forward, spectrogram
from tests.quick_jit import quick_jit

B, Y = 6, 5


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(1)
    logits = 3.0 * rng.standard_normal((B, Y)).astype(np.float32)
    return logits, rng.random((B, Y)).astype(np.float32), rng.integers(0, Y, B)


def torch_loss(loss, logits, targets):
    """Value and gradient of a PyTorch loss in float64."""
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    value = loss(x, targets)
    value.backward()
    return value.item(), x.grad.numpy()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_is_bce_with_logits(drawn, smoothing):
    """A published recipe would train another loss, or learn at another rate."""
    logits, targets, _ = drawn
    smooth = (1 - smoothing) * targets + smoothing / 2
    loss = torch.nn.BCEWithLogitsLoss()
    want = torch_loss(loss, logits, torch.tensor(smooth, dtype=torch.float64))
    found = quick_jit(jax.value_and_grad(lambda x: binary_rows(x, targets, smoothing).mean()))
    for mine, theirs in zip(found(logits), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)  # float32 against float64


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_is_cross_entropy(drawn, smoothing):
    """As above, for one class a clip."""
    logits, _, classes = drawn
    loss = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    want = torch_loss(loss, logits, torch.tensor(classes))
    targets = 0.5 * np.eye(Y, dtype=np.float32)[classes]  # weights of a clip need not sum to 1
    found = quick_jit(jax.value_and_grad(lambda x: softmax_rows(x, targets, smoothing).mean()))
    for mine, theirs in zip(found(logits), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


def test_softmax_of_soft_targets(drawn):
    """Mixed clips would be learned as one of the two."""
    logits, targets, _ = drawn
    shares = targets / targets.sum(1, keepdims=True)
    loss = torch.nn.CrossEntropyLoss()
    want = torch_loss(loss, logits, torch.tensor(shares, dtype=torch.float64))
    found = quick_jit(jax.value_and_grad(lambda x: softmax_rows(x, targets).mean()))
    for mine, theirs in zip(found(logits), want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


def forward_of(logits, labels, views=1):
    model = SimpleNamespace(classifier=lambda hidden, mask: hidden)
    masking = SimpleNamespace(views=views)
    return SimpleNamespace(
        model=model, masking=masking, audio_hidden=logits, audio_mask=None, labels=labels
    )


def config(loss, **fields):
    return ConfigDict(dict(loss=loss, label_smoothing=0.0) | fields)


def test_clips_without_a_class(drawn):
    """Unlabelled clips would pull a choice of one class towards nothing.

    To yes-or-no questions their answer is no.
    """
    logits, _, classes = map(jnp.asarray, drawn)
    labels = jnp.eye(Y)[classes].at[2].set(0.0)
    some = np.array([0, 1, 3, 4, 5])
    loss, metrics = classification(forward_of(logits, labels), config("softmax"))
    np.testing.assert_allclose(loss, softmax_rows(logits, labels)[some].mean(), rtol=1e-6)
    hits = np.argmax(logits, axis=1)[some] == np.asarray(classes)[some]
    np.testing.assert_allclose(metrics["classification_accuracy"], hits.mean())
    loss, metrics = classification(forward_of(logits, labels), config("binary"))
    np.testing.assert_allclose(loss, binary_rows(logits, labels).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["classification_accuracy"], hits.mean())


def test_views_share_the_labels_of_their_clip(drawn):
    """The second view of a clip would be taught the next clip's classes."""
    logits, targets, _ = map(jnp.asarray, drawn)
    once, _ = classification(forward_of(logits, targets), config("binary"))
    twice = forward_of(jnp.repeat(logits, 2, axis=0), targets, views=2)
    np.testing.assert_allclose(classification(twice, config("binary"))[0], once, rtol=1e-6)


def test_what_is_wrong_is_named(drawn):
    """A mistake in the config would end in a shape error of a compiled program."""
    logits, targets, _ = map(jnp.asarray, drawn)
    with pytest.raises(UserError, match=r"loss is 'bce'.*binary.*softmax"):
        classification(forward_of(logits, targets), config("bce"))
    with pytest.raises(UserError, match=r"classifier\.classes=5, but the data have 4 classes"):
        classification(forward_of(logits, targets[:, :4]), config("binary"))
    nothing = forward_of(logits, targets)
    nothing.model.classifier = None
    with pytest.raises(UserError, match=r"no config\.model\.classifier"):
        classification(nothing, config("binary"))
    batch = {"example_id": jnp.zeros(2, jnp.int32)}
    with pytest.raises(UserError, match=r"set data\.labels"):
        _ = Forward(None, batch, load_config("quickstart"), jax.random.key(0)).labels


@pytest.fixture(scope="module")
def mixed_batch():
    rng = np.random.default_rng(2)
    pcm = rng.integers(-8000, 8000, (2, 3, 4000)).astype(np.int16)
    labels = rng.random((2, 3, Y)) < 0.4
    return {
        "audio": pcm[0],
        "audio_length": np.array([4000, 3000, 2000], np.int32),
        "mix_audio": pcm[1],
        "mix_length": np.array([2500, 0, 4000], np.int32),
        "labels": labels[0],
        "mix_labels": labels[1],
        "example_id": np.array([5, 1, 9], np.int32),
    }


def test_sound_and_labels_are_mixed_alike(mixed_batch):
    """A clip would be labelled with a share of a sound that it does not hold."""
    experiment = load_config("quickstart")

    @quick_jit
    def run(batch, key):
        forward = Forward(None, batch, experiment, key)
        return forward.mel[0], forward.labels, forward.mix_share

    key = jax.random.key(3)
    mel, labels, share = run(mixed_batch, key)
    share = np.array(share, float)
    first, second = mixed_batch["labels"], mixed_batch["mix_labels"]
    want = share[:, None] * first + (1 - share)[:, None] * second
    assert share[1] == 1.0 and (want[1] == first[1]).all() and 0.2 < share[0] < 0.8
    np.testing.assert_allclose(labels, want, rtol=1e-6)
    audio, other = mixed_batch["audio"] / 32768.0, mixed_batch["mix_audio"] / 32768.0
    for row in (0, 2):
        length, end = mixed_batch["audio_length"][row], mixed_batch["mix_length"][row]
        one = audio[row, :length] - audio[row, :length].mean()
        two = np.zeros_like(one)
        two[:end] = (other[row, :end] - other[row, :end].mean())[:length]
        audio[row] = 0.0
        audio[row, :length] = share[row] * one + (1 - share[row]) * two
    frontend = LogMelConfig(**experiment.frontend)
    length = mixed_batch["audio_length"]
    want = spectrogram(np.asarray(audio, np.float32), length, frontend)[0]
    np.testing.assert_allclose(mel, want, atol=1e-4)  # log-mel is in steps of the std, 5 nepers
    evaluated = Forward(None, mixed_batch, experiment, key, noise=False).labels
    np.testing.assert_array_equal(evaluated, first.astype(np.float32))
