"""Measures speed beside PyTorch and prints a table: python -m tests.benchmarks [NAMES...].

Both ways of a row run in turns in one process, and the table has their medians; what else the
machine does meets both. `make benchmarks` installs what the comparisons need.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs the GPU as well

import jax
import torch

from tests.benchmarks import loading, overheads, packing, training
from tests.benchmarks.measure import Row, table


def main() -> int:
    """Runs the named benchmarks, all by default."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    benchmarks: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
        "training": lambda args: training.rows(args.repeats, args.batch_size),
        "packing": lambda args: packing.rows(args.repeats, 4 * args.batch_size, args.data),
        "loading": lambda args: loading.rows(args.repeats, args.data, args.seconds),
        "overheads": lambda args: overheads.rows(args.repeats, args.data),
    }
    parser.add_argument("names", nargs="*", choices=[[], *benchmarks], help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way (default 3)")
    parser.add_argument("--batch-size", type=int, default=8, help="of the train steps (default 8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of clips that are loaded")
    parser.add_argument("--data", default="data/opensounds/default/1.0.0", help="prepared dataset")
    parser.add_argument("--output", help="also write all figures as JSON to this file")
    args = parser.parse_args()
    machine = {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "torch": torch.__version__,
        "threads of torch": torch.get_num_threads(),
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), file=sys.stderr)
    rows: list[Row] = []
    for name in args.names or benchmarks:
        for row in benchmarks[name](args):
            print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
            rows.append(row)
            gc.collect()
    print(table(rows))
    if args.output:
        with open(args.output, "w", encoding="utf-8") as file:
            json.dump(
                {"machine": machine, "rows": [dataclasses.asdict(r) for r in rows]}, file, indent=1
            )
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
