"""Starts `alm train` on one machine or many.

    python -m launch TARGET [OPTIONS] [--dry-run] -- --config=CONFIG --workdir=DIR ...

What stands after `--` is for `alm train`. The same command, given again, goes on from the last
checkpoint. Needs nothing but Python and the target's own tool.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch import jobset, local, skypilot, slurm, tpu_vm, xpk
from launch.plan import run

TARGETS = {
    "local": local,
    "tpu-vm": tpu_vm,
    "xpk": xpk,
    "jobset": jobset,
    "slurm": slurm,
    "skypilot": skypilot,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses, plans, and carries out or prints the plan; gives the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    place = words.index("--") if "--" in words else len(words)
    ours, train = words[:place], words[place + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m launch",
        description="Starts `alm train ARGUMENTS` on one machine or many.",
        epilog="After the options: -- and the arguments of `alm train`.",
        allow_abbrev=False,
    )
    targets = parser.add_subparsers(dest="target", required=True, metavar="TARGET")
    for name, module in TARGETS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        one = targets.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        module.add_arguments(one)
        one.add_argument("--dry-run", action="store_true", help="only print what would be run")
    args = parser.parse_args(ours)
    given = dict(word.split("=", 1) for word in train if word.startswith("--") and "=" in word)
    missing = [name for name in ("--config", "--workdir") if not given.get(name)]
    if missing:
        parser.error(f"after --, alm train needs {' and '.join(f'{n}=...' for n in missing)}")
    module = TARGETS[args.target]
    if module.SHARED_WORKDIR and "://" not in given["--workdir"]:
        parser.error(
            f"--workdir={given['--workdir']}: these hosts share no folder; name a bucket, such as"
            " --workdir=gs://BUCKET/RUN"
        )
    return run(module.steps(args, train), args.dry_run)


if __name__ == "__main__":
    sys.exit(main())
