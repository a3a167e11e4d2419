"""The objectives of both stages on meshes of up to eight CPU devices: `eight_devices.py FOLDER`.

Started by test_sharding.py with the flags that make eight devices of one CPU. Writes one
MESH.npz a mesh (metrics and gradients, by name) and facts.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import load_config
from alm_jax.objectives.forward import Forward
from alm_jax.parallel.mesh import batch_sharding, make_mesh
from alm_jax.train_state import Setup, TrainState, init_state, make_setup
from alm_jax.train_step import jit_train_step, total_loss
from tests.random_params import draw_like
from tests.small_configs import stage1, stage2

# Axes that are not named have one device.
MESHES = {
    "one": dict(data=1),
    "tensor2": dict(tensor=2),
    "fsdp4": dict(fsdp=4),
    "data8": dict(data=8),
    "mixed8": dict(data=2, fsdp=2, tensor=2),
}
B, S, L, V = 8, 8_000, 32, 52


def both_stages(*overrides: str) -> ConfigDict:
    """All parts and objectives of the two stages in one model, so that one program has them."""
    fields = ["masking.ratio=0.5", "model.text.dropout=0.1", *overrides]
    config = stage2(*fields).copy_and_resolve_references()
    with config.unlocked():
        config.model.mae_decoder = stage1().model.mae_decoder
        config.objectives.reconstruction = stage1().objectives.reconstruction
        config.optim.name = "muon"  # its state has moments of both kinds
    return config


def flap(*overrides: str) -> ConfigDict:
    """The shipped FLAP with two views, narrow and for clips of half a second."""
    parts = ["audio", "text", "mae_decoder"]
    fields = [
        f"model.{part}.{field}"
        for part in parts
        for field in ("width=32", "depth=1", "heads=2", "mlp_dim=64", "init=lecun", "remat=none")
    ]
    fields += ["model.embed_dim=16", "model.dtype=float32", "model.max_positions=64"]
    fields += ["patches.frames=64", "data.max_seconds=0.6", f"data.max_text_length={L}"]
    return load_config("flap:two_views", [*fields, *overrides])


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    length = rng.integers(1000, S, B).astype(np.int32)
    noise = rng.standard_normal((B, S)) * 3000 * (np.arange(S) < length[:, None])
    return {
        "audio": noise.astype(np.int16),
        "audio_length": length,
        "text": rng.integers(4, V, (B, L)).astype(np.int32),
        "text_mask": np.arange(L) < rng.integers(3, L, (B, 1)),
        "example_id": np.arange(B, dtype=np.int32),
    }


def prepare(config: ConfigDict, sizes: dict[str, int]) -> tuple[ConfigDict, Mesh, Setup]:
    """The config with these mesh sizes, mesh and setup."""
    config = config.copy_and_resolve_references().unlock()
    config.mesh = ConfigDict(dict(data=1, fsdp=1, tensor=1) | sizes)
    count = int(np.prod(list(sizes.values())))
    mesh = make_mesh(config.mesh, jax.devices()[:count])
    return config, mesh, make_setup(config, V, mesh)


def losses_and_gradients(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Every metric and, by the parameter's name, every gradient."""
    config, mesh, setup = prepare(both_stages(), sizes)

    def loss(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(setup.graph, params)
        return total_loss(Forward(model, batch, config, jax.random.key(0)), config)

    run = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        in_shardings=(setup.shardings.params, batch_sharding(mesh)),
        out_shardings=(None, setup.shardings.params),
    )
    (_, metrics), grads = run(draw_like(setup.shapes.params), batch())
    return {name: np.asarray(value) for name, value in (metrics | flat_names(grads)).items()}


def same(a: TrainState, b: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def laid_out_as(state: TrainState, shardings: TrainState) -> bool:
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True)
    return all(leaf.sharding.is_equivalent_to(wanted, leaf.ndim) for leaf, wanted in pairs)


def facts(folder: Path) -> dict[str, Any]:
    """What a state does on the mixed mesh: drawing, saving, restoring, one step."""
    stage = stage1("optim.ema_decay=0.9")
    config, mesh, setup = prepare(stage, MESHES["mixed8"])
    _, _, single = prepare(stage, MESHES["one"])
    state = init_state(config, V, setup)
    found = {
        "same_start": same(state, init_state(config, V, single)),
        "start_laid_out": laid_out_as(state, setup.shardings),
        "bytes_on_first_device": sum(
            leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)
        ),
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    }
    saves = Checkpoints(folder)
    saves.save(1, state, {"next_step": 1}, {}, force=True)
    saves.wait()
    for name, other in (("one", single), ("mixed", setup)):
        restored, _ = saves.restore(other.shapes, other.shardings)
        found[f"restored_on_{name}"] = same(restored, state)
        found[f"restored_on_{name}_laid_out"] = laid_out_as(restored, other.shardings)
    saves.close()
    step = jit_train_step(config, setup, batch_sharding(mesh))
    after, metrics = step(state, jax.device_put(batch(), batch_sharding(mesh)))
    found["step_laid_out"] = laid_out_as(after, setup.shardings)
    return found | {name: float(value) for name, value in metrics.items()}


def main(folder: Path) -> None:
    for name, sizes in MESHES.items():
        np.savez(folder / f"{name}.npz", **losses_and_gradients(sizes))
    (folder / "facts.json").write_text(json.dumps(facts(folder)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
