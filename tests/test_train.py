"""The train loop itself, on real sound: both stages of the quickstart, shrunk.

The data are OpenSounds' tiny tier. Programs are compiled with little optimisation and cached over
the runs of this file, since what is tested does not depend on it.
"""

import contextlib
import json
import logging

import jax
import numpy as np
import pytest

import alm_jax.train as train_module
from alm_jax.checkpoints import Checkpoints
from alm_jax.config import read_config
from alm_jax.errors import UserError
from alm_jax.metrics import read_metrics
from alm_jax.train import prepare_workdir, train, workdir_tokenizer
from input_pipeline.loader import TrainLoader
from input_pipeline.text import FILE_NAME
from tests.small_configs import stage1, stage2

STEPS = 16
LENGTH = [f"train.steps={STEPS}", "train.save_every_steps=8", "train.log_every_steps=1"]


@pytest.fixture(scope="module")
def mae_config(tiny_dataset):
    return stage1(f"data.dir={tiny_dataset}", *LENGTH, "optim.lr=5e-3", "augment.gain_db=6.0")


@pytest.fixture(scope="module")
def clap_config(tiny_dataset, mae):
    return stage2(
        f"data.dir={tiny_dataset}",
        *LENGTH,
        # Few clips, seen four times: whether the loss falls does not hang on luck.
        "data.train_split=train[:32]",
        "data.eval_split=validation[:20]",
        "eval.batch_size=8",
        "eval.bucket_seconds=(1.0,)",
        "eval.every_steps=8",
        "train.keep=9",
        "optim.lr=5e-3",
        "optim.ema_decay=0.9",
        "model.text.dropout=0.1",
        "masking.ratio=0.25",
        f"init_from.workdir={mae.workdir}",
        f"tokenizer.path={mae.workdir / FILE_NAME}",
    )


class Run:
    """What a finished run leaves."""

    def __init__(self, workdir, state):
        self.workdir = workdir
        self.state = jax.tree.map(np.asarray, state)

    def lines(self):
        """The metrics, without the speed of the machine."""
        return [
            {name: value for name, value in line.items() if not name.startswith("perf/")}
            for line in read_metrics(self.workdir / "metrics.jsonl")
        ]

    def curve(self, name):
        return np.array([line[name] for line in self.lines() if name in line])


class Log(logging.Handler):
    """Names of the functions that JAX traces and compiles."""

    def __init__(self):
        super().__init__()
        self.found = []

    def emit(self, record):
        message = record.getMessage()
        if message.startswith(("Finished tracing", "Compiling")):
            self.found.append(message)


@contextlib.contextmanager
def batches(before):
    """Calls before(n) when the loop asks for its n-th batch, counted from 1."""
    count = 0
    fetch = TrainLoader.__next__

    def counted(self):
        nonlocal count
        count += 1
        before(count)
        return fetch(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainLoader, "__next__", counted)
        yield


class Killed(BaseException):
    """Raised where a run is cut off; no handler of the package may catch it."""


def kill_at(number):
    def before(count):
        if count == number:
            raise Killed

    return batches(before)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def mae_log():
    return {}


@pytest.fixture(scope="module")
def mae(mae_config, mae_log, tmp_path_factory):
    """Stage 1, run through; notes on the way what JAX compiles and transfers."""
    workdir = tmp_path_factory.mktemp("mae")
    handler = Log()
    logger = logging.getLogger("jax")

    def before(count):
        mae_log[count] = len(handler.found)
        if count == 2:  # the first step is compiled, its constants are transferred
            jax.config.update("jax_transfer_guard", "disallow")

    logger.addHandler(handler)
    try:
        with batches(before), jax.log_compiles():
            state = train(mae_config, workdir)
        mae_log["messages"] = handler.found
    finally:
        jax.config.update("jax_transfer_guard", "allow")
        logger.removeHandler(handler)
    return Run(workdir, state)


@pytest.fixture(scope="module")
def clap(clap_config, tmp_path_factory):
    """Stage 2 from stage 1, run through."""
    workdir = tmp_path_factory.mktemp("clap")
    return Run(workdir, train(clap_config, workdir))


def test_stage_1_learns(mae):
    """The shipped command would burn hours without learning."""
    loss = mae.curve("train/reconstruction_loss")
    assert len(loss) == STEPS
    assert loss[-5:].mean() < 0.9 * loss[:5].mean()
    np.testing.assert_array_equal(loss, mae.curve("train/loss"))


@pytest.mark.slow
def test_stage_2_learns_both_objectives(clap):
    """As above; a captioning weight of nothing, or towers that get no gradient."""
    for name in ("train/contrastive_loss", "train/captioning_loss"):
        loss = clap.curve(name)
        assert loss[-5:].mean() < 0.9 * loss[:5].mean(), name
    split = "eval/validation[:20]"
    loss = clap.curve(f"{split}/loss")
    assert len(loss) == STEPS / 8
    assert {f"{split}/contrastive_loss", f"{split}/audio_to_text/R@1"} <= clap.lines()[-1].keys()


