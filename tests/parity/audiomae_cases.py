"""The official AudioMAE's golden outputs and their inputs, for the tests that compare with them.

Computed by facebookresearch/AudioMAE @ bd60e29 on weights by the rule of tests/golden/rule.py.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alm_jax.audio.masking import MaskingConfig, Noise, split_view
from alm_jax.audio.patches import PatchConfig, cut
from alm_jax.interop.audiomae import FORMAT
from alm_jax.interop.importing import in_memory, to_alm
from alm_jax.models.patch_positions import PatchShape, fixed_table
from alm_jax.train_state import model_graph
from tests.quick_jit import quick_jit

GOLDEN = Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
from rule import spectrogram, torch_weight, uniform  # noqa: E402

ARRAYS = np.load(GOLDEN / "audiomae.npz")
FACTS = json.loads((GOLDEN / "audiomae.json").read_text())
TREES = FACTS["trees"]
# Values of order 1; the official float32 run itself is 2e-6 .. 3e-6 away from float64.
ATOL = 2e-5
PRETRAINED = ("plain", "mask2d", "overlap", "swin", "noshift")


def official(case):
    """The official state dict of a case."""
    rows = FACTS["cases"][case]["rows"]
    finetuned = case.startswith("finetune")
    names = dict(TREES["finetune_rest"] if finetuned else TREES["rest"])
    blocks = {"blocks": (2, TREES["layer"])}
    if finetuned:
        names["pos_embed"] = [1, rows, 64]
    else:
        swin = FACTS["cases"][case]["decoder"] == "swin"
        blocks["decoder_blocks"] = (16, TREES["swin_layer"]) if swin else (2, TREES["layer"])
    for stack, (depth, layer) in blocks.items():
        names |= {f"{stack}.{i}.{name}": s for i in range(depth) for name, s in layer.items()}
    tensors = {name: torch_weight(name, shape) for name, shape in names.items()}
    if not finetuned:
        tensors["pos_embed"] = tensors["decoder_pos_embed"] = places(rows)[None]
    return tensors


def places(rows):
    """The official table; patches that overlap come in the order of the table, others do not."""
    if rows == 1213:
        return fixed_table("sincos_2d", 64, PatchShape(256, 12, 101))
    return fixed_table("sincos_2d_official", 64, PatchShape(256, 8, (rows - 1) // 8))


def heads_of(case):
    """What no tensor's shape tells."""
    return ["model.audio.heads=4"] + ["model.mae_decoder.heads=4"] * (case == "plain")


@functools.cache
def imported(case):
    """Config, structure and parameters of a case."""
    told = {"no_shift": True} if case == "noshift" else {}
    found = to_alm(FORMAT, in_memory(official(case), told), heads_of(case))
    graph, abstract = model_graph(found.config, 0)
    expected = jax.tree.map(jnp.shape, nnx.to_pure_dict(abstract))
    assert jax.tree.map(np.shape, found.params) == expected
    return found.config, graph, jax.tree.map(jnp.asarray, found.params)


def patches_of(config, name="input/spec"):
    """All patches of the golden's fake spectrograms."""
    frames = config.patches.frames
    mel = jnp.asarray(spectrogram(name, (2, 1, frames, 128))[:, 0])
    return quick_jit(lambda mel: cut(mel, jnp.full(2, frames), PatchConfig(**config.patches)))(mel)


def noise_2d():
    """The golden's noise for 2-D masking."""
    patch = jnp.zeros((2, 512))
    return Noise(patch, uniform("noise_t", (2, 64)), uniform("noise_f", (2, 8)))


@functools.cache
def prepared(case):
    """Patches of a case, and the golden's view of them, in the order of the clip's patches."""
    patches = patches_of(imported(case)[0])
    slots = patches.mask.shape[1]
    masking = MaskingConfig(ratio=0.8)
    if case == "mask2d":
        noise, masking = noise_2d(), MaskingConfig("random_2d", 0.0, 0.6, 0.5)
    elif case == "overlap":
        noise = Noise(jnp.asarray(np.argsort(ARRAYS["overlap/order"], axis=1) / slots))
    else:
        noise = Noise(jnp.asarray(uniform("noise", (2, slots))))
    return patches, quick_jit(split_view, static_argnames="config")(noise, patches, config=masking)


def kept_order(case, clip, count):
    """Patches of a clip in the order in which the official encoder sees them."""
    if case == "mask2d":
        _, (visible, _) = prepared(case)
        return index(visible, case)[clip][:count]
    if case == "overlap":
        return ARRAYS["overlap/order"][clip][:count]
    return np.argsort(uniform("noise", (2, 512))[clip])[:count]


def index(patches, case):
    """[B, N] place of every slot in the grid, -1 for padding."""
    rows = 12 if case == "overlap" else 8
    return np.where(patches.mask, patches.time * rows + patches.freq, -1)
