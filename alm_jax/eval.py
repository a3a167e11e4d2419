"""Scores a model by named protocols: retrieval, zero-shot classes and tags, captions.

alm eval --model=runs/quickstart/clap --output=evaluation
alm eval --model=DIR --protocol=clotho-retrieval,clotho-captions --data=data/clotho --output=DIR
alm eval --list

Beside each number stand a confidence interval, chance, the number of clips, the prompt, the
gallery, how it is counted, and a fingerprint of the data. docs/evaluation.md lists the protocols.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from alm_jax import cli
from alm_jax.arguments import ArgumentParser
from alm_jax.errors import UserError

RESULTS, TABLE, CARD = "results.json", "table.txt", "card.md"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="alm eval", description=__doc__)
    parser.add_argument(
        "--model", metavar="DIR", help="a run's workdir, its best/ folder, or an exported folder"
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME[,NAME]",
        help="what to measure (--list shows all); by default what the dataset is published with, "
        "or `heldout`. NAME:PROMPT takes other prompts, NAME:DECODE another decoding",
    )
    parser.add_argument(
        "--data",
        metavar="DATASET",
        help="a prepared dataset, or the table of a compositional protocol; by default the dataset "
        "that the model was trained on",
    )
    parser.add_argument("--split", default="", help="instead of the protocol's own split")
    parser.add_argument(
        "--output", metavar="DIR", help=f"receives {RESULTS}, {TABLE}, {CARD} and predictions"
    )
    parser.add_argument("--list", action="store_true", help="show all protocols and end")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The verb `alm eval`."""
    parser = _parser()
    args = parser.parse_args(argv)
    # Late: `alm eval --help` should not wait for JAX.
    from alm_jax.evaluators.protocols import format_list

    if args.list:
        print(format_list())
        return 0
    if not args.model:
        parser.error("--model=DIR is needed")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return _evaluate(args)


def _evaluate(args: argparse.Namespace) -> int:
    from alm_jax.evaluators.card import evaluation_card
    from alm_jax.evaluators.metrics.caption_java import unavailable
    from alm_jax.evaluators.protocol_runs import run
    from alm_jax.evaluators.protocols import Captions, default_protocols, find_protocols
    from alm_jax.evaluators.results import format_table, write_results
    from alm_jax.evaluators.session import Session
    from alm_jax.inference.model import load

    asked = find_protocols(args.protocol) if args.protocol else None
    folder = None if args.output is None else Path(args.output).expanduser()
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UserError(f"--output={folder} is a file: name a folder, which receives {RESULTS}")
    model = load(args.model)
    data = args.data or model.config.data.dir
    if not data:
        raise UserError(
            f"--data=DIR is needed: {args.model} was imported and names no dataset of its own"
        )
    session = Session(model, data, args.split)
    chosen = asked or default_protocols(session.layout, model.has_captions)
    rows: dict = {}
    for protocol in chosen:
        print(f"{protocol.tag}: {protocol.title}", file=sys.stderr)
        rows |= run(protocol, session, folder)
    if folder is not None:
        # One folder is one evaluation: rows of another one would stand there as if they were of it.
        (folder / RESULTS).unlink(missing_ok=True)
        write_results(folder / RESULTS, rows)
        missing = [unavailable()] if any(isinstance(p, Captions) for p in chosen) else []
        card = evaluation_card(
            model, os.fspath(args.model), chosen, rows, [line for line in missing if line]
        )
        (folder / CARD).write_text(card, encoding="utf-8")
        (folder / TABLE).write_text(format_table(rows) + "\n", encoding="utf-8")
    print(format_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm eval"))
