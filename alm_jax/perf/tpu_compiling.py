"""Compiles a step for TPUs in a process of its own, and reads the program before its machine code.

Nearly all that a plan says is settled once the compiler has optimised the program and given every
array its place in memory. Machine code follows, takes five to ten times as long, and changes none
of it, so the process is ended there unless somebody asks for all. What the compiler had found by
then lies in the files that XLA writes with the option `xla_dump_to`.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.parallel.mesh import batch_sharding, make_mesh
from alm_jax.perf import hlo
from alm_jax.perf.compiling import Compiled, batch_shapes, setup_of
from alm_jax.perf.topologies import Topology, simulate
from alm_jax.train_step import jit_train_step

# Files of the step's module, in the order in which they are written; when the last one is begun the
# others are complete, also those of a program that does not fit.
_PROGRAM = "*.jit_train_step.*.after_optimizations.txt"
_MEMORY = "*.jit_train_step.*.after_optimizations-buffer-assignment.txt"
_CODE = "*.jit_train_step.*.after_codegen.txt"
_NEXT = ("*.jit_train_step.*after_buffer_assignment.txt", "*.jit_train_step.*.oom_*.txt")
# Main memory has no colour; on-chip memories have one.
_ALLOCATION = re.compile(r"allocation \d+: size (\d+), (?!color)(.*)")


def compile_for_tpu(
    config: ConfigDict, topology: Topology, *, machine_code: bool = False
) -> Compiled:
    """Compiles the very step that `alm train` runs.

    Args:
      config: the experiment.
      topology: of TPUs.
      machine_code: go on to the compiler's end, which takes minutes: finds the program's size, the
        cycles that the compiler estimates, and whether it gets there.

    Returns:
      What was found; it may need more than a chip has.

    Raises:
      UserError: the compiler crashed.
      RuntimeError: tracing or compiling failed, with the error of the process.
    """
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="alm_plan_") as folder:
        process = context.Process(
            target=_compile, args=(config, topology, folder, theirs), daemon=True
        )
        process.start()
        theirs.close()  # so that a process that dies closes the last end
        try:
            code = _wait(ours, Path(folder), to_the_end=machine_code)
        except EOFError as error:
            process.join()
            raise UserError(_crash(topology, process.exitcode)) from error
        finally:
            process.kill()
            process.join()
        return _read(Path(folder), topology, code, started)


def _compile(config: ConfigDict, topology: Topology, folder: str, sending: Connection) -> None:
    """The process: sends the size of the machine code in bytes, or the traceback."""
    try:
        simulate([])
        mesh = make_mesh(config.mesh, topology.devices())
        setup = setup_of(config, mesh)
        step: Any = jit_train_step(config, setup, batch_sharding(mesh))
        lowered = step.lower(setup.shapes, batch_shapes(config))
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder})
        sending.send(compiled.memory_analysis().generated_code_size_in_bytes)
    except Exception:  # whatever it is, the user's process reports it
        sending.send(traceback.format_exc())


def _wait(receiving: Connection, folder: Path, *, to_the_end: bool) -> int | None:
    """Waits for the files, or for the end; returns the size of the machine code if there is any.

    Raises:
      EOFError: the process died.
      RuntimeError: it failed.
    """
    while not receiving.poll(0.2):
        if not to_the_end and any(any(folder.glob(name)) for name in _NEXT):
            return None
    message = receiving.recv()
    if isinstance(message, int):
        return message
    if any(folder.glob(_MEMORY)) and "RESOURCE_EXHAUSTED" in message:
        return None  # does not fit: by how much is in the files
    raise RuntimeError(message)


def _crash(topology: Topology, code: int | None) -> str:
    how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
    return (
        f"--topology={topology.name}: the TPU compiler ended with {how}; SIGKILL is mostly too"
        " little memory on this machine (a step of full size takes 2 to 6 GB), anything else is a"
        " fault of libtpu: another version of it, or another mesh, may do"
    )


def _read(folder: Path, topology: Topology, code: int | None, started: float) -> Compiled:
    program = hlo.Program(_only(folder, _PROGRAM).read_text())
    sizes = allocations(_only(folder, _MEMORY).read_text())
    chips = len(topology.devices())
    return Compiled(
        arguments=sizes["arguments"],
        temporaries=sizes["temporaries"],
        results=sizes["results"],
        program=code,
        collectives=hlo.summary(program.collectives(chips)),
        hbm_traffic=program.hbm_bytes(),
        operand_traffic=program.operand_bytes(),
        # The compiler notes them while it writes machine code.
        estimated_cycles=None
        if code is None
        else hlo.Program(_only(folder, _CODE).read_text()).estimated_cycles(),
        compile_seconds=time.perf_counter() - started,
    )


def _only(folder: Path, name: str) -> Path:
    found = list(folder.glob(name))
    if len(found) != 1:
        raise RuntimeError(
            f"the TPU compiler wrote {len(found)} files {name}, not one:"
            f" {sorted(path.name for path in folder.iterdir())}"
        )
    return found[0]


def allocations(text: str) -> Counter[str]:
    """Bytes of main memory in XLA's text of a buffer assignment.

    Returns:
      "arguments", "results" that take no argument's place, and "temporaries" -> bytes.
    """
    sizes: Counter[str] = Counter()
    for size, kind in _ALLOCATION.findall(text):
        if kind.startswith("parameter"):
            sizes["arguments"] += int(size)
        elif "maybe-live-out" in kind:
            sizes["results"] += int(size)
        else:
            sizes["temporaries"] += int(size)
    return sizes
