"""Slurm with GPUs: one task a GPU, on a file system that all nodes share."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from launch import host
from launch.plan import Command, File, Step

SHARED_WORKDIR = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this launcher."""
    parser.add_argument("--name", default="alm", help="of the job (default: %(default)s)")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus-per-node", type=int, default=8)
    parser.add_argument("--cpus-per-gpu", type=int, default=8)
    parser.add_argument("--time", default="24:00:00", help="limit (default: %(default)s)")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument(
        "--submissions",
        type=int,
        default=1,
        help="jobs one after the other, each going on where the one before stopped",
    )
    parser.add_argument("--alm", default=host.INSTALLED, help="the program (default: %(default)s)")


def steps(args: argparse.Namespace, train: Sequence[str]) -> list[Step]:
    """What to do."""
    options = {
        "job-name": args.name,
        "partition": args.partition,
        "account": args.account,
        "nodes": args.nodes,
        "ntasks-per-node": args.gpus_per_node,
        "gpus-per-node": args.gpus_per_node,
        "cpus-per-task": args.cpus_per_gpu,
        "time": args.time,
        "signal": "TERM@300",  # to the tasks, before the limit: they save and end
        "output": f"{args.name}-%j.log",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value]
    start = shlex.join(["srun", "--kill-on-bad-exit=1", *host.train(train, args.alm)])
    script = "\n".join(["#!/bin/bash", *lines, "#SBATCH --requeue", "", f"exec {start}", ""])
    path = f"{args.name}.sbatch"
    submit = Command(("sbatch", "--dependency=singleton", path))
    return [File(path, script), *[submit] * args.submissions]
