"""Imports an official checkpoint as a workdir, every tensor accounted for.

    alm import --format=cacophony --checkpoint=Cacophony.ckpt --output=runs/cacophony

The workdir is used like that of a run: `alm embed --model=DIR`, `alm export --model=DIR`,
`alm train ... --config.init_from.workdir=DIR`. A tensor that is missing, left over or of another
shape is an error, unless its name is allowed. A fact that the checkpoint does not tell is asked for
and given as `--config.KEY=VALUE`. Nothing that a checkpoint holds is run.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from alm_jax import cli
from alm_jax.arguments import ArgumentParser, split_overrides


def _parser(summaries: dict[str, str]) -> ArgumentParser:
    width = max(map(len, summaries), default=0)
    listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in summaries.items())
    parser = ArgumentParser(
        prog="alm import", description=__doc__, epilog=f"formats:\n{listed}" if listed else None
    )
    parser.add_argument("--format", required=True, metavar="NAME", help="see below")
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="a .pth, .pt, .bin, .safetensors or flax file, or a Hugging Face folder",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder to write")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, or a folder with it or with the vocabulary (default: that of a "
        "Hugging Face folder); without one the text side takes no strings",
    )
    for flag, meaning in (
        ("missing", "may lack; their parameters are drawn anew"),
        ("unexpected", "may hold beyond the model; they are kept for the way back"),
    ):
        parser.add_argument(
            f"--allow-{flag}",
            metavar="REGEX",
            help=f"official names (the whole of each must match) that the checkpoint {meaning}",
        )
    return parser


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Keeps orbax's notes to itself, which tell a user of the verb nothing."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def main(argv: list[str] | None = None) -> int:
    """The verb `alm import`."""
    overrides, rest = split_overrides(sys.argv[1:] if argv is None else argv)
    from alm_jax.interop import formats

    asked = {"-h", "--help"} & set(rest)
    summaries = {n: formats.get_format(n).summary for n in formats.names()} if asked else {}
    args = _parser(summaries).parse_args(rest)
    from alm_jax.interop.checkpoint_files import open_checkpoint
    from alm_jax.interop.imported import write_workdir
    from alm_jax.interop.importing import to_alm, vocab_size
    from input_pipeline.json_tokenizer import find_tokenizer

    format = formats.get_format(args.format)
    checkpoint = open_checkpoint(Path(args.checkpoint))
    found = to_alm(
        format,
        checkpoint,
        overrides,
        allow_missing=args.allow_missing,
        allow_unexpected=args.allow_unexpected,
    )
    rows = vocab_size(found.config)
    tokenizer = None
    if rows:
        tokenizer = find_tokenizer(args.tokenizer, Path(args.checkpoint), rows)
    with _without_notes():
        write_workdir(Path(args.output).expanduser(), format, checkpoint, found, tokenizer)
    for title, listed in (
        ("loaded", found.loaded),
        ("kept as they are", [n for n in found.kept if n not in found.unexpected]),
        ("of other heads, left out", found.ignored),
        ("missing, drawn anew", found.missing),
        ("unexpected, kept as they are", found.unexpected),
        ("beside the model, left out", list(checkpoint.beside)),
    ):
        names = "" if title == "loaded" else ": " + ", ".join(listed[:8]) if listed else ""
        more = ", ..." if names and len(listed) > 8 else ""
        print(f"{title}: {len(listed)}{names}{more}")
    if rows and tokenizer is None:
        print("no tokenizer: give --tokenizer=PATH to embed or generate strings")
    print(f"Wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm import"))
