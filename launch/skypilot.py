"""SkyPilot: accelerators of whatever cloud has them, the folder checked out here."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence

from launch import host
from launch.plan import Command, File, Step

SHARED_WORKDIR = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this launcher."""
    parser.add_argument("--name", required=True, help="of the cluster or job")
    parser.add_argument("--accelerators", required=True, help="of a node, such as H100:8")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument(
        "--spot", action="store_true", help="a managed job, started again where it stopped"
    )
    host.add_arguments(parser)


def steps(args: argparse.Namespace, train: Sequence[str]) -> list[Step]:
    """What to do."""
    # One process a node with all its devices; TPU hosts find their place by themselves.
    variables = {} if args.accelerators.startswith("tpu") else host.described("", "", "")
    said = {
        "ALM_COORDINATOR_ADDRESS": f'"$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{host.PORT}"',
        "ALM_PROCESS_COUNT": '"$SKYPILOT_NUM_NODES"',
        "ALM_PROCESS_ID": '"$SKYPILOT_NODE_RANK"',
    }
    run = [f"export {name}={said[name]}" for name in variables]
    if args.spot:
        run += [f"export {name}={value}" for name, value in host.RESTARTED.items()]
    run.append(f"exec {shlex.join(host.train(train, host.INSTALLED))}")
    recovery = {"recover_on_exit_codes": host.RESTART_STATUSES}
    lines = [
        f"name: {args.name}",
        "workdir: .",
        f"num_nodes: {args.nodes}",
        "resources:",
        f"  accelerators: {json.dumps(args.accelerators)}",
        f"  use_spot: {json.dumps(args.spot)}",
        *([f"  job_recovery: {json.dumps(recovery)}"] if args.spot else []),
        "setup: |",
        *(f"  {line}" for line in ["set -e", *host.install(args), *host.fetch(args)]),
        "run: |",
        *(f"  {line}" for line in run),
        "",
    ]
    path = f"{args.name}.sky.yaml"
    if args.spot:
        start = Command(("sky", "jobs", "launch", "--yes", "--name", args.name, path))
    else:
        start = Command(("sky", "launch", "--yes", "--cluster", args.name, path))
    return [File(path, "\n".join(lines)), start]
