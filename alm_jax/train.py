"""Trains any system from a config: alm train --config=configs/X.py --workdir=DIR.

The only train loop: every stage and system runs through `train`, from a laptop to a pod. Running
the same command again resumes from the last checkpoint.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from alm_jax import checkpoints as ckpt
from alm_jax import cli
from alm_jax.config import config_diff, parse_train_argv, read_config, save_config
from alm_jax.errors import UserError
from alm_jax.init_from import init_from
from alm_jax.metrics import MetricWriter, names_at
from alm_jax.parallel.mesh import batch_sharding, make_mesh
from alm_jax.parallel.sharding import describe
from alm_jax.train_evaluator import make_evaluator
from alm_jax.train_state import TrainState, init_state, make_setup
from alm_jax.train_step import jit_train_step
from input_pipeline.loader import train_loader
from input_pipeline.sources import open_source
from input_pipeline.text import FILE_NAME, Tokenizer

log = logging.getLogger("alm_jax")


def prepare_workdir(config: ConfigDict, workdir: Path) -> None:
    """Saves the resolved config, or checks that the workdir was made by the same one.

    A run that ended before its first checkpoint, say because a path in its config was wrong, leaves
    nothing to continue, so it may be started again with any config.

    Raises:
      UserError: if the workdir holds a run of a config that differs in more than its length.
    """
    path = workdir / "config.json"
    if path.exists():
        changed = [
            line
            for line in config_diff(read_config(path), config)
            if not line.startswith(("train.", "data.num_workers", "data.read_threads", "mesh."))
        ]
        if changed and ckpt.latest_step(workdir) is not None:
            raise UserError(
                f"{workdir} holds a run of another config; it differs in\n  "
                + "\n  ".join(changed)
                + "\nGive another --workdir, or the config that the run was started with."
            )
        if changed:
            # Made by the config of before, perhaps from other captions or of another size.
            (workdir / FILE_NAME).unlink(missing_ok=True)
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(config, path)


def workdir_tokenizer(config: ConfigDict, workdir: Path) -> Tokenizer:
    """The run's tokenizer: the workdir's own, or the config's, or one trained on the captions."""
    path = workdir / FILE_NAME
    if path.exists():
        return Tokenizer.load(path)
    if config.tokenizer.path:
        tokenizer = Tokenizer.load(config.tokenizer.path)
    else:
        captions = open_source(config.data.dir, config.data.train_split).captions()
        tokenizer = Tokenizer.train(
            captions,
            config.tokenizer.vocab_size,
            model_type=config.tokenizer.model_type,
            character_coverage=config.tokenizer.character_coverage,
        )
        log.info("tokenizer: %d pieces trained on the training captions", tokenizer.vocab_size)
    tokenizer.save(path)
    return tokenizer


def device_batches(
    loader: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.NamedSharding
) -> Iterator[dict[str, jax.Array]]:
    """Global arrays from every host's share of the batch."""
    for batch in loader:
        yield {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()
        }


def train(config: ConfigDict, workdir: Path | str) -> TrainState:
    """Runs the config to its last step, continuing where an earlier run of it stopped.

    Args:
      config: an experiment, see configs/.
      workdir: receives config.json, tokenizer.model, metrics.jsonl, tensorboard/, checkpoints/.

    Returns:
      The final state.

    Raises:
      UserError: if the config, the data or the workdir do not fit together.
    """
    workdir = Path(workdir)
    first_process = jax.process_index() == 0
    prepare_workdir(config, workdir)
    tokenizer = workdir_tokenizer(config, workdir)
    mesh = make_mesh(config.mesh)
    setup = make_setup(config, tokenizer.vocab_size, mesh)
    state = init_state(config, tokenizer.vocab_size, setup)
    log.info("%s", describe(setup.shapes.params, setup.shardings.params))

    saves = ckpt.Checkpoints(
        workdir, every_steps=config.train.save_every_steps, keep=config.train.keep
    )
    loader = train_loader(
        config.data,
        tokenizer,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    if saves.latest_step is None:
        state, taken = init_from(state, config.init_from)
        if taken:
            log.info("%d parameters from %s", len(taken), config.init_from.workdir)
    else:
        state, position = saves.restore(setup.shapes, setup.shardings)
        loader.set_state(position)
        log.info("resuming at step %d", int(state.step))

    first = int(state.step)
    steps = config.train.steps
    written = names_at(workdir, first)
    writer = MetricWriter(workdir, first_step=first, enabled=first_process)
    evaluator = make_evaluator(config, setup, tokenizer)
    step_fn = jit_train_step(config, setup, batch_sharding(mesh))
    batches = device_batches(loader, batch_sharding(mesh))
    data_fingerprint = open_source(config.data.dir, config.data.train_split).fingerprint
    metadata = ckpt.run_metadata(config, data_fingerprint, tokenizer.fingerprint)
    bar = tqdm(
        total=steps,
        initial=first,
        desc=config.name,
        unit="step",
        disable=not first_process,
        mininterval=0.5,
        file=sys.stderr,
    )
    clock, clock_step = time.perf_counter(), first
    pending: tuple[int, Any] | None = None

    def report(now: tuple[int, Any] | None) -> None:
        """Fetches and writes the metrics of an earlier step, which by now is computed."""
        nonlocal clock, clock_step
        if now is None:
            return
        step, metrics = now
        values = {f"train/{name}": value for name, value in jax.device_get(metrics).items()}
        spent = time.perf_counter() - clock
        if step > clock_step:
            rate = (step - clock_step) / spent
            values["perf/steps_per_second"] = rate
            values["perf/clips_per_second"] = rate * config.data.batch_size
        clock, clock_step = time.perf_counter(), step
        writer.write(step, values)
        bar.set_postfix(loss=f"{float(values['train/loss']):.3f}")

    def evaluation_due(step: int) -> bool:
        every = config.eval.every_steps
        return evaluator is not None and (step == steps or bool(every and step % every == 0))

    def evaluate() -> None:
        """Evaluates the state as it is now; the time does not count as training."""
        nonlocal clock
        started = time.perf_counter()
        assert evaluator is not None
        writer.write(int(state.step), evaluator(state.eval_params))
        clock += time.perf_counter() - started

    # The order below is fixed: step, then the metrics of the step before (so that the host never
    # waits for the device), then the checkpoint, then evaluation. What is lost to a kill is made up
    # for on resuming: a checkpoint is written after the metrics of its step, and an evaluation that
    # its checkpoint outlived is done first.
    try:
        if first and evaluation_due(first) and not any(n.startswith("eval/") for n in written):
            evaluate()
        for step in range(first + 1, steps + 1):
            state, metrics = step_fn(state, next(batches))
            report(pending)
            due = step % config.train.log_every_steps == 0 or step == steps
            pending = (step, metrics) if due else None
            saving = step == steps or saves.due(step)
            if saving or evaluation_due(step):
                report(pending)
                pending = None
            if saving:
                saves.save(step, state, loader.get_state(), metadata, force=True)
            if evaluation_due(step):
                evaluate()
            bar.update()
    finally:
        bar.close()
        saves.close()
        writer.close()
        loader.close()
    return state


def main(argv: Sequence[str] | None = None) -> int:
    """The verb `alm train`."""
    args = parse_train_argv(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(args.config, args.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm train"))
