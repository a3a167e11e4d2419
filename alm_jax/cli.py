"""The `alm` command: `alm VERB ...` runs the `main` of one module.

Nothing heavy is imported before the verb is known, so that `alm --help` answers at once. What the
user can mend (`UserError`, a missing file) is one message and status 2; everything else is a bug
and keeps its traceback. `--debug`, or ALM_DEBUG=1 in the environment, always shows the traceback.
"""

import ast
import errno
import importlib
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from alm_jax import __version__, errors

# Verb -> module, in the order of a project's life. A verb is listed and accepted once its module
# defines `main(argv) -> int`; its one-line help is the first line of the module's docstring.
MODULES = {
    "quickstart": "alm_jax.quickstart",
    "prepare": "input_pipeline.prepare",
    "train": "alm_jax.train",
    "eval": "alm_jax.eval",
    "embed": "alm_jax.embed",
    "caption": "alm_jax.caption",
    "search": "alm_jax.search",
    "export": "alm_jax.export",
    "import": "alm_jax.import_checkpoint",
    "plan": "alm_jax.plan",
    "overlap": "input_pipeline.overlap",
    "inspect": "alm_jax.inspect",
    "ablation": "alm_jax.ablation",
}

_MAIN = re.compile(r"^def main\(", re.MULTILINE)

_USER_OS_ERRORS = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
# Of any other error of the operating system: no space, over quota, read-only, too large.
_USER_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def verbs() -> dict[str, pathlib.Path]:
    """Returns the verbs that can be run: name -> source file of its module, imported by nobody."""
    found = {}
    for verb, module in MODULES.items():
        package, _, name = module.rpartition(".")
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = pathlib.Path(folder) / f"{name}.py"
            if path.is_file() and _MAIN.search(path.read_text(encoding="utf-8")):
                found[verb] = path
    return found


def _summary(path: pathlib.Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def _help() -> str:
    found = verbs()
    width = max(map(len, found), default=0)
    lines = [f"  {verb:<{width}}  {_summary(path)}" for verb, path in found.items()]
    return "\n".join(
        [
            "usage: alm VERB [ARGUMENTS...]    (alm VERB --help tells what a verb takes)",
            "",
            *lines,
            "",
            "  --version  print the version",
            "  --debug    show the traceback of every error (as ALM_DEBUG=1 does)",
        ]
    )


def run(
    main: Callable[[list[str] | None], int | None],
    argv: Sequence[str] | None = None,
    prog: str = "alm",
) -> int:
    """Calls a verb's `main` and turns what ends it into a message and an exit status.

    For a module's own `if __name__ == "__main__": sys.exit(cli.run(main))` as much as for `alm`.

    Args:
      main: the verb; None or 0 means success.
      argv: its arguments, the process's own when None.
      prog: name before the message.

    Returns:
      The exit status: 2 for an error of the user's, 130 for Ctrl-C, 141 when the reader of the
      output has gone (`alm caption ... | head`).
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("ALM_DEBUG", "0") not in ("", "0")
    if "--debug" in arguments:
        arguments.remove("--debug")
        debug = True
    # A file name that is no valid UTF-8 must not turn a message into an encoding error.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(arguments) or 0
        sys.stdout.flush()
        return status
    except errors.UserError as error:
        message = str(error)
        if debug:
            raise
    except BrokenPipeError:
        # Python would flush stdout again at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        message = f"{error} (--debug shows where)"
        user_error = isinstance(error, _USER_OS_ERRORS) or error.errno in _USER_ERRNOS
        if debug or not user_error:
            raise
    except KeyboardInterrupt:
        if debug:
            raise
        print(f"\n{prog}: stopped", file=sys.stderr)
        return 130
    print(f"{prog}: error: {message}", file=sys.stderr)
    return 2


def _dispatch(argv: list[str] | None) -> int | None:
    arguments = argv or []
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if verb == "--version":
        print(f"alm_jax {__version__}")
        return 0
    known = verbs()
    if verb not in known:
        hint = errors.did_you_mean(verb, known)
        raise errors.UserError(f"unknown verb {verb!r}{hint} (verbs: {', '.join(known)})")
    return importlib.import_module(MODULES[verb]).main(arguments[1:])


def main(argv: list[str] | None = None) -> int:
    """Runs `alm` on `argv` (the process's own when None) and returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((a for a in arguments if not a.startswith("-")), None)
    return run(_dispatch, arguments, f"alm {verb}" if verb in MODULES else "alm")


if __name__ == "__main__":
    sys.exit(main())