def test_no_compilation_after_the_first_step(mae, mae_log):
    """Each step would stop for seconds, or every save.

    The fixture forbids implicit transfers between host and device from the second step on, too.
    """
    assert any("train_step" in message for message in mae_log["messages"])
    # When the loop asks for its third batch, step and first save are behind it.
    later = mae_log["messages"][mae_log[3] :]
    assert not later


def test_metrics_are_one_object_a_line_with_a_step(mae):
    """Plotting scripts read the file line by line."""
    lines = (mae.workdir / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["step"] for line in found] == list(range(1, STEPS + 1))
    named = {"train/loss", "train/reconstruction_loss", "train/grad_norm", "train/update_norm"}
    assert all(named <= line.keys() for line in found)
    assert all(line["perf/clips_per_second"] > 0 for line in found)


def test_killed_between_two_saves_stage_1_resumes_bitwise(mae, mae_config, tmp_path):
    """Results would depend on how often a job was preempted."""
    with kill_at(13), pytest.raises(Killed):
        train(mae_config, tmp_path)
    # Steps that no checkpoint holds are taken again, and stand in the metrics once.
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 11
    again = Run(tmp_path, train(mae_config, tmp_path))
    same(again.state, mae.state)
    assert again.lines() == mae.lines()


@pytest.mark.slow
def test_killed_in_an_evaluation_stage_2_resumes_bitwise(clap, clap_config, tmp_path):
    """As above with a moving average, dropout and init_from.

    The evaluation of a checkpoint that was written before it would be missing, or the metrics of
    its step, which are fetched one step later.
    """

    def killed(params):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "make_evaluator", lambda *args: killed)
        with pytest.raises(Killed):
            train(clap_config, tmp_path)
    assert {line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")} == set(range(1, 9))
    again = Run(tmp_path, train(clap_config, tmp_path))
    same(again.state, clap.state)
    assert again.lines() == clap.lines()


def test_finished_run_is_left_alone(mae, mae_config):
    """Running a script again would train further, or touch what was published."""

    def contents():
        files = [path for path in mae.workdir.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in files if "tensorboard" not in path.parts}

    before = contents()
    with kill_at(1):
        same(jax.tree.map(np.asarray, train(mae_config, mae.workdir)), mae.state)
    assert contents() == before


@pytest.mark.slow
def test_stage_2_starts_from_the_encoder_of_stage_1(mae, clap):
    """Stage 1 would have been for nothing."""
    saves = Checkpoints(clap.workdir, read_only=True)
    # The rate of the first step is 0, the start of the warm-up.
    first, _ = saves.restore_params(step=1)
    last, _ = saves.restore_params()
    saves.close()
    same(first["audio"], mae.state.params["audio"])
    same(last, clap.state.ema)
    moved = jax.tree.map(lambda a, b: (a != b).any(), last["audio"], first["audio"])
    assert all(jax.tree.leaves(moved))


def test_another_config_in_the_workdir_is_refused(mae, mae_config):
    """Two experiments would be mixed in one curve."""
    config = mae_config.copy_and_resolve_references().unlock()
    config.optim.lr, config.seed = 1.0, 7
    with pytest.raises(UserError, match=r"(?s)differs in.*optim\.lr: 0\.005 -> 1\.0.*seed: 0 -> 7"):
        train(config, mae.workdir)
    assert read_config(mae.workdir / "config.json") == mae_config
    # A longer run, other hardware and other reading are still the same experiment.
    config = mae_config.copy_and_resolve_references().unlock()
    config.train.steps, config.mesh.fsdp, config.data.read_threads = 99, 2, 1
    prepare_workdir(config, mae.workdir)
    prepare_workdir(mae_config, mae.workdir)


def test_attempt_without_a_checkpoint_binds_to_nothing(mae, mae_config, tmp_path):
    """After a typing error in a path, the corrected command would need another workdir."""
    (tmp_path / FILE_NAME).write_bytes((mae.workdir / FILE_NAME).read_bytes())
    prepare_workdir(mae_config, tmp_path)
    assert (tmp_path / FILE_NAME).exists(), "a tokenizer laid there beforehand is used"
    config = mae_config.copy_and_resolve_references().unlock()
    config.tokenizer.vocab_size = 350
    config.data.train_split = "train[:200]"
    prepare_workdir(config, tmp_path)
    assert read_config(tmp_path / "config.json").tokenizer.vocab_size == 350
    assert workdir_tokenizer(config, tmp_path).vocab_size == 350
