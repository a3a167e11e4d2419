"""TPU slices of a GKE cluster by xpk, in a container image."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from launch import host
from launch.plan import Command, Step

SHARED_WORKDIR = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this launcher."""
    parser.add_argument("--name", required=True, help="of the workload")
    parser.add_argument("--project", required=True)
    parser.add_argument("--zone", required=True)
    parser.add_argument("--cluster", required=True)
    parser.add_argument("--type", required=True, help="such as v5litepod-256")
    parser.add_argument("--slices", type=int, default=1)
    parser.add_argument("--image", required=True, help="built from launch/Containerfile")
    parser.add_argument("--restarts", type=int, default=10, help="after a failure")


def steps(args: argparse.Namespace, train: Sequence[str]) -> list[Step]:
    """What to do."""
    words = [
        f"--workload={args.name}",
        f"--project={args.project}",
        f"--zone={args.zone}",
        f"--cluster={args.cluster}",
        f"--tpu-type={args.type}",
        f"--num-slices={args.slices}",
        f"--docker-image={args.image}",
        f"--max-restarts={args.restarts}",
        f"--restart-on-exit-codes={','.join(map(str, host.RESTART_STATUSES))}",
        "--termination-grace-period-seconds=300",
        *(f"--env={name}={value}" for name, value in host.RESTARTED.items()),
        # exec: SIGTERM goes to the process that saves.
        f"--command=exec {shlex.join(host.train(train))}",
    ]
    return [Command(("xpk", "workload", "create", *words))]
