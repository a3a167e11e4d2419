"""What happens on each host, the same for every launcher: install, fetch the data, train.

The training command is the one of a single machine. Which process of how many it is, it finds out
by itself (`alm_jax.parallel.distributed`), or from the ALM_ variables that `described` sets.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

PORT = 8476  # of the coordinator, on the first host
_ENVIRONMENT = ".venv"
INSTALLED = f"{_ENVIRONMENT}/bin/alm"
# Where a scheduler starts a job again only when it fails, a run that saved and stopped because its
# machine goes away must not look finished.
RESTARTED = {"ALM_PREEMPTED_STATUS": "75"}
# Statuses after which to start again: a lost connection, that one, and JAX's end of a process whose
# peer is dead. Not 2, an error that only the user can mend.
RESTART_STATUSES = (1, 75, 134)
_SYNC = {
    "gs": "gcloud storage rsync --recursive",
    "s3": "aws s3 sync",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `install` and `fetch`."""
    parser.add_argument(
        "--extras", default="tpu,bucket", help="of alm_jax, for pip (default: %(default)s)"
    )
    parser.add_argument(
        "--python", default="python3.11", help="on the hosts, 3.11 or newer (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        metavar="URL=DIR",
        type=_pair,
        help="copy a prepared dataset from a bucket to each host first",
    )


def _pair(text: str) -> tuple[str, str]:
    url, equals, folder = text.partition("=")
    if not equals or url.partition("://")[0] not in _SYNC:
        choices = " or ".join(f"{scheme}://BUCKET/PATH=DIR" for scheme in _SYNC)
        raise argparse.ArgumentTypeError(f"{text!r}: write {choices}")
    return url, folder


def install(args: argparse.Namespace) -> list[str]:
    """Shell lines that install the checkout they run in; repeated, they take seconds."""
    python = shlex.quote(args.python)
    packages = shlex.join([args.python, f"{args.python}-venv"])
    return [
        f"command -v {python} > /dev/null"
        f" || {{ sudo apt-get update -q && sudo apt-get install -q -y {packages}; }}",
        f"test -d {_ENVIRONMENT} || {python} -m venv {_ENVIRONMENT}",
        f"{_ENVIRONMENT}/bin/pip install -q {shlex.quote(f'.[{args.extras}]')}",
    ]


def fetch(args: argparse.Namespace) -> list[str]:
    """Shell lines that copy the data to this host; repeated, they copy what has changed."""
    if args.data is None:
        return []
    url, folder = args.data
    return [
        f"mkdir -p {shlex.quote(folder)}",
        f"{_SYNC[url.partition('://')[0]]} {shlex.quote(url)} {shlex.quote(folder)}",
    ]


def train(arguments: Sequence[str], alm: str = "alm") -> tuple[str, ...]:
    """The training command as words.

    Args:
      arguments: of `alm train`.
      alm: the program; `INSTALLED` in a checkout that `install` has installed.
    """
    return (alm, "train", *arguments)


def described(address: str, count: str, number: str) -> dict[str, str]:
    """Variables that describe a job where JAX recognises no cluster.

    Args:
      address: host and port of process 0.
      count: of processes.
      number: of this one.
    """
    return {
        "ALM_COORDINATOR_ADDRESS": address,
        "ALM_PROCESS_COUNT": count,
        "ALM_PROCESS_ID": number,
    }
