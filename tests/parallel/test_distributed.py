"""Jobs of two and four real processes on one machine, on real sound.

Compilation is all that takes time here; some of it is cached over the jobs.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from alm_jax.audio.augment import AugmentConfig
from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import save_config
from alm_jax.metrics import read_metrics
from tests.parallel.hosts import Job, Jobs
from tests.small_configs import stage1, stage2

pytestmark = pytest.mark.slow
STEPS = 6
SPLIT = "eval/validation[:22]"
# Sums run in another order on other numbers of processes. Observed in six steps: 5e-7.
TOLERANCE = dict(rtol=5e-6, atol=1e-6)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    jobs = Jobs(tmp_path_factory.mktemp("jobs"))
    yield jobs
    jobs.close()


def saved(config: ConfigDict, folder: Path) -> str:
    """The argument of `alm train` that names the config, without what takes long to compile."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.augment = ConfigDict(dataclasses.asdict(AugmentConfig()))
        if config.model.text is not None:
            # Of the two objectives, the one that needs the rows of all processes.
            config.model.caption_decoder = None
            del config.objectives.captioning
    save_config(config, folder / "config.json")
    return f"--config={folder / 'config.json'}"


def small(*parts: str) -> list[str]:
    sizes = ("width=16", "depth=1", "mlp_dim=32")
    return [f"model.{part}.{size}" for part in parts for size in sizes]


@pytest.fixture(scope="module")
def config(tiny_dataset: Path, tmp_path_factory) -> str:
    """Six steps of contrastive training, evaluated at the end."""
    found = stage2(
        *small("audio", "text"),
        f"data.dir={tiny_dataset}",
        "data.train_split=train[:40]",
        f"data.eval_split={SPLIT.removeprefix('eval/')}",
        "eval.batch_size=8",
        "eval.bucket_seconds=(1.0,)",
        "masking.ratio=0.25",
        f"train.steps={STEPS}",
        "train.save_every_steps=3",
        "train.keep=9",
        f"train.keep_best={SPLIT}/contrastive_loss",
        "train.log_every_steps=1",
    )
    return saved(found, tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def endless(tiny_dataset: Path, tmp_path_factory) -> str:
    """A masked autoencoder that is trained until somebody ends it."""
    found = stage1(
        *small("audio", "mae_decoder"),
        f"data.dir={tiny_dataset}",
        "data.train_split=train[:40]",
        "data.eval_split=",
        "train.steps=100000",
        "train.save_every_steps=100000",
        "train.log_every_steps=1",
        "optim.name=adamw",  # Muon takes long to compile
    )
    return saved(found, tmp_path_factory.mktemp("endless"))


def run(jobs: Jobs, config: str, workdir: Path, processes: int, *overrides: str) -> Path:
    jobs.train(processes, config, f"--workdir={workdir}", *overrides).succeed()
    return workdir


@pytest.fixture(scope="module")
def one(jobs, config, tmp_path_factory):
    return run(jobs, config, tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def two(jobs, config, tmp_path_factory):
    return run(jobs, config, tmp_path_factory.mktemp("two"), 2)


def numbers(workdir: Path) -> list[dict[str, float]]:
    """The metrics of every step, without the speed of the machine."""
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith("perf/")} for line in lines]


def same_numbers(a: Path, b: Path) -> None:
    assert len(numbers(a)) == len(numbers(b))
    for left, right in zip(numbers(a), numbers(b), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            np.testing.assert_allclose(right[name], value, err_msg=name, **TOLERANCE)


def last_parameters(workdir: Path) -> dict[str, np.ndarray]:
    """Of the newest checkpoint; of a run's `best`, the best."""
    saves = Checkpoints(workdir, read_only=True)
    try:
        return flat_names(saves.restore_params()[0])
    finally:
        saves.close()


def test_two_processes_train_and_evaluate_like_one(one, two):
    """A pod would train something else than a laptop.

    Other batches, losses over one host's rows, or an evaluation that counts padding or some clips.
    """
    same_numbers(one, two)
    last = numbers(two)[-1]
    assert {f"{SPLIT}/contrastive_loss", f"{SPLIT}/audio_to_text/R@1"} <= last.keys()
    other = last_parameters(two)
    for name, value in last_parameters(one).items():
        # A key's bias changes no attention: its gradient is rounding noise, which Adam enlarges.
        if not name.endswith("key.bias"):
            np.testing.assert_allclose(other[name], value, rtol=0, atol=1e-5, err_msg=name)


def test_only_the_first_process_writes(one, two):
    """Two processes that write one file leave garbage in it."""
    assert len(list((two / "tensorboard").iterdir())) == 1
    written = {path.name for path in two.iterdir()}
    assert written == {path.name for path in one.iterdir()}
    assert (two / "config.json").read_text() == (one / "config.json").read_text()
    assert (two / "tokenizer.model").read_bytes() == (one / "tokenizer.model").read_bytes()


def test_the_best_of_two_processes_is_that_of_one(one, two):
    """The processes would disagree on what is best, and hang or save halves of it."""
    records = [json.loads((run / "best" / "best.json").read_text()) for run in (one, two)]
    assert records[0]["step"] == records[1]["step"] == STEPS
    np.testing.assert_allclose(records[1]["value"], records[0]["value"], **TOLERANCE)
    best, last = last_parameters(two / "best"), last_parameters(two)
    assert best.keys() == last.keys()
    for name, value in last.items():
        np.testing.assert_array_equal(best[name], value, err_msg=name)


def test_four_processes_go_on_where_two_stopped(one, two, jobs, config, tmp_path):
    """A run could not move to a larger slice, or would lose its place in the data."""
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / str(STEPS))
    run(jobs, config, tmp_path, 4, "--config.mesh.data=2", "--config.mesh.fsdp=2")
    same_numbers(one, tmp_path)


