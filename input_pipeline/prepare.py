"""``alm prepare``: corpora on disk or fetched by name -> TFDS datasets in array_record format."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from alm_jax import cli
from input_pipeline.opensounds import index
from input_pipeline.opensounds.build import PrepareError, prepare_opensounds

__all__ = ["PrepareError", "main", "prepare_opensounds"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alm prepare",
        description="Builds a TFDS dataset: int16 mono PCM at 16 kHz with captions, array_record.",
    )
    parser.add_argument(
        "--dataset", choices=["opensounds"], default="opensounds", help="which corpus"
    )
    parser.add_argument(
        "--tier", choices=list(index.TIERS), default="default", help="how much of it"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("data"), help="folder of datasets and downloads"
    )
    parser.add_argument(
        "--packages", type=Path, help="folder of already fetched packages; nothing is fetched then"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="decoding processes (0: none but this one)"
    )
    parser.add_argument("--require-all", action="store_true", help="a missing package is an error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs ``alm prepare``.

    Returns:
      0.

    Raises:
      PrepareError: the dataset cannot be built; the message says why and the remedy.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    if options.workers < 0:
        parser.error(f"--workers={options.workers}: must not be negative")
    folder = prepare_opensounds(
        options.tier,
        options.output,
        options.packages,
        options.workers,
        require_all=options.require_all,
    )
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm prepare"))
