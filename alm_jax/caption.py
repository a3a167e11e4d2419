"""Describes audio files in words.

    alm caption --model=DIR --audio FILES... [--output=FILE.jsonl]

Prints `path<TAB>caption` a line, in the order given; of a long file the first `max_seconds` of the
model are described. Files that cannot be used are named on stderr and left out.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alm_jax import cli
from alm_jax.arguments import ArgumentParser
from alm_jax.errors import UserError
from alm_jax.inference.verb_inputs import (
    find_audio,
    load_model,
    positive_int,
    report_skipped,
    require_some,
)

if TYPE_CHECKING:
    from input_pipeline.audio_files import AudioError


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="alm caption", description=__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a run's workdir, or an exported folder"
    )
    parser.add_argument(
        "--audio",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="audio files, or folders to search for them",
    )
    parser.add_argument(
        "--output",
        metavar="FILE.jsonl",
        help='write {"path": ..., "caption": ...} a line there as well',
    )
    parser.add_argument(
        "--max_length", type=positive_int, metavar="N", help="most tokens of a caption"
    )
    parser.add_argument(
        "--decode",
        default="greedy",
        metavar="HOW",
        help="greedy (default), sample[:temperature=1.0,top_p=1.0,seed=0] or "
        "beam[:beams=4,length_penalty=0.0]",
    )
    parser.add_argument(
        "--batch_size",
        type=positive_int,
        default=16,
        metavar="N",
        help="clips the model takes at a time (default 16)",
    )
    return parser


_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


def _line(path: str, caption: str) -> str:
    """`path<TAB>caption`; a tab or line end in a file name is escaped, so that a line stays one."""
    shown = path.translate(_ESCAPES) if any(c in path for c in "\t\n\r") else path
    return f"{shown}\t{caption}"


def _json(record: dict[str, str]) -> str:
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        # The name of the file is no valid UTF-8: JSON's own escapes bring it back in Python.
        line = json.dumps(record)
    return line + "\n"


def _write_jsonl(output: Path, records: list[dict[str, str]]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(map(_json, records))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """The verb `alm caption`: 0 if anything could be described, else 2."""
    args = _parser().parse_args(argv)
    output = None if args.output is None else Path(args.output)
    if output is not None and output.is_dir():
        raise UserError(f"--output={args.output} is a folder; name a file")
    paths, skipped = find_audio(args.audio)
    model = load_model(args.model)
    from tqdm import tqdm

    captions: dict[int, str] = {}
    errors: dict[int, AudioError] = {}
    silent = []
    printed = 0
    with tqdm(total=len(paths), unit="file", desc="describing", delay=2.0, file=sys.stderr) as bar:
        for result in model.caption_each(
            paths, max_length=args.max_length, decode=args.decode, batch_size=args.batch_size
        ):
            bar.update()
            if result.error is not None:
                errors[result.index] = result.error
            else:
                captions[result.index] = result.value or ""
                if result.silent:
                    silent.append(paths[result.index])
            # Clips are done in the order of their lengths; a line waits for those before it.
            while printed in captions or printed in errors:
                if printed in captions:
                    tqdm.write(_line(paths[printed], captions[printed]), file=sys.stdout)
                printed += 1
    skipped += [errors[index] for index in sorted(errors)]
    report_skipped("caption", skipped, silent)
    require_some(len(captions), skipped, "described")
    if output is not None:
        records = [{"path": paths[i], "caption": captions[i]} for i in sorted(captions)]
        _write_jsonl(output, records)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm caption"))
