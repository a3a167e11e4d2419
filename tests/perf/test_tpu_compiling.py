"""The process that compiles for TPUs: what it leaves, and what the user hears when it fails."""

from __future__ import annotations

import importlib.util
import multiprocessing

import pytest

from alm_jax.errors import UserError
from alm_jax.perf import tpu_compiling
from alm_jax.perf.planning import make_plan
from alm_jax.perf.topologies import parse
from alm_jax.perf.tpu_compiling import allocations, compile_for_tpu
from tests.small_configs import stage1

BUFFERS = """
allocation 0: size 512, color 1, thread-local:
 value: <7 fusion{} @0> (size=512,offset=0): s8[512]{0}
allocation 1: size 1000, parameter 0, shape |f32[250]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 300, parameter 1, shape |f32[75]| at ShapeIndex {}:
allocation 3: size 20, output shape is |(f32[250], f32[])|, maybe-live-out:
allocation 4: size 7, constant:
allocation 5: size 4000, preallocated-temp:
allocation 6: size 90, color 1, preallocated-temp:
"""
MODULE = "module_0003.jit_train_step.cl_1.after_optimizations"


def test_memory_in_the_compilers_text():
    """A plan would say that something fits which does not, or the other way round."""
    found = allocations(BUFFERS)
    assert found == {"arguments": 1300, "results": 20, "temporaries": 4007}


def test_ends_before_machine_code(tmp_path):
    """A plan would take minutes for machine code that nobody reads."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    (tmp_path / f"{MODULE}.txt").touch()
    (tmp_path / f"{MODULE}_after_buffer_assignment.txt").touch()
    assert tpu_compiling._wait(receiving, tmp_path, to_the_end=False) is None
    sending.send(123)
    assert tpu_compiling._wait(receiving, tmp_path, to_the_end=True) == 123


def test_a_program_that_does_not_fit_has_its_numbers(tmp_path):
    """The plan would end in the compiler's pages of allocations instead of what to change."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    (tmp_path / f"{MODULE}-buffer-assignment.txt").touch()
    sending.send("JaxRuntimeError: RESOURCE_EXHAUSTED: Ran out of memory on HBM, ...")
    assert tpu_compiling._wait(receiving, tmp_path, to_the_end=True) is None
    sending.send("JaxRuntimeError: INTERNAL: something else")
    with pytest.raises(RuntimeError, match="something else"):
        tpu_compiling._wait(receiving, tmp_path, to_the_end=True)


def _dies(config, topology, folder, sending):
    raise SystemExit(3)


def test_a_compiler_that_crashes(monkeypatch):
    """The user would wait for ever, or see a broken pipe."""
    monkeypatch.setattr(tpu_compiling, "_compile", _dies)
    with pytest.raises(UserError, match=r"--topology=v5e:2x2: the TPU compiler ended with exit"):
        compile_for_tpu(stage1(), parse("v5e:2x2"))


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler, 700 MB (pip install 'alm_jax[tpu]'); `make plans` installs it",
)
def test_a_plan_for_tpus():
    """`alm plan` would not find the compiler's files, as after a release that renames them."""
    made = make_plan(stage1("data.batch_size=8"), parse("v5e:2x2"), search=False)
    assert made.fits and made.compiled.program is None
    state = made.state.bytes
    assert state <= made.compiled.arguments < 3 * state  # vectors fill whole tiles
    assert made.compiled.hbm_traffic > made.state.parameter_bytes
    assert "all-reduce" in made.compiled.collectives
