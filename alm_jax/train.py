"""Trains any system from a config: alm train --config=configs/X.py --workdir=DIR.

The only train loop: every stage and system runs through `train`, from a laptop to a pod. Running
the same command again resumes from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from alm_jax import checkpoints as ckpt
from alm_jax import cli
from alm_jax.best_checkpoint import BestCheckpoint
from alm_jax.config import parse_train_argv, read_config, save_config
from alm_jax.config_defaults import differences
from alm_jax.errors import UserError
from alm_jax.evaluators.in_training import make_evaluator
from alm_jax.guards import Guard
from alm_jax.health import Health
from alm_jax.init_from import init_from
from alm_jax.metrics import MetricWriter, names_at
from alm_jax.parallel import distributed, preemption
from alm_jax.parallel.mesh import batch_sharding, make_mesh
from alm_jax.parallel.sharding import describe, whole_parameters
from alm_jax.parallel.watchdog import Watchdog
from alm_jax.run_labels import run_labels
from alm_jax.train_state import TrainState, init_state, make_setup
from alm_jax.train_step import jit_train_step
from input_pipeline.labels import CLASSES_NAME
from input_pipeline.loader import train_loader
from input_pipeline.loader_config import LoaderConfig
from input_pipeline.text import FILE_NAME, Tokenizer

log = logging.getLogger("alm_jax")


# What may change from one start of a run to the next: its length, and what it runs on.
_FREE = ("train.", "data.num_workers", "data.read_threads", "mesh.", "distributed.")


def prepare_workdir(config: ConfigDict, workdir: str | os.PathLike[str]) -> None:
    """Saves the resolved config, or checks that the workdir was made by the same one.

    A run that ended before its first checkpoint, say because a path in its config was wrong, leaves
    nothing to continue, so it may be started again with any config.

    Raises:
      UserError: if the workdir holds a run of a config that differs in more than its length, and
        in more than fields which its version did not have and which have their default.
    """
    folder = epath.Path(workdir)
    path = folder / "config.json"
    if path.exists():
        changed = [
            line for line in differences(read_config(path), config) if not line.startswith(_FREE)
        ]
        if changed and ckpt.latest_step(workdir) is not None:
            raise UserError(
                f"{workdir} holds a run of another config; it differs in\n  "
                + "\n  ".join(changed)
                + "\nGive another --workdir, or the config that the run was started with."
            )
        if changed:
            # Made by the config of before, perhaps from other captions or of another size.
            for name in (FILE_NAME, CLASSES_NAME):
                (folder / name).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, path)


def workdir_tokenizer(config: ConfigDict, workdir: str | os.PathLike[str]) -> Tokenizer:
    """The run's tokenizer: the workdir's own, or the config's, or one trained on the captions."""
    path = epath.Path(workdir) / FILE_NAME
    if path.exists():
        return Tokenizer.load(path)
    if config.tokenizer.path:
        tokenizer = Tokenizer.load(config.tokenizer.path)
    else:
        opened = LoaderConfig.create(config.data).open_training()
        tokenizer = Tokenizer.train(
            itertools.chain.from_iterable(source.captions() for source in opened),
            config.tokenizer.vocab_size,
            model_type=config.tokenizer.model_type,
            character_coverage=config.tokenizer.character_coverage,
        )
        log.info("tokenizer: %d pieces trained on the training captions", tokenizer.vocab_size)
    tokenizer.save(path)
    return tokenizer


def _prepare(config: ConfigDict, workdir: epath.Path) -> Tokenizer:
    """Makes the workdir on the first process; the run's tokenizer on every one."""

    def prepare() -> bytes:
        prepare_workdir(config, workdir)
        return workdir_tokenizer(config, workdir).model_proto

    return Tokenizer.parse(distributed.from_first(prepare), origin=os.fspath(workdir / FILE_NAME))


