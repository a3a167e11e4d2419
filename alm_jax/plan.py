"""Plans a run: compiles its step for a TPU that is not here, and says what it will take.

alm plan --config=audiomae --topology=v5e:8x8
alm plan --config=cacophony --topology v5e:2x4 v5e:8x8 --batch_per_chip=32 --json=plan.json

The training step of `alm train` itself is compiled, ahead of time, by the TPU's own compiler
(pip install 'alm_jax[tpu]'), which runs on any machine; a step of full size takes a minute.
Topologies: v4:2x2x2, v5e:16x16, v5p:4x4x4, v6e:8x8, several slices as v5e:4x4*2, and cpu:8, eight
simulated devices that need no TPU compiler. With several topologies the table shows weak scaling:
every chip has as many clips as on the first one.
"""

from __future__ import annotations

import json
import sys
import time

from alm_jax import cli
from alm_jax.arguments import ArgumentParser
from alm_jax.config import load_config
from alm_jax.inference.verb_inputs import positive_int


def main(argv: list[str] | None = None) -> int:
    """The verb `alm plan`."""
    parser = ArgumentParser(prog="alm plan", description=__doc__)
    parser.add_config_argument()
    parser.add_argument(
        "--topology",
        nargs="+",
        action="extend",
        required=True,
        metavar="KIND:SHAPE",
        help="what to compile for, one or several: v5e:16x16, v5p:4x4x4, v5e:4x4*2, cpu:8",
    )
    parser.add_argument(
        "--num_slices", type=positive_int, default=1, metavar="N", help="of each topology"
    )
    parser.add_argument(
        "--batch_per_chip",
        type=positive_int,
        metavar="N",
        help="clips a chip (default: the config's global batch, over the first topology's chips)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="compile once for each topology: do not look for the largest batch that fits",
    )
    parser.add_argument(
        "--machine_code",
        action="store_true",
        help="compile to the end, minutes for each step: also tells the program's size, the"
        " compiler's estimate of the time, and whether it gets to its end",
    )
    parser.add_argument("--json", metavar="FILE", help="write the plans there, a list")
    args = parser.parse_args(argv)
    config = load_config(args.config, args.overrides)
    # Late: `alm plan --help` should not wait for JAX.
    from alm_jax.perf import topologies

    wanted = [topologies.parse(name, args.num_slices) for name in args.topology]
    topologies.simulate(wanted)
    from alm_jax.perf.plan_text import describe, table
    from alm_jax.perf.planning import make_plan

    started = time.perf_counter()

    def log(message: str) -> None:
        spent = time.perf_counter() - started
        print(f"[{spent:4.0f} s] {message}", file=sys.stderr, flush=True)

    plans = []
    per_chip = args.batch_per_chip
    for topology in wanted:
        plan = make_plan(
            config,
            topology,
            batch_per_chip=per_chip,
            search=not args.quick,
            machine_code=args.machine_code,
            log=log,
        )
        per_chip = per_chip or plan.batch_size // plan.chips
        plans.append(plan)
        print(describe(plan, config), end="\n\n", flush=True)
        if args.json:
            text = json.dumps([one.to_json() for one in plans], indent=1)
            with open(args.json, "w", encoding="utf-8") as file:
                file.write(text + "\n")
    if len(plans) > 1:
        print(table(plans))
    return 0 if all(plan.fits for plan in plans) else 1


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm plan"))
