"""``alm prepare``: corpora on disk or fetched by name -> TFDS datasets in array_record format."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from alm_jax import cli
from alm_jax.arguments import ArgumentParser
from alm_jax.errors import UserError
from input_pipeline.cleaning import Limits
from input_pipeline.examples import Settings
from input_pipeline.formats import FORMATS, Options
from input_pipeline.language import check_language
from input_pipeline.opensounds import index
from input_pipeline.opensounds.build import PrepareError, prepare_opensounds
from input_pipeline.own_data import prepare_own

__all__ = ["PrepareError", "main", "prepare_opensounds", "prepare_own"]

_FORMATS = "\n".join(f"  {layout.name:<13} {layout.title}" for layout in FORMATS.values())


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="alm prepare",
        description="Builds a TFDS dataset: int16 mono PCM with captions, array_record.\n\n"
        "  alm prepare --input=FOLDER --output=data/NAME   your own data, or a published corpus\n"
        "  alm prepare --tier=default --output=data        OpenSounds, fetched by name",
        epilog=f"formats, guessed by default:\n{_FORMATS}",
    )
    parser.add_argument("--output", type=Path, help="folder of the dataset (OpenSounds: of all)")
    parser.add_argument(
        "--workers", type=int, default=2, help="decoding processes (0: none but this one)"
    )
    parser.add_argument(
        "--runner",
        default="",
        metavar="NAME",
        help="decode on Apache Beam: local, or a runner of its own (DataflowRunner, FlinkRunner,"
        " SparkRunner), whose flags follow after --",
    )
    _add_own(parser)
    _add_limits(parser)
    sounds = parser.add_argument_group("OpenSounds")
    sounds.add_argument(
        "--dataset", choices=["opensounds"], default="opensounds", help="which corpus to fetch"
    )
    sounds.add_argument("--tier", choices=list(index.TIERS), help="how much of it")
    sounds.add_argument(
        "--packages", type=Path, help="folder of already fetched packages; nothing is fetched then"
    )
    sounds.add_argument("--require-all", action="store_true", help="a missing package is an error")
    return parser


def _add_own(parser: argparse.ArgumentParser) -> None:
    own = parser.add_argument_group("your own data")
    own.add_argument("--input", type=Path, help="a folder, or a table, tar or parquet file")
    own.add_argument("--format", default="", metavar="NAME", help="its layout; see below")
    own.add_argument("--audio-dir", type=Path, help="where the audio lies, if not below --input")
    for name, what in (
        ("audio", "names the audio file"),
        ("caption", "holds captions; may be given several times"),
        ("generated-caption", "holds captions that a model wrote, beside those of people"),
        ("id", "holds unique ids"),
        ("split", "names the split"),
        ("label", "holds classes or tags"),
        ("start", "says where in the file the clip begins, in seconds"),
        ("end", "says where it ends"),
    ):
        several: dict[str, Any] = {"default": ""}
        if name.endswith("caption"):
            several = {"action": "append", "default": []}
        own.add_argument(f"--{name}-column", metavar="NAME", help=f"column that {what}", **several)
    own.add_argument("--captions", type=Path, help="a table of id and caption, for AudioSet")
    own.add_argument("--encoding", default="", help="of tables that are not UTF-8")
    defaults = Settings()
    own.add_argument("--split", default="", help="put everything into this split")
    for name in ("validation", "test"):
        own.add_argument(
            f"--{name}",
            type=float,
            default=getattr(defaults, name),
            metavar="SHARE",
            help=f"share for {name} where the input has no splits (default %(default)s)",
        )
    own.add_argument(
        "--label-caption",
        action="append",
        metavar="TEXT",
        help="caption of clips that have labels only, {} for the labels; several times: one is"
        f" drawn each time in training; empty: none (default {defaults.label_captions[0]!r})",
    )
    own.add_argument(
        "--segment-seconds",
        type=float,
        default=defaults.segment_seconds,
        metavar="X",
        help="cut longer recordings into clips of this length (default: they stay whole)",
    )
    own.add_argument(
        "--sample-rate", type=int, default=defaults.sample_rate, help="in Hz (default %(default)s)"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits, defaults = parser.add_argument_group("what is rejected"), Limits()
    for name, what in (
        ("min_seconds", "shorter clips"),
        ("max_seconds", "longer clips"),
        ("silence_db", "clips whose peak is below this, dB of full scale"),
        ("max_clipped", "clips with a larger share of samples at full scale"),
        ("max_rejected", "stop if a larger share of the rows is rejected"),
    ):
        limits.add_argument(
            f"--{name.replace('_', '-')}",
            type=float,
            default=getattr(defaults, name),
            metavar="X",
            help=f"{what} (default %(default)s)",
        )
    limits.add_argument(
        "--keep-duplicates", action="store_true", help="clips with the PCM of another one stay"
    )
    limits.add_argument(
        "--script",
        default=defaults.script,
        metavar="NAME",
        help="reject captions in another writing system than this one, such as latin",
    )
    limits.add_argument(
        "--language",
        default=defaults.language,
        metavar="CODE",
        help="reject captions clearly in another language than this one, such as en",
    )
    limits.add_argument(
        "--drop-near-duplicates",
        action="store_false",
        dest="keep_near_duplicates",
        help="reject clips that sound like another one: re-encoded, cut, made louder",
    )
    limits.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="DATASET",
        help="reject clips whose recording is in this prepared dataset, DIR or DIR:SPLIT (without"
        " a split: in all but train); may be given several times",
    )
    limits.add_argument(
        "--allow-no-caption", action="store_true", help="clips without a caption stay"
    )


def _own(options: argparse.Namespace) -> Path:
    if options.output is None:
        raise UserError("--output=DIR is missing: the folder of the new dataset, say data/mine")
    # Here, not at the top: --help comes without TFDS.
    from input_pipeline.engines import Engine

    for flag in ("tier", "packages"):
        if getattr(options, flag) is not None:
            raise UserError(f"--{flag} belongs to OpenSounds and does not go with --input")
    audio_only = options.format == "audio"
    limits = Limits(
        **{
            field.name: getattr(options, field.name)
            for field in dataclasses.fields(Limits)
            if field.name != "needs_caption"
        },
        needs_caption=not (options.allow_no_caption or audio_only),
    )
    if options.validation < 0 or options.test < 0 or options.validation + options.test > 1:
        raise UserError(f"--validation={options.validation}, --test={options.test}: not shares")
    if not 1000 <= options.sample_rate <= 192000:
        raise UserError(f"--sample-rate={options.sample_rate}: needed are 1000 to 192000 Hz")
    if options.segment_seconds and not (
        limits.min_seconds <= options.segment_seconds <= limits.max_seconds
    ):
        raise UserError(
            f"--segment-seconds={options.segment_seconds:g}: must lie between"
            f" --min-seconds={limits.min_seconds:g} and --max-seconds={limits.max_seconds:g}"
        )
    if limits.language:
        check_language(limits.language)
    if options.split and not options.split.isidentifier():
        raise UserError(f"--split={options.split}: needed is a word, such as train")
    columns = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Options)
        if field.name not in ("caption_columns", "generated_columns")
    }
    return prepare_own(
        options.input,
        options.output,
        layout=options.format,
        options=Options(
            **columns,
            caption_columns=tuple(options.caption_column),
            generated_columns=tuple(options.generated_caption_column),
        ),
        settings=Settings(
            sample_rate=options.sample_rate,
            limits=limits,
            segment_seconds=options.segment_seconds,
            label_captions=Settings.label_captions
            if options.label_caption is None
            else tuple(filter(None, options.label_caption)),
            split=options.split,
            validation=options.validation,
            test=options.test,
        ),
        exclude=options.exclude,
        engine=Engine(options.workers, options.runner, options.flags),
    )


def main(argv: list[str] | None = None) -> int:
    """Runs ``alm prepare``.

    Returns:
      0.

    Raises:
      UserError: the dataset cannot be built; the message says why and the remedy.
    """
    parser = _parser()
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:cut])
    options.flags = tuple(words[cut + 1 :])
    if options.flags and not options.runner:
        parser.error(f"{' '.join(options.flags)}: flags after -- are for a --runner")
    if options.workers < 0:
        parser.error(f"--workers={options.workers}: must not be negative")
    if options.input is not None:
        folder = _own(options)
    else:
        folder = prepare_opensounds(
            options.tier or "default",
            options.output or Path("data"),
            options.packages,
            options.workers,
            require_all=options.require_all,
        )
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm prepare"))
