"""This machine: one process, or several that share its devices."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from launch import host
from launch.plan import Step, Together

SHARED_WORKDIR = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this launcher."""
    parser.add_argument("--processes", type=int, default=1, help="how many (default: 1)")
    parser.add_argument("--port", type=int, default=host.PORT, help="free (default: %(default)s)")
    parser.add_argument(
        "--gpus-each", type=int, default=0, help="GPUs of each process, in order; 0 leaves it open"
    )


def steps(args: argparse.Namespace, train: Sequence[str]) -> list[Step]:
    """What to do."""
    environments = []
    for number in range(args.processes):
        variables: dict[str, str] = {}
        if args.processes > 1:
            address = f"localhost:{args.port}"
            variables |= host.described(address, str(args.processes), str(number))
        if args.gpus_each:
            first = number * args.gpus_each
            mine = map(str, range(first, first + args.gpus_each))
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        environments.append(variables)
    return [Together(tuple(environments), host.train(train))]
