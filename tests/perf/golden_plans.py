"""The plans of the shipped full-size configs, as they are kept in tests/golden/plans.

    make plans                                  # compile for TPUs what the goldens say, compare
    make plans ARGS=--update                    # ... and write what is found
    python -m tests.perf.golden_plans cacophony # one config

Each file holds what needs no TPU compiler (`counted`, which `make test` compares), and of the
configs that were compiled, what came out (`compiled`). Compiling one takes minutes of two cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from alm_jax.config import load_config
from alm_jax.perf import compiling, planning, topologies

GOLDEN = Path(__file__).parents[1] / "golden" / "plans"
TOPOLOGY, CHIPS = "v5e:8x8", 64
SPECS = (
    "audiomae",
    "audiomae:plain_decoder",
    "audiomae:2d",
    "audiomae:overlap",
    "audiomae:finetune",
    "cacophony",
    "cacophony_mae",
    "flap",
    "flap:two_views",
    "laion_clap",
    "laion_clap:fusion",
)
# Of these the operations are counted too: tracing a step takes seconds.
TRACED = ("audiomae", "cacophony", "laion_clap")
# What of a compiled plan is kept, and by what share it may differ with another compiler release.
COMPILED = {"needed": 0.02, "hbm_traffic": 0.05, "step_seconds": 0.05, "mfu_bound": 0.05}


def path(spec: str) -> Path:
    """The file of a config."""
    return GOLDEN / f"{spec.replace(':', '-')}.json"


def counted(spec: str) -> dict[str, Any]:
    """What can be said without compiling: parameters, bytes of a chip, operations of a step."""
    config = load_config(spec)
    rows = min(CHIPS, config.data.batch_size)  # the classifier's published batch is 32
    mesh = AbstractMesh((rows, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    found: dict[str, Any] = {"chips": rows, "batch_size": config.data.batch_size}
    found |= dataclasses.asdict(planning.count_state(config, mesh))
    if spec in TRACED:
        found["flops"] = compiling.model_flops(config, mesh)
    return found


def compiled(spec: str, batch_per_chip: int | None = None) -> dict[str, Any]:
    """What the TPU's compiler makes of it; takes minutes."""
    topology = topologies.parse(TOPOLOGY)
    plan = planning.make_plan(
        load_config(spec),
        topology,
        batch_per_chip=batch_per_chip,
        search=False,
        log=lambda message: print(message, file=sys.stderr, flush=True),
    )
    return kept(plan.to_json())


def kept(plan: dict[str, Any]) -> dict[str, Any]:
    """The fields of a plan's JSON that its golden keeps."""
    compiled, bounds = plan["compiled"], plan["roofline"]
    return {
        "batch_size": plan["batch_size"],
        "needed": plan["needed"],
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
    parser.add_argument("--batch_per_chip", type=int, help="with --update, of a new golden")
    args = parser.parse_args()
    topologies.simulate([])
    known = [spec for spec in SPECS if path(spec).exists() and "compiled" in read(spec)]
    failed = 0
    for spec in args.specs or known:
        golden = read(spec).get("compiled") if path(spec).exists() else None
        per_chip = args.batch_per_chip or (golden and golden["batch_size"] // CHIPS)
        found = compiled(spec, per_chip)
        lines = differences(golden, found) if golden else ["new"]
        print("\n".join([f"{spec}: {'as before' if not lines else ''}", *lines]))
        if args.update:
            write(spec, {"counted": counted(spec), "compiled": found})
        elif golden:
            failed += bool(lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