def device_batches(
    loader: Iterator[dict[str, np.ndarray]], sharding: jax.sharding.NamedSharding
) -> Iterator[dict[str, jax.Array]]:
    """Global arrays from every host's share of the batch."""
    for batch in loader:
        yield {
            name: jax.make_array_from_process_local_data(sharding, value)
            for name, value in batch.items()
        }


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> TrainState:
    """Runs the config to its last step, continuing where an earlier run of it stopped.

    Args:
      config: an experiment, see configs/.
      workdir: receives config.json, tokenizer.model, metrics.jsonl, tensorboard/, checkpoints/;
        a folder that all processes see, or a bucket's `gs://...` or `s3://...`.

    Returns:
      The final state.

    Raises:
      UserError: if the config, the data or the workdir do not fit together.
      Preempted: if the machine was about to go away; the state is saved.
    """
    workdir = epath.Path(workdir)
    first_process = jax.process_index() == 0
    tokenizer = _prepare(config, workdir)
    labels = run_labels(config, workdir)
    mesh = make_mesh(config.mesh)
    rows = batch_sharding(mesh)
    share, shares = distributed.row_share(rows, config.data.batch_size)
    setup = make_setup(config, tokenizer.vocab_size, mesh)
    state = init_state(config, tokenizer.vocab_size, setup)
    log.info("%s", describe(setup.shapes.params, setup.shardings.params))
    if (whole := whole_parameters(setup.shapes.params, setup.shardings.params)) and first_process:
        log.warning("%s", whole)

    saves = ckpt.Checkpoints(
        workdir, every_steps=config.train.save_every_steps, keep=config.train.keep
    )
    loader = train_loader(
        config.data,
        tokenizer,
        seed=config.seed,
        process_index=share,
        process_count=shares,
        labels=labels,
    )
    if saves.latest_step is None:
        state, taken = init_from(state, config.init_from, config.model)
        if taken:
            log.info("%d parameters from %s", len(taken), config.init_from.workdir)
    else:
        state, position = saves.restore(setup.shapes, setup.shardings)
        loader.set_state(position)
        log.info("resuming at step %d", int(state.step))

    first = int(state.step)
    steps = config.train.steps
    # A run without a checkpoint begins anew, whatever a start before it wrote. Otherwise the first
    # process is the only one to know: the file is its own.
    evaluated = first > 0 and distributed.from_first(
        lambda: b"yes" if any(n.startswith("eval/") for n in names_at(workdir, first)) else b""
    )
    writer = MetricWriter(workdir, first_step=first, enabled=first_process)
    evaluator = make_evaluator(config, setup, tokenizer, labels.classes if labels else ())
    guard = Guard(config, workdir, setup.shapes.params, saves.latest_written)
    health = Health(config, first)
    step_fn = jit_train_step(config, setup, rows)
    batches = device_batches(loader, rows)
    opened = LoaderConfig.create(config.data).open_training()
    data_fingerprint = "+".join(source.fingerprint for source in opened)
    metadata = ckpt.run_metadata(config, data_fingerprint, tokenizer.fingerprint)
    best = BestCheckpoint(config, workdir, metadata, resumed=saves.latest_step is not None)
    bar = tqdm(
        total=steps,
        initial=first,
        desc=config.name,
        unit="step",
        disable=not first_process,
        mininterval=0.5,
        file=sys.stderr,
    )
    watchdog = Watchdog(config.train.stall_seconds)
    clock, clock_step = time.perf_counter(), first
    pending: tuple[int, Any, jax.Array] | None = None
    stopped = False

    def report(now: tuple[int, Any, jax.Array] | None) -> None:
        """Looks at an earlier step, which by now is computed, and writes its metrics if due."""
        nonlocal clock, clock_step
        if now is None:
            return
        step, metrics, example_id = now
        guard.check(step, metrics, example_id)
        due = step % config.train.log_every_steps == 0 or step == steps
        if not (due or step == first + 1):
            return
        values = {f"train/{name}": value for name, value in jax.device_get(metrics).items()}
        health.see(step, values)
        if not due:
            return
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
        watchdog.beat(f"the evaluation at step {int(state.step)}")
        assert evaluator is not None
        scalars = evaluator(state.eval_params)
        best.see(state, scalars)  # before the metrics: a kill in between evaluates once more
        writer.write(int(state.step), scalars)
        clock += time.perf_counter() - started

    # The order below is fixed: step, then the metrics of the step before (so that the host never
    # waits for the device), then the checkpoint, then evaluation. What is lost to a kill is made up
    # for on resuming: a checkpoint is written after the metrics of its step, and an evaluation that
    # its checkpoint outlived is done first.
    try:
        with distributed.fails_together():
            # With a best checkpoint, the start is measured too: a misspelt metric shows at once.
            if (evaluation_due(first) if first else best.metric) and not evaluated:
                evaluate()
            for step in range(first + 1, steps + 1):
                watchdog.beat(f"step {step}")
                batch = next(batches)
                state, metrics = step_fn(state, batch)
                report(pending)
                pending = (step, metrics, batch["example_id"])
                stopped = preemption.requested(step) and step < steps
                saving = stopped or step == steps or saves.due(step)
                if saving or evaluation_due(step):
                    report(pending)
                    pending = None
                if saving:
                    writer.flush()
                    saves.save(step, state, loader.get_state(), metadata, force=True)
                if stopped:
                    break
                if evaluation_due(step):
                    evaluate()
                bar.update()
            watchdog.beat("writing the last checkpoint")
            saves.wait()
    finally:
        with contextlib.ExitStack() as closing:
            for part in (loader, writer, saves, bar, watchdog):  # the last one first
                closing.callback(part.close)
    if stopped:
        raise preemption.Preempted(
            f"stopped as told: step {int(state.step)} of {steps} is saved in {workdir}; the same "
            "command goes on from there"
        )
    return state


def main(argv: Sequence[str] | None = None) -> int:
    """The verb `alm train`."""
    args = parse_train_argv(argv)
    with _messages(), distributed.fails_together():
        distributed.connect(args.config.distributed)
        if jax.process_index():
            log.setLevel(logging.WARNING)
        with preemption.listening():
            try:
                train(args.config, args.workdir)
            except preemption.Preempted as notice:
                log.info("%s", notice)
                # For schedulers that would take 0 for the end of the run (launch/host.py).
                return int(os.environ.get("ALM_PREEMPTED_STATUS", "0"))
    return 0


@contextlib.contextmanager
def _messages() -> Iterator[None]:
    """Shows what this package logs; a library has set up the root logger by now, for warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before[0])
        log.propagate = before[1]


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm train"))
