"""Exports a trained model to PyTorch, Hugging Face or ONNX, after proving that it is the same.

alm export --model=runs/quickstart/clap --output=my_model
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alm_jax import cli
from alm_jax.arguments import ArgumentParser
from alm_jax.errors import UserError
from alm_jax.interop.memory import large_blocks_go_back

REAL_CLIPS = 20


def real_examples(
    directory: str, split: str, sample_rate: int, count: int = REAL_CLIPS
) -> tuple[list[np.ndarray], list[str]]:
    """Clips int16 [S] of differing lengths, and their captions, from a prepared dataset.

    Args:
      directory: the dataset.
      split: its split.
      sample_rate: Hz that the model needs.
      count: how many; fewer if the split is smaller.

    Raises:
      UserError: no such dataset or split, or another sample rate.
    """
    from input_pipeline.sources import open_source

    source = open_source(directory, split)
    if source.sample_rate not in (None, sample_rate):
        raise UserError(
            f"{source.directory} has {source.sample_rate} Hz, the model {sample_rate}: give the "
            "dataset that it was trained on with --data"
        )
    spread = np.linspace(0, len(source) - 1, min(len(source), 10 * count)).astype(int)
    examples = [source.audio_and_captions(int(i)) for i in dict.fromkeys(spread.tolist())]
    examples = sorted((e for e in examples if len(e[0])), key=lambda example: len(example[0]))
    lengths = np.asarray([len(audio) for audio, _ in examples])
    # One clip of each length first: rendered notes, say, are all equally long.
    first = np.flatnonzero(np.diff(lengths, prepend=-1))
    chosen = first[np.unique(np.linspace(0, len(first) - 1, min(count, len(first))).astype(int))]
    others = np.setdiff1d(np.arange(len(examples)), chosen)[: count - len(chosen)]
    pairs = [examples[i] for i in np.sort(np.concatenate([chosen, others]))]
    return [audio for audio, _ in pairs], [texts[0] for _, texts in pairs if texts]


def _dataset(args: argparse.Namespace, config: ConfigDict) -> str:
    """The dataset to take real clips from; "" if there is none."""
    if args.data:
        return args.data
    own = config.data.dir
    if own and Path(own).is_dir():
        return own
    why = f"{own}, on which the model was trained, is not here: " if own else ""
    print(f"{why}comparing on synthetic waves only (--data=DIR names a prepared dataset)")
    return ""


def _results(path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"--results={path} is not a results.json: {error}") from error
    if not isinstance(results, dict) or not all(
        isinstance(row, dict) and "value" in row for row in results.values()
    ):
        raise UserError(f"--results={path} is not a results.json: rows with a 'value' are needed")
    return results


def main(argv: list[str] | None = None) -> int:
    """The verb `alm export`."""
    parser = ArgumentParser(prog="alm export", description=__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="workdir of a run, or an exported folder"
    )
    parser.add_argument(
        "--output", required=True, metavar="OUT", help="folder to write; an export is replaced"
    )
    parser.add_argument(
        "--format",
        choices=["torch", "hf", "onnx", "official"],
        default="torch",
        help="torch: one file of PyTorch; hf: for transformers; onnx: audio and text encoder; "
        "official: the file that an imported model came from (default: %(default)s)",
    )
    parser.add_argument(
        "--official", metavar="NAME", default="", help="a format of `alm import`, if not that one"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="prepared dataset to compare on (default: the model's own)"
    )
    parser.add_argument("--split", default="test", help="split of it (default: %(default)s)")
    parser.add_argument("--results", metavar="FILE", help="results.json for the model card")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    large_blocks_go_back()

    if args.format == "official":
        from alm_jax.interop.imported import export_official

        print(f"Wrote {export_official(args.model, args.output, args.official)}")
        return 0
    from alm_jax.config import read_config, training_folders
    from alm_jax.inference.folder import find_model
    from alm_jax.interop.export_formats import get_layout
    from alm_jax.interop.exported import export_config
    from alm_jax.interop.model_card import DataSummary
    from alm_jax.interop.torch_export import export_torch, require_torch

    require_torch()
    results = _results(args.results)
    model = find_model(args.model)
    config = read_config(Path(model) / "config.json")
    get_layout(args.format, export_config(config, 0)).require()  # before minutes of work
    clips, captions, data = None, None, None
    directory = _dataset(args, config)
    if directory:
        rate = int(config.data.sample_rate)
        clips, captions = real_examples(directory, args.split, rate)
        if training_folders(config) == [config.data.dir]:
            data = DataSummary.read(directory, config.data.train_split, rate)
    report = export_torch(
        model,
        args.output,
        clips=clips,
        captions=captions,
        results=results,
        data=data,
        format=args.format,
    )
    print(report)
    print(f"Wrote {args.output}: {report.parameters:,} parameters. How to use it: README.md there")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm export"))
