"""Command-line parsing shared by the verbs: exact flags, and config overrides beside them.

`ArgumentParser` is argparse without guessing: no abbreviations, and a flag it does not know is an
error that names the closest one. A verb that takes a config calls `add_config_argument`; the
parsed namespace then has `config` (the spec) and `overrides` (the `--config.key=value` arguments in
order), which is what `alm_jax.config.load_config` takes.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from alm_jax import errors

_PREFIXES = ("--config.", "config.")


def _is_override(argument: str) -> bool:
    if argument.startswith("--config."):
        return True
    # Without dashes only the `config.key=value` form: a file may well be called config.wav.
    return argument.startswith("config.") and "=" in argument


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the config overrides out of a command line.

    Args:
      argv: arguments; an override is `--config.key=value`, `--config.key value` or
        `config.key=value`. What follows a lone `--` is never one.

    Returns:
      `(overrides, rest)`: the overrides as `key=value` with the key's `config.` prefix removed, and
      the other arguments, each in the order given.

    Raises:
      errors.UserError: an override has no value.
    """
    overrides: list[str] = []
    rest: list[str] = []
    arguments = list(argv)
    i = 0
    while i < len(arguments):
        argument = arguments[i]
        i += 1
        if argument == "--":
            rest += arguments[i - 1 :]
            break
        if not _is_override(argument):
            rest.append(argument)
            continue
        if "=" not in argument:
            if i == len(arguments) or arguments[i].startswith("--"):
                raise errors.UserError(f"{argument} has no value; write {argument}=VALUE")
            argument = f"{argument}={arguments[i]}"
            i += 1
        overrides.append(strip_prefix(argument))
    return overrides, rest


def strip_prefix(override: str) -> str:
    """Removes the leading `--config.` or `config.` of an override or a key, where there is one."""
    for prefix in _PREFIXES:
        if override.startswith(prefix):
            return override.removeprefix(prefix)
    return override


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations whose errors name the closest flag or choice."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._takes_config = False

    def add_config_argument(self, default: str | None = None) -> None:
        """Adds `--config=SPEC`, required unless `default` is given, and accepts overrides."""
        self._takes_config = True
        self.add_argument(
            "--config",
            metavar="FILE[:ARG]",
            default=default,
            required=default is None,
            help="a config file, or the bare name of a shipped one; any of its fields is set by "
            "--config.KEY=VALUE",
        )

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parses `args` (the process's own when None), or exits with status 2 and the reason."""
        if args is None:
            args = sys.argv[1:]
        overrides: list[str] = []
        if self._takes_config:
            try:
                overrides, args = split_overrides(args)
            except errors.UserError as error:
                self.error(str(error))
        parsed, unknown = self.parse_known_args(list(args), namespace)
        if unknown:
            self.error("; ".join(self._explain(argument) for argument in unknown))
        if self._takes_config:
            parsed.overrides = overrides
        return parsed

    def _explain(self, argument: str) -> str:
        flag = argument.split("=", 1)[0]
        if not flag.startswith("-"):
            return f"unexpected argument {argument!r}"
        return f"unknown flag {flag}{errors.did_you_mean(flag, self._option_string_actions)}"

    def error(self, message: str) -> NoReturn:
        """Prints the message and where to find help, without the wall of usage; exits with 2."""
        self.exit(2, f"{self.prog}: error: {message}\n(`{self.prog} --help` lists what it takes)\n")
