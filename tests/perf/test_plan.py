"""`alm plan`: topologies, memory that does not fit, the largest batch, the verb."""

from __future__ import annotations

import dataclasses
import json
import os

import jax
import pytest

from alm_jax import plan
from alm_jax.errors import UserError
from alm_jax.perf import planning, topologies
from alm_jax.perf.chips import CHIPS, GIB
from alm_jax.perf.compiling import Compiled
from alm_jax.perf.largest_batch import find_largest
from alm_jax.perf.plan_text import advice, describe, table
from alm_jax.perf.planning import make_plan
from alm_jax.perf.roofline import roofline
from alm_jax.perf.topologies import parse
from tests.small_configs import stage1


def compiled(peak, **fields):
    values = dict(
        arguments=0,
        temporaries=peak,
        results=0,
        program=0,
        collectives={},
        hbm_traffic=0,
        operand_traffic=0,
        estimated_cycles=0,
        compile_seconds=0.0,
    )
    return Compiled(**(values | fields))


def test_topologies():
    """A plan would be of another machine than the one that was meant."""
    several = parse("v5e:4x4*2")
    assert (several.chip, several.shape, several.slices) == (CHIPS["v5e"], "4x4", 2)
    assert parse("v5p:2x2x2", num_slices=3).name == "v5p:2x2x2*3"
    assert parse("cpu:8").chip is None
    for wrong in ("v5e", "v9:2x2", "v5e:2x", "cpu:2x2", "v5e:4x4*0"):
        with pytest.raises(UserError, match="--topology"):
            parse(wrong)


def test_largest_batch_is_on_the_line_and_compiled():
    """The answer would be a guess, or take a dozen compilations."""
    asked = []

    def measure(batch):
        asked.append(batch)
        return 1000 + 10 * batch

    best = find_largest(64, measure(64), measure, 8000, step=8)
    assert (best.batch_size, asked) == (696, [64, 32, 512, 696])
    assert (best.needed, best.too_large) == (1000 + 10 * 696, None)

    # From above, of a program that does not fit.
    asked.clear()
    best = find_largest(2048, measure(2048), measure, 8000, step=8)
    assert (best.batch_size, best.too_large, asked) == (696, 1024, [2048, 1024, 696])

    def steep(batch):  # more than the line says near the limit
        asked.append(batch)
        return 20 * batch if batch <= 100 else 2000 + 60 * (batch - 100)

    asked.clear()
    best = find_largest(96, steep(96), steep, 8000, step=8)
    assert len(asked) <= 6
    assert 0.9 * 200 <= best.batch_size <= 200 < best.too_large

    assert find_largest(8, 9, lambda batch: 10, 8, step=8).batch_size == 0


def test_roofline():
    """The bound would name the wrong culprit."""
    chip = CHIPS["v5e"]
    step = compiled(
        0,
        hbm_traffic=int(0.3 * chip.hbm_bandwidth),
        collectives={
            "all-reduce": {"count": 1, "bytes": 10**9, "wire_bytes": int(0.2 * chip.link_bandwidth)}
        },
        estimated_cycles=int(chip.clock),
    )
    flops = int(0.1 * 64 * chip.flops)
    numbers = dict(chips=64, batch_size=640, model_flops=flops, executed_flops=2 * flops)
    one = roofline(step, chip, slices=1, **numbers)
    assert one.bound_by == "hbm"
    assert one.step_seconds == pytest.approx(0.3)
    assert one.compute_seconds == pytest.approx(0.2)
    assert one.link_seconds == pytest.approx(0.2)
    assert one.mfu_bound == pytest.approx(0.1 / 0.3)
    assert one.clips_per_second_per_chip == pytest.approx(10 / 0.3)
    assert one.compiler_seconds == pytest.approx(1.0)
    # Two slices of 32 chips: each of them sends 1/32 of the sum once across, and gets the other.
    two = roofline(step, chip, slices=2, **numbers)
    assert two.network_seconds == pytest.approx(10**9 / 32 / chip.network_bandwidth)