def reaches(workdir: Path, step: int, job: Job) -> None:
    """Waits until a job has written the metrics of a step."""
    path = workdir / "metrics.jsonl"
    end = time.monotonic() + 600
    while time.monotonic() < end:
        if path.exists() and any(line["step"] >= step for line in read_metrics(path)):
            return
        time.sleep(0.1)
    pytest.fail(f"step {step} was not reached:\n{job.log(0)}")


@pytest.fixture(scope="module")
def preempted(jobs, endless, tmp_path_factory):
    """Workdir of a job of two of which one got SIGTERM, and the job."""
    workdir = tmp_path_factory.mktemp("preempted")
    job = jobs.train(2, endless, f"--workdir={workdir}", devices=2)
    reaches(workdir, 4, job)
    job.signal(1, signal.SIGTERM)
    return workdir, job.succeed()


def test_sigterm_on_one_host_saves_on_all(preempted):
    """A spot pod that goes away would lose the work since the last checkpoint."""
    workdir, job = preempted
    last = numbers(workdir)[-1]["step"]
    saves = Checkpoints(workdir, read_only=True)
    assert saves.latest_step == last
    saves.close()
    assert f"step {last} of 100000 is saved in {workdir}; the same command goes on" in job.log(0)


def test_sigterm_on_a_single_machine_saves(jobs, endless, tmp_path):
    """A laptop that shuts down, or `kill`, would lose the work since the last checkpoint."""
    job = jobs.train(1, endless, f"--workdir={tmp_path}")
    reaches(tmp_path, 2, job)
    job.signal(0, signal.SIGTERM)
    job.succeed()
    last = numbers(tmp_path)[-1]["step"]
    assert f"step {last} of 100000 is saved" in job.log(0)
    assert (tmp_path / "checkpoints" / str(last)).is_dir()


@pytest.mark.parametrize("dies", [0, 1])
def test_the_others_stop_when_a_host_dies(dies, preempted, jobs, endless, tmp_path):
    """A pod would stand still, and be paid for, until someone looks."""
    shutil.copytree(preempted[0], tmp_path, dirs_exist_ok=True)
    start = numbers(tmp_path)[-1]["step"]
    # With several devices a process, the collective does not notice by itself.
    job = jobs.train(2, endless, f"--workdir={tmp_path}", devices=2)
    reaches(tmp_path, start + 2, job)
    job.signal(dies, signal.SIGKILL)
    assert job.wait(1 - dies, 60) != 0
    message = job.log(1 - dies)
    assert "and so do the others" in message or "another task died" in message


def test_killed_at_any_moment_one_process_repeats_itself(jobs, config, one, tmp_path):
    """Results would depend on when a spot machine was taken away.

    Every step is saved, so that a kill meets a save under way.
    """
    often = "--config.train.save_every_steps=1"
    for step in (2, 4):
        job = jobs.train(1, config, f"--workdir={tmp_path}", often)
        reaches(tmp_path, step, job)
        job.signal(0, signal.SIGKILL)
        assert job.wait(0, 60) == -signal.SIGKILL, "it had ended before it was killed"
    run(jobs, config, tmp_path, 1, often)
    assert numbers(tmp_path) == numbers(one)
    for name, value in last_parameters(one).items():
        np.testing.assert_array_equal(last_parameters(tmp_path)[name], value, err_msg=name)


def test_all_processes_stop_at_the_same_bad_step(jobs, endless, tmp_path):
    """One would go on, or all would save what is not a number."""
    wild = ["--config.optim.lr=1e38", "--config.train.save_every_steps=1"]
    job = jobs.train(2, endless, f"--workdir={tmp_path}", *wild)
    assert [job.wait(number, 120) for number in (0, 1)] == [2, 2]
    first, second = (re.search(r"step (\d+): .* not finite", job.log(n)) for n in (0, 1))
    assert first and second
    assert first[0] == second[0]
    saves = Checkpoints(tmp_path, read_only=True)
    assert saves.latest_step == int(first[1]) - 1
    saves.close()
    found = json.loads((tmp_path / "nonfinite" / f"step_{first[1]}.json").read_text())
    assert len(found["examples"]) == 8, "those of both processes"


def test_an_error_of_the_first_process_is_told_on_all(jobs, config, two):
    """The others would wait for a process that has ended with a message."""
    job = jobs.train(2, config, f"--workdir={two}", "--config.seed=9")
    assert [job.wait(number, 60) for number in (0, 1)] == [2, 2]
    for number in (0, 1):
        assert "seed: 0 -> 9" in job.log(number)
