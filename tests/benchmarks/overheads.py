"""What a run costs beside its steps: Python per step, saving, starting."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import torch

from alm_jax.checkpoints import Checkpoints
from alm_jax.config import load_config
from tests.benchmarks.jax_steps import Step
from tests.benchmarks.measure import Row

_NARROW = dict(width=16, heads=2, mlp_dim=16)


def python_per_step(repeats: int) -> Row:
    """Time that the calling thread computes until the call of a step returns.

    The arrays are those of a whole model, each of them tiny.
    """
    overrides = ["data.batch_size=1", "data.max_seconds=0.2", "data.max_text_length=4"]
    overrides += ["tokenizer.vocab_size=300", "model.embed_dim=16", "model.audio_pool.heads=2"]
    for part in ("audio", "text", "caption_decoder"):
        overrides += [f"model.{part}.{name}={value}" for name, value in _NARROW.items()]
    step = Step(load_config("quickstart", overrides))
    for _ in range(3):
        step.run()
    times = []
    for _ in range(20 * repeats):
        started = time.thread_time()
        step.dispatch()
        times.append(1e3 * (time.thread_time() - started))
        jax.block_until_ready(step.state)
    return Row(
        "overheads",
        f"Python per step, {step.num_arrays} arrays of state",
        "ms",
        ("jax.jit on a pytree", statistics.median(times)),
        aim="under 2 ms",
    )


def checkpoint_stall(repeats: int) -> Row:
    """Seconds that training stands still for a checkpoint of 137 M parameters with AdamW."""
    step = Step(load_config("audiomae", ["data.batch_size=1"]))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(step.state))
    tensors = [torch.zeros(leaf.nbytes // 4) for leaf in jax.tree.leaves(step.state)]
    stalls, wholes, others = [], [], []
    for repeat in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            saves = Checkpoints(folder)
            started = time.perf_counter()
            saves.save(repeat, step.state, {"next_step": 0}, {}, force=True)
            stalls.append(time.perf_counter() - started)
            saves.wait()
            wholes.append(time.perf_counter() - started)
            saves.close()
            started = time.perf_counter()
            torch.save(tensors, Path(folder) / "state.pt")
            others.append(time.perf_counter() - started)
    ours, other = statistics.median(stalls), statistics.median(others)
    return Row(
        "overheads",
        f"training stands still for a checkpoint of {size / 1e9:.1f} GB",
        "s",
        ("orbax, in the background", ours),
        ("torch.save", other),
        other / ours,
        note=f"written after {statistics.median(wholes):.1f} s",
        times={"stall": stalls, "written": wholes, "torch.save": others},
    )


def start_up(repeats: int, data: str) -> Row:
    """Seconds from the command to the end of the first step."""
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as workdir:
            command = [sys.executable, "-m", "alm_jax", "train", "--config=quickstart:tiny"]
            command += [f"--workdir={workdir}", f"--config.data.dir={data}"]
            command += ["--config.train.steps=1", "--config.data.eval_split="]
            command += ["--config.init_from.workdir=", "--config.optim.warmup_steps=0"]
            started = time.perf_counter()
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
            times.append(time.perf_counter() - started)
    return Row(
        "overheads",
        "`alm train`, quickstart: from the command to the first step, saved",
        "s",
        ("import, tokenizer, compiling, one step, checkpoint", statistics.median(times)),
        times={"start": times},
    )


def rows(repeats: int, data: str) -> Iterator[Row]:
    """All rows."""
    yield python_per_step(repeats)
    yield checkpoint_stall(repeats)
    yield start_up(repeats, data)