@pytest.fixture(scope="module")
def of_cpu():
    config = stage1("data.batch_size=4", "optim.name=adamw")
    return config, make_plan(config, parse("cpu:1"))


def test_plan_for_simulated_devices(of_cpu):
    """Without libtpu there would be no plan at all."""
    config, made = of_cpu
    assert made.fits and made.roofline is None and made.largest_batch is None
    assert made.state.parameters > 0
    # Two moments of Muon's and Adam's parameters are no larger than twice the parameters.
    assert made.state.parameter_bytes == 4 * made.state.parameters
    assert 0 < made.state.optimizer_bytes <= 2 * made.state.parameter_bytes + 64
    assert made.compiled.peak == made.needed
    assert json.loads(json.dumps(made.to_json()))["state"]["parameters"] == made.state.parameters
    text = describe(made, config)
    assert "parameters" in text and "FLOPs of the model" in text
    assert "cpu:1" in table([made, made])


def test_advice_when_it_does_not_fit(of_cpu):
    """The user would know that it does not fit, and not what to change."""
    config, made = of_cpu
    over = dataclasses.replace(
        made, compiled=compiled(20 * GIB), hbm_capacity=15 * GIB, chips=8, batch_size=64
    )
    text = describe(over, config)
    assert "does not fit, 5.00 GiB too much" in text
    lines = "\n".join(advice(over, config))
    assert "--config.model.audio.remat=full" in lines
    assert "--config.mesh.fsdp=8" in lines
    assert "--config.data.batch_size=32" in lines
    assert "--config.train.microbatches=2" in lines
    assert "--config.model.audio.attention=fused" in lines

    # A mesh spreads over the chips of a slice; batch norms need the whole batch.
    lines = "\n".join(advice(dataclasses.replace(over, slices=2, in_parts=False), config))
    assert "--config.mesh.fsdp=4" in lines and "microbatches" not in lines

    # A batch of three clips a device has no half, and no two equal parts.
    by_eight = dataclasses.replace(over, mesh=over.mesh | {"data": 8}, batch_size=24)
    lines = "\n".join(advice(by_eight, config))
    assert "--config.data.batch_size=8:" in lines and "microbatches" not in lines


def test_stacks_of_the_compilers_threads(monkeypatch):
    """The compiler would end in a segmentation fault, for one on cacophony with mesh.fsdp=8."""
    monkeypatch.setattr(topologies, "_ENVIRONMENT", {})
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--another=1")
    topologies.set_environment()
    larger = "--fibers_default_thread_stack_size=1048576"
    assert os.environ["LIBTPU_INIT_ARGS"] == f"--another=1 {larger}"
    topologies.set_environment()  # and not once more
    assert os.environ["LIBTPU_INIT_ARGS"] == f"--another=1 {larger}"


def test_the_verb(of_cpu, tmp_path, capsys, monkeypatch):
    """The command of the documents would not work."""
    asked = []

    def made_before(config, topology, **options):
        asked.append((config.data.batch_size, topology.name, options["batch_per_chip"]))
        return of_cpu[1]

    monkeypatch.setattr(planning, "make_plan", made_before)
    file = tmp_path / "plan.json"
    argv = ["--config=quickstart:mae", "--topology", "cpu:1", "cpu:1", f"--json={file}"]
    assert plan.main([*argv, "--config.data.batch_size=4"]) == 0
    # The second topology has as many clips a device as the first.
    assert asked == [(4, "cpu:1", None), (4, "cpu:1", 4)]
    first, second = json.loads(file.read_text())
    assert first == second and first["fits"] and first["flops"] > 0
    assert first["versions"]["jax"] == jax.__version__
    printed = capsys.readouterr().out
    assert "memory of one device" in printed and "| topology |" in printed


def test_mesh_that_the_topology_has_not():
    """The user would see an error from deep within JAX."""
    with pytest.raises(UserError, match=r"mesh\.fsdp=2"):
        make_plan(stage1("mesh.fsdp=2"), parse("cpu:1"))
