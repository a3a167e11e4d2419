"""The plans of the shipped full-size configs, as they are kept in tests/golden/plans.

    make plans                                  # compile for TPUs what the goldens say, compare
    make plans ARGS=--update                    # ... and write what is found
    python -m tests.perf.golden_plans cacophony # one config
    make plans ARGS=--machine_code              # ... to the compiler's end: half an hour

Each file holds what needs no TPU compiler (`counted`, which `make test` compares), and what the
compiler made of it (`compiled`). All of them together take five minutes of a core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from alm_jax.config import load_config
from alm_jax.perf import compiling, planning, topologies

GOLDEN = Path(__file__).parents[1] / "golden" / "plans"
# Config -> what it is planned for, and its global batch there: the published one or its own project
# choice, but for MAEs, whose 512 leave a chip of this slice with little to do.
PLANNED = {
    "audiomae": ("v5e:8x8", 4096),
    "audiomae:plain_decoder": ("v5e:8x8", 4096),
    "audiomae:2d": ("v5e:8x8", 4096),
    "audiomae:overlap": ("v5e:8x8", 4096),
    "audiomae:finetune": ("v5e:2x4", 32),
    "cacophony": ("v5e:8x8", 1024),
    "cacophony_mae": ("v5e:8x8", 4096),
    "flap": ("v5e:8x8", 2304),
    "flap:two_views": ("v5e:8x8", 2304),
    "laion_clap": ("v5e:8x8", 2304),
    "laion_clap:fusion": ("v5e:8x8", 2304),
}
# Of these the operations are counted too: tracing a step takes seconds.
TRACED = ("audiomae", "cacophony", "laion_clap")
# What of a compiled plan is kept, and by what share it may differ with another compiler release.
COMPILED = {"needed": 0.02, "hbm_traffic": 0.05, "step_seconds": 0.05, "mfu_bound": 0.05}


def path(spec: str) -> Path:
    """The file of a config."""
    return GOLDEN / f"{spec.replace(':', '-')}.json"


def planned(spec: str) -> tuple[ConfigDict, topologies.Topology]:
    """The config at its batch, and what it is planned for."""
    name, batch = PLANNED[spec]
    return planning.with_batch(load_config(spec), batch), topologies.parse(name)


def counted(spec: str) -> dict[str, Any]:
    """What can be said without compiling: parameters, bytes of a chip, operations of a step."""
    config, topology = planned(spec)
    chips = math.prod(int(size) for size in topology.shape.split("x"))
    mesh = AbstractMesh((chips, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    found: dict[str, Any] = {"topology": topology.name, "batch_size": config.data.batch_size}
    found |= dataclasses.asdict(planning.count_state(config, mesh))
    if spec in TRACED:
        found["flops"] = compiling.model_flops(config, mesh)
    return found


def compiled(spec: str, *, machine_code: bool = False) -> dict[str, Any]:
    """What the TPU's compiler makes of it."""
    config, topology = planned(spec)
    plan = planning.make_plan(
        config,
        topology,
        search=False,
        machine_code=machine_code,
        log=lambda message: print(message, file=sys.stderr, flush=True),
    )
    return kept(plan.to_json())


def kept(plan: dict[str, Any]) -> dict[str, Any]:
    """The fields of a plan's JSON that its golden keeps."""
    compiled, bounds = plan["compiled"], plan["roofline"]
    return {
        "needed": plan["needed"] - (compiled["program"] or 0),
        "hbm_capacity": plan["hbm_capacity"],
        "hbm_traffic": compiled["hbm_traffic"],
        "collectives": compiled["collectives"],
        "bound_by": bounds["bound_by"],
        "step_seconds": round(bounds["step_seconds"], 5),
        "mfu_bound": round(bounds["mfu_bound"], 4),
        "versions": plan["versions"],
    }


def read(spec: str) -> dict[str, Any]:
    """The golden."""
    return json.loads(path(spec).read_text(encoding="utf-8"))


def write(spec: str, plan: dict[str, Any]) -> None:
    """Replaces the golden."""
    path(spec).parent.mkdir(exist_ok=True)
    path(spec).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")


def differences(golden: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Lines that say where a compiled plan is not what its golden says."""
    lines = []
    for name, tolerance in COMPILED.items():
        ratio = found[name] / golden[name]
        if abs(ratio - 1) > tolerance:
            lines.append(f"{name}: {golden[name]} -> {found[name]} ({ratio:.2f} times)")
    for name in ("bound_by", "hbm_capacity"):
        if found[name] != golden[name]:
            lines.append(f"{name}: {golden[name]} -> {found[name]}")
    if set(found["collectives"]) != set(golden["collectives"]):
        lines.append(f"collectives: {list(golden['collectives'])} -> {list(found['collectives'])}")
    return lines


def main() -> int:
    """`make plans`: compiles, compares, and with --update writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("specs", nargs="*", metavar="CONFIG", help="default: those of the goldens")
    parser.add_argument("--update", action="store_true", help="write what is found")
    parser.add_argument(
        "--machine_code", action="store_true", help="compile to the end: minutes of each config"
    )
    args = parser.parse_args()
    topologies.simulate([])
    failed = 0
    for spec in args.specs or PLANNED:
        golden = read(spec).get("compiled") if path(spec).exists() else None
        found = compiled(spec, machine_code=args.machine_code)
        lines = differences(golden, found) if golden else ["new"]
        print("\n".join([f"{spec}: {'as before' if not lines else ''}", *lines]), flush=True)
        if args.update:
            write(spec, {"counted": counted(spec), "compiled": found})
        else:
            failed += bool(lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
