"""Exact InfoNCE and sigmoid losses of all B x B pairs, in memory that is linear in a device's rows.

The pairs are computed a tile at a time (`alm_jax.parallel.ring`) and once more for the gradient,
which each loss therefore brings with it. The gradients are those of global arrays, outside of any
`shard_map`, so nothing divides them by a number of devices.

Sources: InfoNCE, https://arxiv.org/abs/1807.03748; the sigmoid loss, SigLIP,
https://arxiv.org/abs/2303.15343, section 3.2.
Shapes: B batch, J joint width; within a meeting H hosts (audio) and G guests (text).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from alm_jax.parallel.ring import all_pairs

Arrays = dict[str, Any]


def _sides(audio: jax.Array, text: jax.Array, group: jax.Array | None) -> tuple[Arrays, Arrays]:
    """Hosts and guests: the embeddings with what tells pairs apart."""
    common = {"place": jnp.arange(audio.shape[0], dtype=jnp.int32), "group": group}
    return {"x": audio, **common}, {"x": text, **common}


def _pairs(hosts: Arrays, guests: Arrays) -> tuple[jax.Array, jax.Array, jax.Array | bool]:
    """Cosines [H, G], which pairs are positive, and which count (those not ignored)."""
    cosine = jnp.matmul(hosts["x"], guests["x"].T, precision=jax.lax.Precision.HIGHEST)
    positive = hosts["place"][:, None] == guests["place"][None, :]
    if hosts["group"] is None:
        return cosine, positive, True
    return cosine, positive, positive | (hosts["group"][:, None] != guests["group"][None, :])


def _best(rows: int) -> Arrays:
    """Where the search for each host's most similar guest starts."""
    return {
        "cosine": jnp.full((rows,), -jnp.inf, jnp.float32),
        "place": jnp.zeros((rows,), jnp.int32),
    }


def _better(best: Arrays, cosine: jax.Array, places: jax.Array) -> Arrays:
    """The best so far and now; among equals the first in the batch, as `argmax` has it."""
    new, place = cosine.max(axis=1), places[jnp.argmax(cosine, axis=1)]
    wins = (new > best["cosine"]) | ((new == best["cosine"]) & (place < best["place"]))
    return {
        "cosine": jnp.where(wins, new, best["cosine"]),
        "place": jnp.where(wins, place, best["place"]),
    }


def _accuracy(best: Arrays) -> jax.Array:
    return jnp.mean(best["place"] == jnp.arange(best["place"].shape[0]))


def _add_slopes(
    slope: jax.Array, cosine: jax.Array, scale: jax.Array, hosts: Arrays, guests: Arrays
) -> tuple[Arrays, jax.Array]:
    """What slopes [H, G] of the loss by the logits add to those by hosts, scale and guests."""
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    ours = {"x": scale * product(slope, guests["x"]), "scale": jnp.sum(slope * cosine, axis=1)}
    return ours, scale * product(slope.T, hosts["x"])


# InfoNCE ------------------------------------------------------------------------------------------


def _count_pairs(
    scale: jax.Array, hosts: Arrays, host_sums: Arrays, guests: Arrays, guest_sums: Arrays
) -> tuple[Arrays, Arrays]:
    """The meeting of the forward pass: normalisers of rows and columns."""
    cosine, _, counted = _pairs(hosts, guests)
    logits = jnp.where(counted, scale * cosine, -jnp.inf)
    found = []
    for sums, axis in ((host_sums, 1), (guest_sums, 0)):
        more = {"lse": jnp.logaddexp(sums["lse"], jax.nn.logsumexp(logits, axis=axis))}
        if "logits" in sums:
            finite = jnp.isfinite(logits)
            more["logits"] = sums["logits"] + jnp.where(finite, logits, 0.0).sum(axis)
            more["count"] = sums["count"] + finite.sum(axis, dtype=jnp.float32)
        found.append(more)
    return found[0] | {"best": _better(host_sums["best"], cosine, guests["place"])}, found[1]


def _normalisers(
    audio: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    group: jax.Array | None,
    label_smoothing: float,
) -> tuple[Arrays, Arrays]:
    """Of each audio and of each text: log-sum-exp, and with smoothing sum and count of logits."""
    rows = audio.shape[0]
    start = {"lse": jnp.full((rows,), -jnp.inf, jnp.float32)}
    if label_smoothing:
        start |= {name: jnp.zeros((rows,), jnp.float32) for name in ("logits", "count")}
    hosts, guests = _sides(audio, text, group)
    return all_pairs(_count_pairs, scale, hosts, start | {"best": _best(rows)}, guests, start)


