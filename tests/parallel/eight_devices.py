"""The objectives of both stages on meshes of up to eight CPU devices: `eight_devices.py FOLDER`.

Started by test_sharding.py with the flags that make eight devices of one CPU. Writes one
MESH.npz a mesh (metrics and gradients, by name), flap_MESH.npz and pairs_MESH.npz of the same, and
facts.json.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import load_config
from alm_jax.objectives import pairs
from alm_jax.objectives.forward import Forward
from alm_jax.parallel import ring
from alm_jax.parallel.mesh import batch_sharding, in_mesh, make_mesh, replicated
from alm_jax.train_state import Setup, TrainState, init_state, make_setup
from alm_jax.train_step import jit_train_step, total_loss
from tests.objectives import pairs_reference
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
FLAP_MESHES = ("one", "mixed8")
PAIRS_MESHES = ("data8", "mixed8")
B, S, L, V = 8, 8_000, 32, 52
RNG = np.random.default_rng(0)
PAIRS = [
    *(pairs_reference.unit(RNG, 16, 5) for _ in range(2)),
    np.float32(7.4),  # scale and bias
    np.float32(-1.3),
]
GROUP = RNG.integers(0, 10, 16).astype(np.int32)


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


def losses_and_gradients(
    system: ConfigDict, sizes: dict[str, int]
) -> tuple[dict[str, np.ndarray], str]:
    """Every metric and, by the parameter's name, every gradient; and the compiled program."""
    config, mesh, setup = prepare(system, sizes)

    @in_mesh(mesh)
    def loss(params: Any, batch: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(setup.graph, params)
        return total_loss(Forward(model, batch, config, jax.random.key(0)), config)

    run = jax.jit(
        jax.value_and_grad(loss, has_aux=True),
        in_shardings=(setup.shardings.params, batch_sharding(mesh)),
        out_shardings=(None, setup.shardings.params),
    )
    params = draw_like(setup.shapes.params)
    compiled = run.lower(params, batch()).compile()
    (_, metrics), grads = compiled(*jax.device_put((params, batch()), compiled.input_shardings[0]))
    found = {name: np.asarray(value) for name, value in (metrics | flat_names(grads)).items()}
    return found, compiled.as_text()


def pairs_of_all_rows(sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Both losses over pairs with all their slopes, a tile having one row."""
    _, mesh, _ = prepare(stage1(), sizes)
    rows, same = batch_sharding(mesh), replicated(mesh)

    @in_mesh(mesh)
    def run(*x: jax.Array) -> Any:
        def cross_entropy(audio: jax.Array, text: jax.Array, scale: jax.Array) -> Any:
            to_text, to_audio, hits = pairs.info_nce(audio, text, scale, jnp.asarray(GROUP), 0.1)
            return to_text + 0.7 * to_audio, hits

        def binary(*x: jax.Array) -> Any:
            return pairs.sigmoid(*x, jnp.asarray(GROUP))

        first = jax.value_and_grad(cross_entropy, (0, 1, 2), has_aux=True)(*x[:3])
        return first, jax.value_and_grad(binary, (0, 1, 2, 3), has_aux=True)(*x)

    tile, ring.TILE_ROWS = ring.TILE_ROWS, 1
    found = jax.jit(run, in_shardings=(rows, rows, same, same))(*PAIRS)
    ring.TILE_ROWS = tile
    return {str(n): np.asarray(x) for n, x in enumerate(jax.tree.leaves(found))}


def temporary_bytes(rows: int) -> int:
    """What a device holds for InfoNCE and its gradient of so many rows on eight devices."""
    _, mesh, _ = prepare(stage1(), MESHES["data8"])

    @in_mesh(mesh)
    def run(audio: jax.Array, text: jax.Array) -> Any:
        return jax.grad(lambda *x: pairs.info_nce(*x, jnp.float32(9))[0], (0, 1))(audio, text)

    shape = jax.ShapeDtypeStruct((rows, 16), jnp.float32)
    spread = batch_sharding(mesh)
    compiled = jax.jit(run, in_shardings=spread, out_shardings=spread).lower(shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


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
    more: dict[str, Any] = {}
    for name, sizes in MESHES.items():
        found, program = losses_and_gradients(both_stages(), sizes)
        np.savez(folder / f"{name}.npz", **found)
        if name == "fsdp4":
            more["gathered"] = re.findall(r"= \w+\[([0-9,]*)\]\S* all-gather\(", program)
            more["all_to_all"] = program.count(" all-to-all(")
    for name in FLAP_MESHES:
        found, _ = losses_and_gradients(flap("model.text.dropout=0.0"), MESHES[name])
        np.savez(folder / f"flap_{name}.npz", **found)
    for name in PAIRS_MESHES:
        np.savez(folder / f"pairs_{name}.npz", **pairs_of_all_rows(MESHES[name]))
    more["temporary"] = [temporary_bytes(rows) for rows in (8192, 16384)]
    (folder / "facts.json").write_text(json.dumps(facts(folder) | more))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
