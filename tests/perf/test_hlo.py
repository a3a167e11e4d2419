"""Programs as XLA prints them: loops, collectives, traffic."""
# ruff: noqa: E501 - HLO has long lines

from __future__ import annotations

import re
import textwrap

import jax
import jax.numpy as jnp
import pytest

from alm_jax.perf import hlo

# As libtpu 0.0.42.1 prints a scan of 12 steps over stacked weights, shortened.
MODULE = textwrap.dedent("""\
    HloModule jit_step, is_scheduled=true

    %sum (a: f32[], b: f32[]) -> f32[] {
      %a = f32[]{:T(128)} parameter(0)
      %b = f32[]{:T(128)} parameter(1)
      ROOT %add.1 = f32[]{:T(128)} add(%a, %b)
    }

    %sliced (param_0: f32[12,8,128], param_1: s32[], param_2: f32[12,8,128]) -> f32[12,8,128] {
      %param_0 = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
      %param_1 = s32[]{:T(128)} parameter(1)
      %param_2 = f32[12,8,128]{2,1,0:T(8,128)} parameter(2)
      %zero = s32[]{:T(128)} constant(0)
      %take = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %zero, %zero), dynamic_slice_sizes={1,8,128}
      ROOT %put = f32[12,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%param_2, %take, %param_1, %zero, %zero)
    }

    %body (state: (s32[], f32[12,8,128], f32[12,8,128])) -> (s32[], f32[12,8,128], f32[12,8,128]) {
      %state = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, /*index=2*/f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
      %i = s32[]{:T(128)} get-tuple-element(%state), index=0
      %w = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
      %y = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=2
      %new = f32[12,8,128]{2,1,0:T(8,128)} fusion(%w, %i, %y), kind=kLoop, calls=%sliced, backend_config={"window_config":{"estimated_cycles":"100"}}
      %near = bf16[4,16]{1,0:T(8,128)(2,1)S(1)} custom-call(%w), custom_call_target="tpu_custom_call"
      %all-reduce.1 = f32[8,128]{1,0:T(8,128)} all-reduce(%near), channel_id=1, replica_groups=mesh['x'=4,'y'=2] {'x'}, to_apply=%sum
      ROOT %next = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) tuple(%i, %w, %new)
    }

    %condition (state: (s32[], f32[12,8,128], f32[12,8,128])) -> pred[] {
      %limit = s32[]{:T(128)} constant(12)
      %state.1 = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) parameter(0)
      %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
      ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
    }

    ENTRY %main (p: f32[12,8,128]) -> f32[12,8,128] {
      %p = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
      %start = s32[]{:T(128)} constant(0)
      %first = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) tuple(%start, %p, %p)
      %loop = (s32[]{:T(128)}, f32[12,8,128]{2,1,0:T(8,128)}, f32[12,8,128]{2,1,0:T(8,128)}) while(%first), condition=%condition, body=%body
      %y.1 = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%loop), index=2
      %gather = f32[12,16,128]{2,1,0:T(8,128)} all-gather(%y.1), replica_groups=[4,2]<=[8], dimensions={1}
      ROOT %out = f32[12,8,128]{2,1,0:T(8,128)} copy(%y.1)
    }
    """)  # fmt: skip
LAYER = 8 * 128 * 4


@pytest.fixture(scope="module")
def program():
    return hlo.Program(MODULE)


def test_elements_of_tuples_without_a_line_of_their_own(program):
    """As libtpu 0.0.50 (JAX 0.12) prints: a step would read whole tuples, ten times its traffic."""
    short = MODULE
    element = r"  %(\S+) = \S+ get-tuple-element\(%(\S+)\), index=(\d+)\n"
    for name, whole, index in re.findall(element, MODULE):
        short = re.sub(rf"%{re.escape(name)}(?![\w.\-])", f"%{whole}#{index}", short)
    short = re.sub(r"  %\S+#\d+ = .*\n", "", short)
    assert "get-tuple-element" not in short and "%state#2" in short
    other = hlo.Program(short)
    assert other.hbm_bytes() == program.hbm_bytes()
    assert other.collectives(8) == program.collectives(8)


def test_a_loop_counts_as_often_as_it_runs(program):
    """Layers are scanned: memory traffic and messages would be those of one layer."""
    runs = {i.name: times for i, _, times in program.runs()}
    assert runs["new"] == 12 and runs["out"] == 1
    assert program.estimated_cycles() == 12 * 100


def test_collectives(program):
    """The message sizes would be wrong, and with them the bound of large slices."""
    near = 8 * 128 * 2  # bf16 [4, 16] in whole tiles
    assert hlo.summary(program.collectives(8)) == {
        # Groups of 4 along one axis of a mesh: each sends 2 x 3/4.
        "all-reduce": {"count": 12, "bytes": 12 * near, "wire_bytes": round(12 * 1.5 * near)},
        # Pairs: each sends what it has to the other.
        "all-gather": {"count": 1, "bytes": 12 * LAYER, "wire_bytes": 12 * LAYER},
    }


def test_traffic_counts_slices_and_what_lies_in_main_memory(program):
    """A scan would seem to read all layers' weights in each of its layers."""
    by_name = {i.name: (size, times) for size, times, i in program.traffic_by_instruction()}
    assert by_name["new"] == (12 * (2 * LAYER + 4), 12)  # a slice read by its number, one written
    assert by_name["out"] == (2 * 12 * LAYER, 1)
    assert by_name["all-reduce.1"] == (12 * LAYER, 12)  # its operand is on the chip
    # Wherever they lie, operands count too; the call's result and the reduction's operand.
    near = 8 * 128 * 2
    assert program.operand_bytes() - program.hbm_bytes() == 12 * 2 * near


def test_trip_count_as_the_compiler_notes_it():
    """Programs of another backend would lose their loops."""
    text = MODULE.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    program = hlo.Program(text)
    loop = program.computations["main"]["loop"]
    assert program.trip_count(loop) == 7


def test_a_real_program_of_this_machine():
    """The reader would know no syntax but that of its example."""

    def step(w, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    w, x = jnp.zeros((5, 16, 16)), jnp.zeros((4, 16))
    program = hlo.Program(jax.jit(step).lower(w, x).compile().as_text())
    loops = [i for i, _, _ in program.runs() if i.opcode == "while"]
    assert [program.trip_count(loop) for loop in loops] == [5]
    assert program.hbm_bytes() >= w.nbytes
