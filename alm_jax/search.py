"""Finds sounds in a folder by what they sound like, on a local page or in the terminal.

    alm search --model=DIR --audio=FOLDER                      a page at http://127.0.0.1:7860
    alm search --model=DIR --audio=FOLDER --text="a dog barks"  score<TAB>path lines

The folder is embedded once; the index is kept in the cache folder ($ALM_JAX_CACHE, by default
~/.cache/alm_jax), and later only what is new or changed is embedded. Files that cannot be used,
and silent ones, are named on stderr and left out.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from alm_jax import cli
from alm_jax.arguments import ArgumentParser
from alm_jax.errors import UserError
from alm_jax.inference.verb_inputs import load_model, positive_int


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise ValueError(text)
    return port


_port.__name__ = "port (1 to 65535)"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="alm search", description=__doc__)
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="a run's workdir, or an exported folder"
    )
    parser.add_argument("--audio", required=True, metavar="FOLDER", help="where the sounds are")
    parser.add_argument(
        "--text", metavar="QUERY", help="print the best matches of this text and end"
    )
    parser.add_argument(
        "--top", type=positive_int, default=5, metavar="N", help="matches to print (default 5)"
    )
    parser.add_argument(
        "--port", type=_port, metavar="PORT", help="of the page; default: a free one from 7860 on"
    )
    parser.add_argument(
        "--reindex", action="store_true", help="embed all files anew, whatever is kept of them"
    )
    parser.add_argument(
        "--batch_size",
        type=positive_int,
        default=16,
        metavar="N",
        help="windows the model takes at a time (default 16)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """The verb `alm search`: 0 once ended, 2 if not one sound can be searched."""
    args = _parser().parse_args(argv)
    # What can be known to fail is checked before the model is loaded and the folder embedded.
    if args.text is not None and not args.text.strip():
        raise UserError("--text is empty: say what the sound should be like")
    if not Path(args.audio).expanduser().is_dir():
        raise UserError(f"--audio={args.audio}: no such folder; search needs a folder of sounds")
    if args.text is None:
        from alm_jax.search_page import require_gradio

        require_gradio()
    model = load_model(args.model)
    # Before the folder is embedded, since a model without a text side fails here. (For the page it
    # compiles the text tower, so that the first query is as quick as the others.)
    query = model.embed_text(args.text or "")[0]
    from alm_jax.search_index import build_index

    index = build_index(model, args.audio, batch_size=args.batch_size, fresh=args.reindex)
    for path, problem in index.skipped.items():
        print(f"alm search: skipped {path}: {problem}", file=sys.stderr)
    if not len(index):
        raise UserError(
            f"none of the {len(index.skipped)} files in {args.audio} can be searched; the reasons"
            " are above"
        )
    if args.text is None:
        from alm_jax.search_page import serve

        # Ended by a signal, the server still removes its temporary files.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        serve(model, index, args.port)
        return 0
    if model.is_cut(args.text):
        print(
            f"alm search: note: only the first {model.max_text_tokens} tokens of the text count",
            file=sys.stderr,
        )
    for hit in index.search(query, args.top):
        print(f"{hit.score:.4f}\t{hit.path}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm search"))
