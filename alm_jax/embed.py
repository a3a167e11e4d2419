"""Embeds audio files and strings into one .npz file.

    alm embed --model=DIR --audio FILES... --text STRINGS... --output=OUT.npz

The .npz file holds `audio` float32 [n, d] and `text` float32 [m, d], rows of norm 1, so that their
product is the cosine similarity; and `audio_path` [n], `text_string` [m]. A file of any length and
sample rate gives one row. Files that cannot be used are named on stderr and left out.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    import numpy as np

    from alm_jax.inference.model import Model
    from input_pipeline.audio_files import AudioError


def embed_files(
    model: Model, paths: list[str], batch_size: int
) -> tuple[np.ndarray, list[str], list[AudioError], list[str]]:
    """Embeds what can be embedded of `paths`, with a progress bar from the third second on.

    Returns:
      float32 [n, d], the n paths they belong to (in the order given), the errors of the others, and
      the paths that are silent (they have an embedding all the same).
    """
    import numpy as np
    from tqdm import tqdm

    rows: dict[int, np.ndarray] = {}
    errors: dict[int, AudioError] = {}
    silent = set()
    with tqdm(total=len(paths), unit="file", desc="embedding", delay=2.0, file=sys.stderr) as bar:
        for result in model.embed_audio_each(paths, batch_size=batch_size):
            bar.update()
            if result.error is not None:
                errors[result.index] = result.error
            elif result.value is not None:
                rows[result.index] = result.value
                if result.silent:
                    silent.add(result.index)
    order = sorted(rows)
    matrix = np.zeros((len(order), model.embed_dim), np.float32)
    for row, index in enumerate(order):
        matrix[row] = rows[index]
    return (
        matrix,
        [paths[index] for index in order],
        [errors[index] for index in sorted(errors)],
        [paths[index] for index in sorted(silent)],
    )


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Writes an uncompressed .npz; nobody ever reads half a file, and a full disk leaves none."""
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)
        # mkstemp makes files that nobody else may read; give the usual rights.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(partial, 0o666 & ~mask)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="alm embed", description=__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a run's workdir, or an exported folder"
    )
    parser.add_argument(
        "--audio",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="audio files, or folders to search for them",
    )
    parser.add_argument(
        "--text",
        nargs="+",
        action="extend",
        default=[],
        metavar="STRING",
        help="strings; one that begins with a dash as --text=-STRING",
    )
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="where to write")
    parser.add_argument(
        "--batch_size",
        type=positive_int,
        default=16,
        metavar="N",
        help="windows the model takes at a time (default 16); more for an accelerator",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """The verb `alm embed`: 0 if anything could be embedded, else 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.audio and not args.text:
        parser.error("nothing to embed: give --audio FILES..., --text STRINGS... or both")
    output = Path(args.output)
    if output.suffix != ".npz":
        raise UserError(f"--output={args.output}: the name must end in .npz")
    if output.is_dir():
        raise UserError(f"--output={args.output} is a folder; name a file")
    paths, skipped = find_audio(args.audio)
    model = load_model(args.model)
    import numpy as np

    if args.text:
        text = model.embed_text(args.text)
    else:
        text = np.zeros((0, model.embed_dim), np.float32)
    audio, embedded, errors, silent = embed_files(model, paths, args.batch_size)
    skipped += errors
    report_skipped("embed", skipped, silent)
    for string in args.text:
        if not string.strip():
            print("alm embed: note: a string is empty; its row means no words", file=sys.stderr)
        elif model.is_cut(string):
            print(
                f"alm embed: note: only the first {model.max_text_tokens} tokens count of"
                f" {string[:40]!r}...",
                file=sys.stderr,
            )
    if args.audio:
        require_some(len(embedded), skipped, "embedded")
    arrays = {
        "audio": audio,
        "text": text,
        "audio_path": np.asarray(embedded, dtype=np.str_),
        "text_string": np.asarray(args.text, dtype=np.str_),
    }
    write_npz(output, arrays)
    left_out = f", {len(skipped)} skipped" if skipped else ""
    print(f"{output}: audio {list(audio.shape)}, text {list(text.shape)}{left_out}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm embed"))
