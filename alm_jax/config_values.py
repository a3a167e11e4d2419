"""The text of an override to a value of the field's type, and the key that a wrong key meant."""

import ast
import difflib
import re
import types
from collections.abc import Sequence
from typing import Any

from alm_jax import errors
from alm_jax.errors import ConfigError

_NONE_WORDS = ("none", "null")
# By type, a value for the error messages to show.
EXAMPLES: dict[type, str] = {
    bool: "true",
    int: "1000",
    float: "1e-4",
    str: "some_text",
    tuple: "(1,2)",
}


def closest_keys(key: str, keys: Sequence[str], limit: int = 3) -> list[str]:
    """Returns the full key paths that `key` may have meant, best first.

    A path is close when it resembles `key` as a whole (`optm.lr`), or when its last part does: a
    field remembered in the wrong group (`train.lr` for `optim.lr`) or without one (`lr`).
    """
    leaf = key.rpartition(".")[2]

    def score(other: str) -> float:
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        last = difflib.SequenceMatcher(None, leaf, other.rpartition(".")[2]).ratio()
        # A little below the whole, so that with equal leaves the nearer group comes first.
        return max(whole, 0.7 * last + 0.3 * whole)

    ranked = sorted(((score(other), other) for other in keys), key=lambda pair: (-pair[0], pair[1]))
    best = ranked[0][0] if ranked else 0.0
    return [other for value, other in ranked[:limit] if value >= max(0.65, best - 0.15)]


def parse_value(key: str, text: str, kind: Any, current: Any, nullable: bool) -> Any:
    """Turns the text of an override into a value of the field's type, or explains why not."""
    if nullable and text.lower() in _NONE_WORDS:
        return None
    if kind is str:
        return text
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind is int:
            return _parse_int(text)
        if kind is float:
            return float(text)
        if kind in (tuple, list):
            return _parse_tuple(text, current)
        if kind is type(None):
            return freeze(_parse_literal(text))
    except (ValueError, TypeError, KeyError, SyntaxError):
        wanted = "tuple" if kind is list else kind.__name__
        if nullable:
            wanted += " or none"
        example = EXAMPLES[tuple if kind is list else kind]
        if kind in (tuple, list) and current:
            example = str(current).replace(" ", "")
        raise ConfigError(
            f"config.{key} must be {wanted}, not {text!r}; for example --config.{key}={example}"
        ) from None
    raise ConfigError(f"config.{key} is a {kind}, which cannot be set from the command line")


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)
        if not number.is_integer():
            raise
        return int(number)


def _parse_literal(text: str) -> Any:
    """Reads a Python literal, and anything else as the string it is."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError):
        return text


def _parse_tuple(text: str, current: Sequence[Any] | None) -> tuple[Any, ...]:
    """Reads `(1,2)`, `[1,2]`, `1,2` or, for strings, `a,b`; elements are of the present type."""
    inner = text.strip()
    kinds = {type(item) for item in current or ()}
    try:
        value = ast.literal_eval(inner)
    except (ValueError, TypeError, SyntaxError):
        if kinds - {str}:
            raise
        if inner[:1] + inner[-1:] in ("()", "[]"):
            inner = inner[1:-1]
        value = tuple(item.strip() for item in inner.split(",") if item.strip())
    if not isinstance(value, tuple | list):
        raise ValueError("not a sequence")
    value = freeze(value)
    if kinds == {float}:
        value = tuple(float(v) if type(v) is int else v for v in value)
    if kinds and not {type(item) for item in value} <= kinds:
        raise ValueError("an element of another type")
    return value


def freeze(value: Any) -> Any:
    """Turns lists into tuples, nested ones too; any other value is returned as it is."""
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


def parse_arg(arg: str, **defaults: Any) -> types.SimpleNamespace:
    """Parses the `:ARG` of a config spec, for use inside `get_config`.

    `parse_arg("tiny,width=192", tiny=False, width=768)` gives `tiny=True, width=192`; a bare word
    sets a boolean. Values are read by the type of their default, as overrides are.

    Raises:
      ConfigError: a name that `defaults` lacks, or a value of the wrong type.
    """
    values = dict(defaults)
    # Split at commas outside brackets, so that a tuple stays whole.
    for item in filter(None, (part.strip() for part in re.split(r",(?![^(\[]*[)\]])", arg))):
        name, equals, text = item.partition("=")
        if name not in values:
            known = ", ".join(values) or "none"
            hint = errors.did_you_mean(name, values)
            raise ConfigError(f"unknown config argument {name!r}{hint} (known: {known})")
        default = defaults[name]
        if not equals:
            if not isinstance(default, bool):
                raise ConfigError(f"config argument {name!r} needs a value: {name}=...")
            text = "true"
        try:
            values[name] = parse_value(name, text, type(default), default, default is None)
        except ConfigError as error:
            message = str(error).replace(f"--config.{name}=", f"{name}=")
            raise ConfigError(
                message.replace(f"config.{name}", f"config argument {name}")
            ) from None
    return types.SimpleNamespace(**values)
