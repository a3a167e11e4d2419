"""Import and export of models of published size: seconds and peak memory of each verb.

    python -m tests.interop.full_size FOLDER [laion_clap hf_clap audiomae cacophony]

Makes checkpoints in the official layouts, of random values, in FOLDER (2.3 GB with what is made of
them, removed model by model) and runs `alm import` and `alm export` on them, one after another.
Prints the rows of the table in docs/interop.md.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.config import load_config
from alm_jax.interop.checkpoint_files import write_safetensors, write_torch
from alm_jax.interop.clap_layout import clap_config
from alm_jax.interop.exported import export_config
from alm_jax.interop.flax_files import write_flax
from alm_jax.interop.formats import get_format
from alm_jax.interop.importing import from_alm, parameter_shapes, vocab_size
from tests.interop.official_trees import flax_weight, torch_weight

# Format -> shipped config, file of the checkpoint, formats to export.
MODELS = {
    "laion_clap": ("laion_clap", "clap.pt", ("torch", "hf", "onnx", "official")),
    "hf_clap": ("laion_clap", "clap", ("torch", "official")),
    "audiomae": ("audiomae", "audiomae.pth", ("torch", "hf", "onnx", "official")),
    "cacophony": ("cacophony", "Cacophony.ckpt", ("torch", "hf", "onnx", "official")),
}


def make(name: str, path: Path) -> None:
    """Writes a checkpoint of the format; its values follow the rule of the golden files."""
    spec = MODELS[name][0]
    config, format = ConfigDict(load_config(spec).to_dict()), get_format(name)
    flat = {
        tuple(key.split(".")): np.broadcast_to(np.float32(0), shape)
        for key, shape in parameter_shapes(format, config).items()
    }
    params = nnx.traversals.unflatten_mapping(flat)
    rule = flax_weight if name == "cacophony" else torch_weight
    # Constants are not zero everywhere, or have names that tell; parameters are all zero so far.
    drawn = {
        key: rule(key, array.shape) if array.dtype == np.float32 and not np.any(array) else array
        for key, array in from_alm(format, config, params)
    }
    if name == "cacophony":
        write_flax(path, iter(drawn.items()), ("0", "params"))
    elif name == "hf_clap":
        path.mkdir()
        described = clap_config(export_config(config, vocab_size(config)))
        (path / "config.json").write_text(json.dumps(described))
        listed = [(key, array.shape, array.dtype) for key, array in drawn.items()]
        write_safetensors(path / "model.safetensors", listed, iter(drawn.items()))
    else:
        inside = ("model",) if name == "audiomae" else ("state_dict",)
        write_torch(path, iter(drawn.items()), inside)


def measure(words: list[str]) -> tuple[float, float, float]:
    """Runs a verb; wall seconds, CPU seconds, peak memory in bytes."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "alm_jax", *words], stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"alm {' '.join(words)} failed")
    cpu = usage.ru_utime + usage.ru_stime
    return time.monotonic() - start, cpu, usage.ru_maxrss * 1024.0


def main(folder: Path, names: list[str]) -> None:
    """Measures the models named."""
    print("| model | checkpoint | verb | wall s | CPU s | peak | of the checkpoint |", flush=True)
    for name in names or MODELS:
        place = folder / name
        place.mkdir(parents=True)
        path = place / MODELS[name][1]
        # In a process of its own: a child's peak counts what its parent held when it was started.
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(name, path))
        maker.start()
        maker.join()
        size = sum(f.stat().st_size for f in (path.iterdir() if path.is_dir() else [path]))
        workdir = f"--model={place / 'workdir'}"
        runs = [["import", f"--format={name}", f"--checkpoint={path}", f"--output={workdir[8:]}"]]
        for format in MODELS[name][2]:
            runs.append(["export", workdir, f"--format={format}", f"--output={place / format}"])
        for words in runs:
            wall, cpu, peak = measure(words)
            verb = " ".join(word for word in words[:3] if "=/" not in word)
            print(
                f"| {name} | {size / 1e6:.0f} MB | {verb} | {wall:.0f} | {cpu:.0f} | "
                f"{peak / 1e6:.0f} MB | {peak / size:.1f} x |",
                flush=True,
            )
        shutil.rmtree(place)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
