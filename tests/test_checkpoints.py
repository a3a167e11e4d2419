"""Checkpoints: everything comes back, nothing half-written does."""

import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alm_jax import checksums
from alm_jax.checkpoints import Checkpoints, flat_names, run_metadata
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.train_state import TrainState

PARAMS = {
    "audio": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(3, "f4")},
    "logit_scale": np.float32(0.1),
}
OPTIMIZER = optax.adam(1e-3)


def state(step, ema=False):
    """A state in which every leaf says which step it is of."""
    params = jax.tree.map(lambda x: jnp.asarray(x + step), PARAMS)
    average = jax.tree.map(lambda x: x + 0.5, params) if ema else None
    return TrainState(jnp.asarray(step, jnp.int32), params, OPTIMIZER.init(params), average)


def save(saves, step, ema=False, **options):
    return saves.save(step, state(step, ema), {"next_step": step}, {"config_name": "x"}, **options)


def restore(saves, ema=False, step=None):
    shapes = jax.eval_shape(lambda: state(0, ema))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return saves.restore(shapes, jax.tree.map(lambda _: sharding, shapes), step)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("ema", [False, True], ids=["no average", "average"])
def test_everything_comes_back(tmp_path, ema):
    """A resumed run would go on with other moments, or read its data from the start."""
    saves = Checkpoints(tmp_path)
    assert save(saves, 7, ema)
    saves.close()
    saves = Checkpoints(tmp_path)
    restored, position = restore(saves, ema)
    equal(restored, state(7, ema))
    assert position == {"next_step": 7}
    saves.close()


@pytest.mark.parametrize("ema", [False, True], ids=["no average", "average"])
def test_evaluation_takes_the_average_where_there_is_one(tmp_path, ema):
    """`alm eval` and `alm export` would use other parameters than the run's own evaluation."""
    saves = Checkpoints(tmp_path)
    save(saves, 7, ema)
    saves.close()
    reader = Checkpoints(tmp_path, read_only=True)
    params, metadata = reader.restore_params()
    reader.close()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    equal(params, jax.tree.map(np.asarray, state(7, ema).eval_params))
    assert metadata == {"config_name": "x"}


def test_saves_when_due_and_keeps_the_last(tmp_path):
    """A disk would fill up, or a run of hours leave nothing behind."""
    saves = Checkpoints(tmp_path, every_steps=4, keep=2)
    saved = [step for step in range(1, 15) if save(saves, step, force=step == 14)]
    # The first too: a folder that cannot be written should fail at once.
    assert saved == [1, 4, 8, 12, 14]
    assert not save(saves, 14, force=True), "a step is saved once"
    saves.wait()
    assert saves.latest_step == 14
    saves.close()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"12", "14"}


def test_half_written_checkpoints_are_ignored(tmp_path):
    """A job killed while saving could not be resumed, or would resume from garbage."""
    saves = Checkpoints(tmp_path, keep=5)
    save(saves, 3)
    saves.close()
    folder = tmp_path / "checkpoints"
    # What orbax leaves behind when it is killed: the name is changed only at the very end.
    half = folder / "6.orbax-checkpoint-tmp"
    shutil.copytree(folder / "3", half)
    next(path for path in (half / "state").rglob("*") if path.is_file()).unlink()
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.latest_step == 3
    equal(reader.restore_params()[0], jax.tree.map(np.asarray, state(3).params))
    reader.close()
    saves = Checkpoints(tmp_path, keep=5)
    assert saves.latest_step == 3
    assert save(saves, 6), "the step that was cut short can be saved again"
    saves.close()
    reader = Checkpoints(tmp_path, read_only=True)
    equal(restore(reader)[0], state(6))
    reader.close()


def test_no_checkpoint_is_a_clear_error(tmp_path):
    """A user who evaluates before training would read a traceback of orbax."""
    (tmp_path / "checkpoints").mkdir()
    reader = Checkpoints(tmp_path, read_only=True)
    assert reader.latest_step is None
    with pytest.raises(UserError, match=r"holds no finished checkpoint. Train first: alm train"):
        reader.restore_params()
    reader.close()


@pytest.fixture
def small_files():
    """A disk that takes no more: files of at most 100 kB, which fails where a full one does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_is_told_and_costs_nothing(tmp_path, small_files):
    """A full disk would end a run with pages of stacks, or take the last checkpoint with it."""
    saves = Checkpoints(tmp_path)
    save(saves, 3)
    saves.wait()
    large = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal(200_000))}
    saves.save(4, state(4).replace(params=large), {"next_step": 4}, {}, force=True)
    with pytest.raises(UserError, match=r"could not be written to .*: File too large.*: step 3\."):
        saves.close()
    saves = Checkpoints(tmp_path)
    assert saves.latest_step == 3
    equal(restore(saves)[0], state(3))
    assert save(saves, 4), "with room again, the step can be saved"
    saves.close()
    assert os.listdir(tmp_path / "checkpoints") == ["4"]


def test_every_changed_byte_is_noticed(tmp_path):
    """A bit that a disk lost would be trained on: zarr and zstd read it as another number."""
    saves = Checkpoints(tmp_path, keep=5)
    save(saves, 3)
    save(saves, 6)
    saves.close()
    path = tmp_path / "checkpoints" / "6"
    files = [file for file in path.rglob("*") if file.is_file() and file.parent != path]
    assert {file.relative_to(path).parts[0] for file in files} == {"state", "loader", "metadata"}
    assert any("ocdbt.process_0/d" in str(file) for file in files)
    saves = Checkpoints(tmp_path, keep=5)
    for file in [path / checksums.FILE_NAME, *files]:
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 16
        for damaged in (bytes(flipped), whole[: len(whole) // 2]):
            file.write_bytes(damaged)
            name = file.relative_to(path)
            with pytest.raises(UserError, match=rf"{path} cannot be read \({name}.*from step 3"):
                restore(saves)
            with pytest.raises(UserError, match=str(name)):
                saves.restore_params()
        file.write_bytes(whole)
    equal(restore(saves)[0], state(6))
    file.unlink()
    with pytest.raises(UserError, match=r"is missing\)"):
        restore(saves)
    saves.close()
    # What the message says to do.
    path.rename(tmp_path / "damaged_6")
    saves = Checkpoints(tmp_path, keep=5)
    equal(restore(saves)[0], state(3))
    saves.close()


@pytest.mark.parametrize("damaged", ["state/manifest.ocdbt", "loader/metadata"])
def test_damaged_checkpoint_without_checksums(damaged, tmp_path):
    """A checkpoint of an earlier version could not be read, or would end in a stack of orbax."""
    saves = Checkpoints(tmp_path, keep=5)
    save(saves, 3)
    save(saves, 6)
    saves.close()
    path = tmp_path / "checkpoints" / "6"
    (path / checksums.FILE_NAME).unlink()
    saves = Checkpoints(tmp_path, keep=5)
    equal(restore(saves)[0], state(6))
    file = path / damaged
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    told = rf"checkpoint {path} cannot be read.*mv {path} {tmp_path}/damaged_6.*goes on from step 3"
    with pytest.raises(UserError, match=told):
        restore(saves)
    saves.close()


def test_names_and_metadata():
    """Import and export tables, and the checks of datasets, go by these names."""
    assert list(flat_names(PARAMS)) == ["audio.kernel", "audio.bias", "logit_scale"]
    assert flat_names(PARAMS)["logit_scale"] is PARAMS["logit_scale"]
    assert run_metadata(load_config("quickstart"), "abc", "def") == {
        "config_name": "quickstart",
        "dataset_fingerprint": "abc",
        "tokenizer_fingerprint": "def",
    }