def _cross_entropies(
    audio: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    sums: tuple[Arrays, Arrays],
    label_smoothing: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    positive = scale * jnp.sum(audio * text, axis=1)
    losses = []
    for side in sums:
        target = (1.0 - label_smoothing) * positive
        if label_smoothing:
            target += label_smoothing * side["logits"] / side["count"]
        losses.append(jnp.mean(side["lse"] - target))
    return losses[0], losses[1], _accuracy(sums[0]["best"])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def info_nce(
    audio: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    group: jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cross-entropies audio -> text and text -> audio.

    Args:
      audio: [B, J] unit-norm float32.
      text: [B, J] unit-norm float32.
      scale: inverse temperature, a scalar.
      group: [B] int32; two different rows of one group are neither positive nor negative for each
        other. None: all pairs count.
      label_smoothing: share of the target spread over all pairs of a row that count.

    Returns:
      Three scalars: both losses, each a mean over the batch, and the share of clips whose caption
      is the most similar one of the batch (not to be differentiated).
    """
    sums = _normalisers(audio, text, scale, group, label_smoothing)
    return _cross_entropies(audio, text, scale, sums, label_smoothing)


def _info_nce_forward(
    audio: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    group: jax.Array | None,
    label_smoothing: float,
) -> tuple[Any, Any]:
    sums = _normalisers(audio, text, scale, group, label_smoothing)
    losses = _cross_entropies(audio, text, scale, sums, label_smoothing)
    kept = [{name: side[name] for name in side if name != "best"} for side in sums]
    return losses, (audio, text, scale, group, kept)


def _info_nce_backward(label_smoothing: float, kept: Any, slopes: Any) -> Any:
    audio, text, scale, group, sums = kept
    rows = audio.shape[0]

    def meeting(
        shared: Any, hosts: Arrays, host_sums: Arrays, guests: Arrays, guest_sums: jax.Array
    ) -> tuple[Arrays, jax.Array]:
        scale, weights = shared
        cosine, positive, counted = _pairs(hosts, guests)
        logits = jnp.where(counted, scale * cosine, -jnp.inf)
        slope = jnp.zeros_like(cosine)
        for weight, side, axis in ((weights[0], hosts, 1), (weights[1], guests, 0)):
            target = (1.0 - label_smoothing) * positive
            if label_smoothing:
                target += label_smoothing / jnp.expand_dims(side["count"], axis) * counted
            slope += weight * (jnp.exp(logits - jnp.expand_dims(side["lse"], axis)) - target)
        ours, theirs = _add_slopes(slope, cosine, scale, hosts, guests)
        return jax.tree.map(jnp.add, host_sums, ours), guest_sums + theirs

    hosts, guests = _sides(audio, text, group)
    shared = scale, (slopes[0] / rows, slopes[1] / rows)
    start = {"x": jnp.zeros_like(audio), "scale": jnp.zeros((rows,), jnp.float32)}
    by_audio, by_text = all_pairs(
        meeting, shared, hosts | sums[0], start, guests | sums[1], jnp.zeros_like(text)
    )
    return by_audio["x"], by_text, by_audio["scale"].sum(), None


info_nce.defvjp(_info_nce_forward, _info_nce_backward)


# Sigmoid ------------------------------------------------------------------------------------------


def _binary_entropies(
    audio: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    group: jax.Array | None,
    with_slopes: bool,
) -> tuple[Arrays, Arrays]:
    """Of each audio the summed loss of its pairs, and if asked its slopes by all that has some.

    No pair has to know of another, so the gradient needs no second round.
    """
    rows = audio.shape[0]

    def meeting(
        shared: Any, hosts: Arrays, host_sums: Arrays, guests: Arrays, guest_sums: Arrays
    ) -> tuple[Arrays, Arrays]:
        scale, bias = shared
        cosine, positive, counted = _pairs(hosts, guests)
        logits = scale * cosine + bias
        loss = jnp.where(counted, jax.nn.softplus(jnp.where(positive, -logits, logits)), 0.0)
        new = {
            "loss": host_sums["loss"] + loss.sum(axis=1),
            "best": _better(host_sums["best"], cosine, guests["place"]),
        }
        if not with_slopes:
            return new, guest_sums
        slope = jnp.where(counted, jax.nn.sigmoid(logits) - positive, 0.0)
        ours, theirs = _add_slopes(slope, cosine, scale, hosts, guests)
        ours["bias"] = slope.sum(axis=1)
        new["slopes"] = jax.tree.map(jnp.add, host_sums["slopes"], ours)
        return new, {"slopes": guest_sums["slopes"] + theirs}

    zeros = jnp.zeros((rows,), jnp.float32)
    host_sums: Arrays = {"loss": zeros, "best": _best(rows)}
    guest_sums: Arrays = {}
    if with_slopes:
        host_sums["slopes"] = {"x": jnp.zeros_like(audio), "scale": zeros, "bias": zeros}
        guest_sums["slopes"] = jnp.zeros_like(text)
    hosts, guests = _sides(audio, text, group)
    return all_pairs(meeting, (scale, bias), hosts, host_sums, guests, guest_sums)


@jax.custom_vjp
def sigmoid(
    audio: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    group: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The loss of telling each pair's kind by itself: does this caption belong to this clip?

    Args:
      audio: [B, J] unit-norm float32.
      text: [B, J] unit-norm float32.
      scale: inverse temperature, a scalar.
      bias: added to all logits, a scalar.
      group: as in `info_nce`.

    Returns:
      Two scalars: the sum over the pairs of a clip, a mean over the clips; and the share of clips
      whose caption is the most similar one of the batch (not to be differentiated).
    """
    sums, _ = _binary_entropies(audio, text, scale, bias, group, with_slopes=False)
    return sums["loss"].mean(), _accuracy(sums["best"])


def _sigmoid_forward(
    audio: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    group: jax.Array | None,
) -> tuple[Any, Any]:
    sums, others = _binary_entropies(audio, text, scale, bias, group, with_slopes=True)
    return (sums["loss"].mean(), _accuracy(sums["best"])), (sums["slopes"], others["slopes"])


def _sigmoid_backward(kept: Any, slopes: Any) -> Any:
    by_audio, by_text = kept
    weight = slopes[0] / by_text.shape[0]
    return (
        weight * by_audio["x"],
        weight * by_text,
        weight * by_audio["scale"].sum(),
        weight * by_audio["bias"].sum(),
        None,
    )


sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)
