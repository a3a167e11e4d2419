"""Every shipped config: it builds, its step traces, and its parameters are those of the golden.

A golden is a text per config: parameter, shape, dtype, logical axes, and whether it decays.
"""

import math
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from alm_jax.checkpoints import flat_names
from alm_jax.config import load_config, shipped_configs
from alm_jax.optim import NOT_DECAYED
from alm_jax.parallel.mesh import make_mesh
from alm_jax.train_state import make_setup, model_graph, split
from alm_jax.train_step import make_train_step
from input_pipeline.loader_config import LoaderConfig

GOLDEN = Path(__file__).parent / "golden" / "configs"
SPECS = [
    "audiomae",
    "audiomae:plain_decoder",
    "audiomae:2d",
    "audiomae:overlap",
    "audiomae:ordered_positions",
    "audiomae:finetune",
    "audiomae:finetune,as2m",
    "cacophony",
    "cacophony_mae",
    "laion_clap",
    "laion_clap:fusion",
    "flap",
    "flap:1d",
    "flap:two_views",
    "flap:no_reconstruction",
    "opensounds",
    "opensounds:mae",
    "opensounds_labels",
    "opensounds_labels:probe",
    "opensounds_labels:effects",
    "quickstart",
    "quickstart:mae",
    "quickstart:tiny",
    "quickstart:mae,tiny",
]


def test_every_shipped_config_is_tested_here():
    """A config that nobody builds is broken by the next change of a default."""
    assert {spec.partition(":")[0] for spec in SPECS} == set(shipped_configs())


def test_every_golden_belongs_to_a_config():
    """A golden that is compared with nothing looks like a promise."""
    names = {load_config(spec).name for spec in SPECS}
    assert {path.stem for path in GOLDEN.iterdir()} == names


def parameter_table(config):
    _, abstract = model_graph(config, config.tokenizer.vocab_size)
    rows = []
    for path, variable in nnx.to_flat_state(abstract):
        name, value = ".".join(map(str, path)), variable.get_value()
        axes = ",".join(axis or "-" for axis in variable.get_metadata()["axes"])
        shape = "x".join(map(str, value.shape)) or "scalar"
        decay = "no decay" if NOT_DECAYED.search(name) else "decay"
        if isinstance(variable, nnx.BatchStat):
            decay = "running statistic"
        rows.append(f"{name}  {shape}  {value.dtype}  {axes or '-'}  {decay}")
    params, _ = split(abstract)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.to_pure_dict(params)))
    return "\n".join([*sorted(rows), f"{count:,} parameters", ""])


@pytest.mark.parametrize("spec", SPECS)
def test_parameters_are_those_of_the_golden(spec):
    """A renamed or resized parameter makes every checkpoint and export of before unreadable."""
    config = load_config(spec)
    table, path = parameter_table(config), GOLDEN / f"{config.name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(table, encoding="utf-8")
    assert table == path.read_text(encoding="utf-8"), (
        f"the parameters of {spec} are not those of {path}; if this is meant, run this test with "
        "UPDATE_GOLDEN=1, look at the difference and say in the commit what old runs should do"
    )


# The quickstart, the recipe and the classifier on other data.
UNTRACED = ("tiny", "as2m", "effects")


@pytest.mark.parametrize("spec", [s for s in SPECS if not any(word in s for word in UNTRACED)])
def test_step_traces_at_full_size(spec):
    """A shipped command would fail after minutes of preparing data, on a rented accelerator."""
    config = load_config(spec)
    setup = make_setup(
        config, config.tokenizer.vocab_size, make_mesh(config.mesh, jax.devices()[:1])
    )
    data = LoaderConfig.create(config.data)
    batch = {
        "audio": jax.ShapeDtypeStruct((data.batch_size, data.num_samples), jnp.int16),
        "audio_length": jax.ShapeDtypeStruct((data.batch_size,), jnp.int32),
        "text": jax.ShapeDtypeStruct((data.batch_size, data.max_text_length), jnp.int32),
        "text_mask": jax.ShapeDtypeStruct((data.batch_size, data.max_text_length), bool),
        "example_id": jax.ShapeDtypeStruct((data.batch_size,), jnp.int32),
    }
    if data.labels:
        classes = config.model.classifier.classes
        batch["labels"] = jax.ShapeDtypeStruct((data.batch_size, classes), bool)
    if data.mixup_probability:
        batch |= {f"mix_{name}": batch[name] for name in ("audio", "labels")}
        batch["mix_length"] = batch["audio_length"]
    state, metrics = jax.eval_shape(make_train_step(config, setup), setup.shapes, batch)
    # A leaf that changes its type from step to step would compile the step twice.
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), setup.shapes
    )
    assert all(value.shape == () for value in metrics.values())
    assert {f"{name}_loss" for name in config.objectives} <= metrics.keys()


def test_cacophony_has_the_published_sizes():
    """Results at "the paper's size" would be of another model."""

    def counts(spec, vocab_size):
        _, abstract = model_graph(load_config(spec), vocab_size)
        found: dict[str, int] = {}
        for name, leaf in flat_names(nnx.to_pure_dict(abstract)).items():
            part = name.partition(".")[0]
            found[part] = found.get(part, 0) + math.prod(leaf.shape)
        return found

    stage1 = counts("cacophony_mae", 0)
    assert stage1 == {"audio": 85_259_520, "mae_decoder": 85_850_368}
    stage2 = counts("cacophony", 50_265)
    assert stage2["audio"] == 85_259_520
    assert stage2["text"] + stage2["text_pool"] == 125_236_992
    assert stage2["caption_decoder"] == 76_460_889
