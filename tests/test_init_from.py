"""Parameters taken over from another run."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import save_config
from alm_jax.errors import UserError
from alm_jax.init_from import init_from
from alm_jax.train_state import TrainState


def params(start, width=3, **parts):
    """Every number differs from that of another `start`."""
    audio = {"embed": {"kernel": start + np.arange(2.0 * width).reshape(2, width)}}
    audio["norm"] = {"scale": start + np.arange(1.0 * width)}
    tree = {"audio": audio, **{name: {"bias": np.full(2, start)} for name in parts}}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def state(tree, ema=None):
    return TrainState(jnp.zeros((), jnp.int32), tree, {"count": jnp.zeros(())}, ema)


def workdir(folder, tree, ema=None):
    saves = Checkpoints(folder)
    saves.save(1, state(tree, ema), {"next_step": 1}, {}, force=True)
    saves.close()
    return folder


def take(tree, folder, parts=("audio",), ema=None):
    return init_from(state(tree, ema), ConfigDict(dict(workdir=str(folder), parts=parts)))


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_named_parts_are_copied_and_nothing_else(tmp_path):
    """Stage 2 would start from a random encoder, or lose its own text tower."""
    old, new = params(100.0, mae_decoder=1), params(0.0, text=1)
    given, names = take(new, workdir(tmp_path, old), ema=new)
    assert names == ["audio.embed.kernel", "audio.norm.scale"]
    equal(given.params, {"audio": old["audio"], "text": new["text"]})
    # Otherwise the average would remember the random start.
    equal(given.ema, given.params)
    assert (
        flat_names(given.params)["audio.norm.scale"].sharding
        == new["audio"]["norm"]["scale"].sharding
    )


def test_the_average_is_taken_where_the_other_run_has_one(tmp_path):
    """Stage 2 would start from other parameters than those whose results were reported."""
    old, average = params(100.0), params(200.0)
    given, _ = take(params(0.0), workdir(tmp_path, old, average))
    equal(given.params, average)
    assert given.ema is None


def test_no_workdir_means_nothing_is_taken():
    """Training from scratch would be impossible."""
    before = state(params(0.0))
    after, names = init_from(before, ConfigDict(dict(workdir="", parts=("audio",))))
    assert after is before
    assert names == []


def test_what_does_not_fit_is_named(tmp_path):
    """Half of an encoder would stay random, which nothing but the result would show."""
    folder = workdir(tmp_path, params(100.0, mae_decoder=1))
    with pytest.raises(
        UserError, match=r"(?s)kernel is \(2, 3\) in .* but \(2, 4\) here.*Give the same"
    ):
        take(params(0.0, width=4), folder)
    lacking = params(0.0)
    del lacking["audio"]["norm"]
    with pytest.raises(UserError, match=r"audio\.norm\.scale is only in"):
        take(lacking, folder)
    more = params(0.0)
    more["audio"]["pool"] = {"query": jnp.zeros(3)}
    with pytest.raises(UserError, match=r"audio\.pool\.query is missing in"):
        take(more, folder)
    with pytest.raises(UserError, match=r"no part named any of \('adio',\)"):
        take(params(0.0), folder, parts=("adio",))


def test_part_that_neither_run_has_is_named(tmp_path):
    """One right name would hide that the other is a typing error."""
    folder = workdir(tmp_path, params(100.0))
    with pytest.raises(UserError, match=r"no part named any of \('txt',\)"):
        take(params(0.0), folder, parts=("audio", "txt"))


def test_missing_workdir_is_named(tmp_path):
    """A typing error in the path would be a traceback of orbax, after the model was built."""
    with pytest.raises(UserError, match=r"init_from\.workdir=.*nowhere: there is no .*checkpoints"):
        take(params(0.0), tmp_path / "nowhere")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"holds no finished checkpoint"):
        take(params(0.0), tmp_path)


def test_what_is_skipped_stays(tmp_path):
    """A fine-tuned model without the encoder's last norm could not start from a pretrained one."""
    old, new = params(100.0), params(0.0, classifier=1)
    del new["audio"]["norm"]
    folder = workdir(tmp_path, old)
    config = dict(workdir=str(folder), parts=("audio",))
    with pytest.raises(UserError, match=r"audio\.norm\.scale is only in"):
        init_from(state(new), ConfigDict(config))
    with pytest.raises(UserError, match=r"init_from\.skip: '\(' is no regular expression"):
        init_from(state(new), ConfigDict(config | {"skip": ("(",)}))
    given, names = init_from(state(new), ConfigDict(config | {"skip": (r"^audio\.norm\.",)}))
    assert names == ["audio.embed.kernel"]
    equal(given.params["audio"]["embed"], old["audio"]["embed"])
    equal(given.params["classifier"], new["classifier"])


def test_parts_of_several_workdirs(tmp_path):
    """A model with a pretrained encoder and a pretrained text tower could take only one of them."""
    audio, text = params(100.0), {"text": {"bias": jnp.full(2, 7.0)}}
    folders = [workdir(tmp_path / "a", audio), workdir(tmp_path / "b", text)]
    both = ",".join(map(str, folders))
    given, names = take(params(0.0, text=1), both, parts=("audio", "text"))
    equal(given.params, {"audio": audio["audio"], "text": text["text"]})
    assert "text.bias" in names
    with pytest.raises(UserError, match=r"text\.bias is missing"):
        take(params(0.0, text=1), folders[0], parts=("audio", "text"))
    # What does not fit is in the first of them, not in the last that was read.
    with pytest.raises(UserError, match=rf"\(2, 3\) in {re.escape(str(folders[0]))} but \(2, 4\)"):
        take(params(0.0, width=4, text=1), both, parts=("audio", "text"))


def test_other_heads_are_no_silent_load(tmp_path):
    """Shapes fit for any number of heads; the encoder would compute something else."""
    folder = workdir(tmp_path, params(100.0))
    sizes = ConfigDict({"audio": {"heads": 4, "eps": 1e-6, "dropout": 0.1}})
    save_config(ConfigDict({"model": sizes}), folder / "config.json")
    config = ConfigDict(dict(workdir=str(folder), parts=("audio",)))
    other = ConfigDict({"audio": {"heads": 8, "eps": 1e-6, "dropout": 0.0}})
    with pytest.raises(UserError, match=r"model\.audio\.heads is 4 in .* but 8 here"):
        init_from(state(params(0.0)), config, other)
    other.audio.heads = 4
    assert init_from(state(params(0.0)), config, other)[1]
