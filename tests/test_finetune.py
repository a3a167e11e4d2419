"""Fine-tuning and linear probe of the shipped config, shrunk, on real sounds and their labels."""

import jax
import numpy as np
import pytest

import alm_jax
from alm_jax.checkpoints import Checkpoints, flat_names
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.metrics import read_metrics
from alm_jax.run_labels import run_labels
from alm_jax.train import train
from input_pipeline.labels import read_labels
from input_pipeline.sources import open_source
from tests.model_fixtures import mae_workdir

NAMES = ("acoustic grand piano", "woodblock", "flute", "helicopter")
STEPS = 16
SPLIT = "eval/train[:240]"


def shrunk(spec, dataset, depth=1, **changed):
    """Four instruments, a narrow encoder, a few steps."""
    sizes = dict(width=32, depth=depth, heads=2, mlp_dim=64, unroll=1)
    config = load_config(
        spec,
        [
            f"data.dir={dataset}",
            *(f"model.audio.{name}={value}" for name, value in sizes.items()),
            "model.classifier.classes=4",
            "data.batch_size=16",
            "data.max_seconds=1.0",
            # Seen in training, so that a few steps show whether labels are learned at all.
            "data.eval_split=train[:240]",
            "eval.batch_size=4",
            "eval.bucket_seconds=(1.0,)",
            f"train.steps={STEPS}",
            "train.save_every_steps=8",
            "train.log_every_steps=1",
            "eval.every_steps=0",
            "optim.warmup_steps=1",
            *(f"{key}={value}" for key, value in changed.items()),
        ],
    )
    config.unlock()
    config.data.classes = NAMES
    return config


def test_classes_are_there_whenever_labels_are(tiny_dataset, tmp_path):
    """A run that is started again with another rate would leave a model without class names."""
    config = shrunk("opensounds_labels", tiny_dataset)
    first = run_labels(config, tmp_path)
    (tmp_path / "classes.txt").unlink()  # as `prepare_workdir` does when a config has changed
    assert run_labels(config, tmp_path).classes == first.classes == NAMES
    assert (tmp_path / "classes.txt").read_text().splitlines() == list(NAMES)


@pytest.fixture(scope="module")
def finetuned(tiny_dataset, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetuned")
    config = shrunk("opensounds_labels", tiny_dataset, **{"optim.lr": 5e-3})
    train(config, workdir)
    return workdir


def test_fine_tuning_learns_and_is_evaluated(finetuned, tiny_dataset):
    """The shipped command would run for hours without learning, or without saying how well."""
    lines = read_metrics(finetuned / "metrics.jsonl")
    loss = np.array([x["train/classification_loss"] for x in lines if "train/loss" in x])
    assert len(loss) == STEPS and loss[-4:].mean() < 0.9 * loss[:4].mean()
    last = lines[-1]
    assert last[f"{SPLIT}/accuracy"] >= 0.5  # chance is 0.25
    assert last[f"{SPLIT}/mAP"] > 0.5 and f"{SPLIT}/classification_loss" in last
    assert (finetuned / "classes.txt").read_text().splitlines() == list(NAMES)
    # The same numbers from the model as a user loads it.
    source = open_source(tiny_dataset, "train[:240]")
    labels = read_labels([source], "zeroshot_label", NAMES, "drop")
    model = alm_jax.load(finetuned)
    logits = model.class_logits([source[i]["audio"] for i in labels.kept], 16000)
    right = np.argmax(logits, 1) == np.argmax(labels.rows(labels.kept), 1)
    assert right.mean() == pytest.approx(last[f"{SPLIT}/accuracy"])
    with pytest.raises(UserError, match=r"no config\.model\.classifier"):
        alm_jax.load(mae_workdir()).class_logits(np.zeros(16000, np.int16), 16000)


def test_fine_tuning_resumes_bitwise(finetuned, tiny_dataset, tmp_path):
    """A preempted run would end elsewhere: draws by class, mixtures and labels are part of it."""
    half = shrunk("opensounds_labels", tiny_dataset, **{"optim.lr": 5e-3})
    half.data.eval_split = ""
    saves = Checkpoints(finetuned, read_only=True)
    want, _ = saves.restore_params()
    saves.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alm_jax.train.preemption.requested", lambda step: step == 5)
        with pytest.raises(Exception, match="stopped as told: step 5"):
            train(half, tmp_path)
    state = train(half, tmp_path)
    found = jax.tree.map(np.asarray, state.params)
    jax.tree.map(np.testing.assert_array_equal, found, want)


def test_probe_trains_the_classifier_alone(tiny_dataset, tmp_path):
    """Its number would be that of another encoder than the one that is asked about."""
    config = shrunk("opensounds_labels:probe", tiny_dataset, 2, **{"train.steps": 8})
    config.data.eval_split = ""
    config.data.max_seconds = 2.0
    config.init_from.workdir = str(mae_workdir())
    state = train(config, tmp_path)
    saves = Checkpoints(mae_workdir(), read_only=True)
    before = flat_names(saves.restore_params()[0]["audio"])
    saves.close()
    for name, leaf in flat_names(state.params["audio"]).items():
        np.testing.assert_array_equal(leaf, before[name], err_msg=name)
    assert np.abs(state.params["classifier"]["predict"]["kernel"]).max() > 1e-3
    moments = jax.tree.leaves(state.opt_state)
    largest = max(leaf.size for leaf in moments)
    assert largest == 32 * len(NAMES)  # nothing of the encoder's size


def test_number_of_classes_is_checked(tiny_dataset, tmp_path):
    """The run would stop in the middle of a compilation."""
    config = shrunk("opensounds_labels", tiny_dataset)
    config.model.classifier.classes = 5
    with pytest.raises(UserError, match=r"classes=5, but there are 4 classes \(acoustic grand"):
        train(config, tmp_path)
