"""Optimiser and schedule from a config."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import numpy as np
import optax
import optax.contrib
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.freezing import frozen_names, trained, with_frozen
from alm_jax.patterns import compiled

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "linear", "constant")
# Weight decay applies to matrices, as in the papers' recipes: no biases, norms, scalars or tables.
NOT_DECAYED = re.compile(
    r"(bias|scale|logit_scale|restore|query|words|positions(\.(freq|table))?|token_type|tau)$"
)

# What Muon orthogonalises: matrices between hidden states. Tables, heads that end in a vocabulary
# or in pixels, and the patch embedding stay with Adam, as its authors advise.
HIDDEN_MATRIX = re.compile(r"(blocks\.|pool\.|^text_proj|^audio_proj).*kernel$")


def schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate of each step: linear warm-up, then the named decay to `end_factor * lr`.

    Args:
      config: `lr`, `warmup_steps`, `schedule`, `end_factor`.
      steps: length of the run in steps.
    """
    if config.schedule not in SCHEDULES:
        raise UserError(f"optim.schedule is {config.schedule!r}; it must be one of {SCHEDULES}")
    if config.warmup_steps >= steps:
        raise UserError(
            f"optim.warmup_steps={config.warmup_steps} leaves nothing of train.steps={steps}"
        )
    end = config.lr * config.end_factor
    rest = steps - config.warmup_steps
    decay = {
        "cosine": lambda: optax.cosine_decay_schedule(config.lr, rest, config.end_factor),
        "linear": lambda: optax.linear_schedule(config.lr, end, rest),
        "constant": lambda: optax.constant_schedule(config.lr),
    }[config.schedule]()
    if not config.warmup_steps:
        return decay
    warmup = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
    return optax.join_schedules([warmup, decay], [config.warmup_steps])


def names(params: Any) -> Any:
    """A tree like params whose leaves are the dotted names, e.g. audio.embed.kernel."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator="."), params
    )


def multipliers(params: Any, rules: tuple[tuple[str, float], ...]) -> Any:
    """Learning-rate factor of every parameter: that of the first rule whose regex matches, or 1.

    Raises:
      UserError: if a rule matches no parameter (most likely a typing error).
    """
    used: set[str] = set()
    patterns = compiled((pattern for pattern, _ in rules), "optim.lr_multipliers")

    def factor(name: str) -> float:
        for pattern, (text, value) in zip(patterns, rules, strict=True):
            if pattern.search(name):
                used.add(text)
                return float(value)
        return 1.0

    tree = jax.tree.map(factor, names(params))
    unused = [pattern for pattern, _ in rules if pattern not in used]
    if unused:
        known = sorted({name.split(".")[0] for name in jax.tree.leaves(names(params))})
        raise UserError(f"optim.lr_multipliers: {unused} match no parameter; parts are {known}")
    return tree


def decay_mask(params: Any, more: tuple[str, ...] = ()) -> Any:
    """A tree like params: whether weight decay applies.

    Args:
      params: the parameters or their shapes; only names are read.
      more: regular expressions of further names without decay.

    Raises:
      UserError: one of them matches no parameter.
    """
    every = jax.tree.leaves(names(params))
    patterns = compiled(more, "optim.not_decayed")
    if unused := [p.pattern for p in patterns if not any(map(p.search, every))]:
        raise UserError(f"optim.not_decayed: {unused} match no parameter")
    return jax.tree.map(
        lambda name: not any(p.search(name) for p in (NOT_DECAYED, *patterns)), names(params)
    )


def layer_rates(params: Any, decay: float) -> Any:
    """Learning-rate factors that fall towards the input of the audio tower.

    The last of L layers has the factor `decay`, the first decay^L, the patch embedding, class token
    and positions decay^(L + 1); everything else, the tower's final norm too, has 1.
    Source: AudioMAE `util/lr_decay.py`, after BEiT.

    Args:
      params: the parameters or their shapes.
      decay: of a layer, such as 0.75.

    Returns:
      A tree like params of factors, [L, 1, ...] for stacked layers.

    Raises:
      UserError: the audio tower is not one stack of layers.
    """
    stack = "audio.transformer.blocks."
    leaves = zip(jax.tree.leaves(names(params)), jax.tree.leaves(params), strict=True)
    depth = next((leaf.shape[0] for name, leaf in leaves if name.startswith(stack)), 0)
    if not depth:
        raise UserError(
            f"optim.layer_decay={decay} needs an audio tower of one stack of layers (tower 'vit');"
            " set it to 1, or give optim.lr_multipliers"
        )

    def factor(name: str, leaf: Any) -> Any:
        if name.startswith(stack):
            rates = float(decay) ** np.arange(depth, 0, -1)
            return rates.astype(np.float32).reshape(-1, *[1] * (leaf.ndim - 1))
        if re.match(r"audio\.(embed|class_token|positions)(\.|$)", name):
            return float(decay) ** (depth + 1)
        return 1.0

    return jax.tree.map(factor, names(params), params)


def scale_by_muon() -> optax.GradientTransformation:
    """Orthogonalised momentum for stacked matrices [..., in, out], as large as Adam's updates.

    The factor 0.2 sqrt(max(in, out)) gives an update the root mean square that Adam's has, so that
    learning rate and decay mean the same for both (Moonlight, arXiv 2502.16982, section 2.2).
    """

    def matrices(updates: Any) -> Any:
        return jax.tree.map(
            lambda x: optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), updates
        )

    def rescale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda u: u * (0.2 * max(u.shape[-2:]) ** 0.5), updates)

    return optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=matrices),
        optax.stateless(rescale),
    )


def make_optimizer(config: ConfigDict, steps: int, params: Any) -> optax.GradientTransformation:
    """AdamW, or Muon for hidden matrices and AdamW for the rest.

    Both with global-norm clipping, decoupled decay on matrices and per-parameter rates.

    Args:
      config: `name b1 b2 eps weight_decay not_decayed clip_norm lr_multipliers layer_decay frozen`
        and the schedule's fields.
      steps: length of the run in steps.
      params: the parameters or their shapes.
    """
    if config.name not in OPTIMIZERS:
        raise UserError(f"optim.name is {config.name!r}; it must be one of {OPTIMIZERS}")
    held = frozen_names(params, tuple(config.get("frozen", ())))
    decayed = trained(decay_mask(params, tuple(config.get("not_decayed", ()))), held)
    params = trained(params, held)
    scale = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    if config.name == "muon":
        kinds = jax.tree.map(
            lambda name: "muon" if HIDDEN_MATRIX.search(name) else "adam", names(params)
        )
        scale = optax.partition({"muon": scale_by_muon(), "adam": scale}, kinds)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += [
        scale,
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(schedule(config, steps)),
    ]
    rates = []
    if config.lr_multipliers:
        rates.append(multipliers(params, tuple(tuple(rule) for rule in config.lr_multipliers)))
    if config.get("layer_decay", 1.0) != 1.0:
        rates.append(layer_rates(params, config.layer_decay))
    parts += [optax.stateless(functools.partial(_times, factors)) for factors in rates]
    return with_frozen(optax.chain(*parts), held)


def _times(factors: Any, updates: Any, params: Any) -> Any:
    del params
    return jax.tree.map(lambda update, factor: update * factor, updates, factors)
