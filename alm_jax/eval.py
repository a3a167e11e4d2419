"""Scores a model on a held-out split: retrieval, zero-shot classes, captions.

alm eval --model=runs/quickstart/clap --split=test --output=results.json
"""

from __future__ import annotations

import logging
import sys

from alm_jax import cli
from alm_jax.arguments import ArgumentParser


def main(argv: list[str] | None = None) -> int:
    """The verb `alm eval`."""
    parser = ArgumentParser(prog="alm eval", description=__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="workdir of a run, or an exported folder"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="a prepared dataset; the one it was trained on by default"
    )
    parser.add_argument("--split", default="test", help="which split (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE.json", help="add the numbers to this file")
    parser.add_argument(
        "--details", metavar="FOLDER", help="write embeddings and predictions there"
    )
    parser.add_argument(
        "--ridge",
        action="store_true",
        help="also fit the ridge baseline on the dataset's training split",
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # Late: `alm eval --help` should not wait for JAX.
    from alm_jax.evaluators.baseline import ridge_results
    from alm_jax.evaluators.files import save_evaluation
    from alm_jax.evaluators.results import format_table, write_results
    from alm_jax.evaluators.suite import evaluate_split
    from alm_jax.inference.model import load

    model = load(args.model)
    evaluation = evaluate_split(model, args.data or model.config.data.dir, args.split)
    rows = dict(evaluation.results)
    if args.ridge:
        rows |= ridge_results(evaluation.clips, model.config.data.train_split, "validation")
    if args.details:
        save_evaluation(evaluation, args.details)
    if args.output:
        write_results(args.output, rows)
    print(format_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm eval"))
