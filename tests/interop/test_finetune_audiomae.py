"""An official pretrained AudioMAE, imported and fine-tuned on labels, by the verbs."""

import numpy as np
import pytest

from alm_jax import cli
from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.interop.checkpoint_files import write_torch
from alm_jax.metrics import read_metrics
from tests.parity.audiomae_cases import heads_of, official

SIZES = dict(width=64, depth=2, mlp_dim=256)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    write_torch(folder / "pretrained.pth", official("plain").items(), ["model"])
    heads = [f"--config.{override}" for override in heads_of("plain")]
    output = folder / "pretrained"
    words = ["import", "--format=audiomae", f"--checkpoint={folder / 'pretrained.pth'}"]
    assert cli.main([*words, f"--output={output}", *heads]) == 0
    return output


def restored(workdir, step=None):
    saves = Checkpoints(workdir, read_only=True)
    params, _ = saves.restore_params(step)
    saves.close()
    return flat_names(params)


@pytest.mark.slow
def test_an_imported_encoder_is_fine_tuned(pretrained, tiny_dataset, tmp_path):
    """The published way to AudioMAE's numbers would end in an error, or start from noise."""
    (tmp_path / "classes.txt").write_text("acoustic grand piano\nwoodblock\nflute\nhelicopter\n")
    heads = [o for o in heads_of("plain") if o.startswith("model.audio.")]
    overrides = [
        *heads,
        *(f"model.audio.{name}={value}" for name, value in SIZES.items()),
        "model.classifier.classes=4",
        "model.dtype=float32",
        f"data.dir={tiny_dataset}",
        "data.labels=zeroshot_label",
        f"data.classes_file={tmp_path / 'classes.txt'}",
        "data.unlabelled=drop",
        "data.eval_split=",
        "data.batch_size=2",
        "train.steps=2",
        "train.save_every_steps=1",
        "train.log_every_steps=1",
        "train.keep=2",
        "optim.warmup_steps=1",
        f"init_from.workdir={pretrained}",
    ]
    workdir = tmp_path / "run"
    words = ["train", "--config=audiomae:finetune", f"--workdir={workdir}"]
    assert cli.main([*words, *(f"--config.{o}" for o in overrides)]) == 0
    losses = [line["train/classification_loss"] for line in read_metrics(workdir / "metrics.jsonl")]
    # The head's first weights are so small that every class begins at a chance of one half.
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3) and len(losses) == 2
    before, first, last = restored(pretrained), restored(workdir, 1), restored(workdir, 2)
    names = [name for name in first if name.startswith("audio.")]
    assert len(names) > 15
    for name in names:  # the rate of the first step is 0
        np.testing.assert_array_equal(first[name], before[name], err_msg=name)
    moved = [name for name in first if (first[name] != last[name]).any()]
    assert "audio.transformer.blocks.mlp.up.kernel" in moved
    assert "classifier.predict.kernel" in moved
    dropped = before.keys() - first.keys()
    assert {"audio.norm.scale", "audio.norm.bias"} <= dropped  # replaced by the classifier's own
