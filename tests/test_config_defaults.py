"""A workdir of an earlier version goes on with today's, as long as nothing of it changes."""

import pytest

from alm_jax.config_defaults import differences
from tests.small_configs import stage1, stage2

ADDED = [
    ("train", "nonfinite"),
    ("data", "mixup_probability"),
    ("model.audio", "positions"),
    ("model.text", "position_offset"),
    ("model.caption_decoder", "remat"),
    ("objectives.contrastive", "loss"),
]


def without(config, group, name):
    """The config as a version without that field saved it."""
    saved = config.copy_and_resolve_references().unlock()
    owner = saved
    for part in group.split("."):
        owner = owner[part]
    if name in owner:
        del owner[name]
    return saved


@pytest.mark.parametrize(("group", "name"), ADDED)
def test_new_field_with_its_default_is_no_difference(group, name):
    """An update of this project would make every run in progress refuse to go on."""
    config = stage2()
    assert differences(without(config, group, name), config) == []


def test_default_of_a_decoder_is_found_too():
    """As above, for stage 1."""
    config = stage1()
    assert differences(without(config, "model.mae_decoder", "positions"), config) == []


@pytest.mark.parametrize(
    ("override", "group", "name"),
    [
        ("optim.clip_norm=0.5", "optim", "clip_norm"),
        ("model.text.dropout=0.1", "model.text", "dropout"),
        ("objectives.contrastive.label_smoothing=0.1", "objectives.contrastive", "label_smoothing"),
        ("model.audio.width=64", "model.audio", "width"),
    ],
)
def test_new_field_with_another_value_is_a_difference(override, group, name):
    """A run would go on as another experiment."""
    config = stage2(override)
    value = override.partition("=")[2]
    assert differences(without(config, group, name), config) == [
        f"{group}.{name}: (absent) -> {value}"
    ]


def test_removed_field_is_a_difference():
    """What it did is done no longer, and nobody would know."""
    config = stage2()
    saved = config.copy_and_resolve_references().unlock()
    saved.optim.trick = 1
    assert differences(saved, config) == ["optim.trick: 1 -> (absent)"]
