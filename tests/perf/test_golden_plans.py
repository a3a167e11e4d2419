"""What the shipped full-size configs take on a TPU slice, against tests/golden/plans."""

from __future__ import annotations

import os

import pytest

from alm_jax.config import shipped_configs
from tests.perf import golden_plans as plans


def test_every_full_size_config_has_a_plan():
    """A config would be shipped for slices that it was never planned for."""
    small = {"quickstart", "opensounds", "opensounds_labels"}  # for one machine
    assert {spec.partition(":")[0] for spec in plans.PLANNED} == set(shipped_configs()) - small
    assert {plans.path(spec) for spec in plans.PLANNED} == set(plans.GOLDEN.glob("*.json"))


@pytest.mark.parametrize("spec", plans.PLANNED)
def test_counted(spec):
    """A run would need more memory or more operations than it was planned for, unnoticed."""
    found = plans.counted(spec)
    if os.environ.get("UPDATE_GOLDEN"):
        before = plans.read(spec) if plans.path(spec).exists() else {}
        plans.write(spec, before | {"counted": found})
    assert found == plans.read(spec)["counted"], (
        f"{spec} takes something else than {plans.path(spec)} says; if this is meant, run this test"
        " with UPDATE_GOLDEN=1"
    )


@pytest.mark.parametrize("spec", plans.PLANNED)
def test_compiled_plans_fit(spec):
    """A shipped config would not fit the slice that its plan names (`make plans` compiles it)."""
    plan = plans.read(spec)["compiled"]
    assert plan["needed"] < plan["hbm_capacity"]
    assert 0 < plan["mfu_bound"] <= 1
