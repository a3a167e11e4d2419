"""A Cloud TPU VM or pod slice by gcloud, with the commit that is checked out here."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from launch import host
from launch.plan import Command, Step

SHARED_WORKDIR = True
_ARCHIVE = "alm_jax.tar.gz"
_FOLDER = "alm_jax"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this launcher."""
    parser.add_argument("--name", required=True, help="of the TPU")
    parser.add_argument("--project", required=True)
    parser.add_argument("--zone", required=True)
    parser.add_argument("--type", metavar="TYPE", help="such as v5litepod-256; none: it exists")
    parser.add_argument("--version", metavar="IMAGE", help="runtime version, with --type")
    parser.add_argument("--spot", action="store_true", help="cheaper, may be taken away")
    host.add_arguments(parser)


def steps(args: argparse.Namespace, train: Sequence[str]) -> list[Step]:
    """What to do."""
    if bool(args.type) != bool(args.version):
        raise SystemExit("launch: error: --type and --version go together")
    where = (f"--project={args.project}", f"--zone={args.zone}")

    def tpu(verb: str, *words: str) -> Command:
        return Command(("gcloud", "compute", "tpus", "tpu-vm", verb, *words, *where))

    def on(worker: str, lines: Sequence[str]) -> Command:
        return tpu("ssh", args.name, f"--worker={worker}", f"--command={'; '.join(lines)}")

    found: list[Step] = []
    if args.type:
        kind = [f"--accelerator-type={args.type}", f"--version={args.version}"]
        found.append(tpu("create", args.name, *kind, *(["--spot"] if args.spot else [])))
    enter = ["set -e", f"cd {_FOLDER}"]
    start = shlex.join(host.train(train, host.INSTALLED))
    return [
        *found,
        Command(("git", "archive", "--format=tar.gz", f"--output={_ARCHIVE}", "HEAD")),
        tpu("scp", _ARCHIVE, f"{args.name}:", "--worker=all"),
        on(
            "all",
            [
                "set -e",
                f"mkdir -p {_FOLDER}",
                f"tar -xzf {_ARCHIVE} -C {_FOLDER}",
                f"cd {_FOLDER}",
                *host.install(args),
                *host.fetch(args),
            ],
        ),
        # Training goes on when the connection breaks, and the command may be given again.
        on(
            "all",
            [
                *enter,
                "! kill -0 $(cat train.pid) 2> /dev/null || { echo already training; exit 1; }",
                f"nohup {start} > train.log 2>&1 < /dev/null & echo $! > train.pid",
            ],
        ),
        on("0", [*enter, "tail -n +1 -F --pid=$(cat train.pid) train.log"]),
    ]
