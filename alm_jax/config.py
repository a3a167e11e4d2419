"""Experiment configs: ml_collections trees with strict overrides.

A config is a Python file with `get_config(arg: str = "") -> ConfigDict`. It is named by its path,
or by a bare name for those shipped with the project, and `:arg` is handed to `get_config`:

    load_config("configs/cacophony.py:tiny", ["optim.lr=1e-4", "mesh.shape=(2,4)"])

A config file may import a neighbour relatively (`from .common import optimizer`), wherever the
folder lies. Every leaf is None, a bool, an int, a float, a string, or a tuple of those (tuples may
nest), so that a config survives a trip through JSON unchanged. An override must name an existing
field and hold a value of that field's type: a typing mistake never becomes an ignored setting.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict

from alm_jax import arguments, config_files, config_values
from alm_jax.config_files import shipped_configs
from alm_jax.config_values import parse_arg
from alm_jax.errors import ConfigError

__all__ = [
    "ConfigDict",
    "ConfigError",
    "TrainArgs",
    "apply_overrides",
    "config_diff",
    "flatten",
    "load_config",
    "parse_arg",
    "parse_train_argv",
    "read_config",
    "save_config",
    "shipped_configs",
    "to_text",
]

_SCALARS = (bool, int, float, str)


def load_config(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a config and applies overrides.

    Args:
      spec: `FILE[:ARG]` with a path to a `.py` config or to a `config.json` saved by `save_config`,
        or the bare name of a shipped config.
      overrides: `key=value` strings in order, the last of a key winning; the key may carry the
        prefix `config.` or `--config.`. Ints are accepted for floats and integral floats (`1e4`)
        for ints; booleans are `true` or `false`; tuples `(1,2)`; `none` clears a field whose
        default is None.

    Returns:
      The resolved config, locked: references are replaced by their values, lists by tuples.

    Raises:
      ConfigError: no such file or key, a value of the wrong type, a required field left unset, or
        a value that JSON could not bring back.
    """
    name, arg = config_files.split_spec(spec)
    path = config_files.find(name)
    if path.suffix == ".json":
        if arg:
            raise ConfigError(f"{path} is a saved config and takes no argument, but got {arg!r}")
        config = read_config(path)
    else:
        config = config_files.run_get_config(path, arg)
    return apply_overrides(config, overrides)


def apply_overrides(config: ConfigDict, overrides: Sequence[str] = ()) -> ConfigDict:
    """Sets fields of a config, which is changed, and resolves it.

    Args:
      config: a tree that is not locked; a field may be a placeholder that an override must fill.
      overrides: as in `load_config`.

    Returns:
      The resolved config, locked.

    Raises:
      ConfigError: as `load_config`.
    """
    nullable = {key for key, value in _leaves(config) if value is None}
    for override in overrides:
        key, equals, text = arguments.strip_prefix(override).partition("=")
        if not equals:
            raise ConfigError(f"override {override!r} has no value; write --config.{key}=VALUE")
        _override(config, key, text, nullable)
    resolved = _resolve(config)
    resolved.lock()
    return resolved


def _override(config: ConfigDict, key: str, text: str, nullable: set[str]) -> None:
    parts = key.split(".")
    group = config
    for depth, part in enumerate(parts):
        if part not in group:
            raise _unknown_key(config, key, group, parts[:depth])
        is_group = _kind(group, part) is ConfigDict
        if depth < len(parts) - 1:
            if not is_group:
                owner = ".".join(parts[: depth + 1])
                raise ConfigError(f"config.{key}: config.{owner} is a single value, not a group")
            group = group[part]
        elif is_group:
            fields = ", ".join(f"config.{key}.{name}" for name in group[part])
            raise ConfigError(f"config.{key} is a group; set its fields instead: {fields}")
    last = parts[-1]
    kind = _kind(group, last)
    current = None if key in nullable else group[last]
    value = config_values.parse_value(key, text, kind, current, key in nullable)
    group[last] = value


def _kind(group: ConfigDict, name: str) -> Any:
    """Returns a field's type, which a placeholder has even while it holds no value."""
    field = dict(group.items(preserve_field_references=True))[name]
    return field.get_type() if isinstance(field, config_dict.FieldReference) else type(field)


def _unknown_key(
    config: ConfigDict, key: str, group: ConfigDict, path: Sequence[str]
) -> ConfigError:
    message = f"unknown config key config.{key}"
    close = config_values.closest_keys(key, [name for name, _ in _leaves(config)])
    if close:
        return ConfigError(f"{message}; did you mean {' or '.join(f'config.{k}' for k in close)}?")
    owner = ".".join(["config", *path])
    if not len(group):
        return ConfigError(f"{message}; {owner} has no fields in this config")
    return ConfigError(f"{message}; the fields of {owner} are: {', '.join(group)}")


def _leaves(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in config:
        key = f"{prefix}{name}"
        try:
            value = config[name]
        except config_dict.RequiredValueError:
            value = None
        if isinstance(value, ConfigDict):
            yield from _leaves(value, key + ".")
        else:
            yield key, value


def _resolve(config: ConfigDict, prefix: str = "") -> ConfigDict:
    """Copies a config: references become values, lists become tuples, and leaves are checked."""
    result = ConfigDict()
    for name in config:
        key = f"{prefix}{name}"
        try:
            value = config[name]
        except config_dict.RequiredValueError:
            example = config_values.EXAMPLES.get(_kind(config, name), "VALUE")
            example = f"--config.{key}={example}"
            raise ConfigError(f"config.{key} has no default; set it with {example}") from None
        if not isinstance(name, str):
            raise ConfigError(f"config.{key}: the name {name!r} of a field must be a string")
        if isinstance(value, ConfigDict):
            result[name] = _resolve(value, key + ".")
        else:
            value = config_values.freeze(value)
            _check_leaf(key, value)
            result[name] = value
    return result


def _check_leaf(key: str, value: Any) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check_leaf(key, item)
    # Exact types: a NumPy scalar or an enum passes isinstance, but does not come back from JSON.
    elif value is not None and type(value) not in _SCALARS:
        raise ConfigError(
            f"config.{key} holds a {type(value).__module__}.{type(value).__qualname__}; "
            "a config holds only None, bool, int, float, str, tuples of these, and groups"
        )
    elif isinstance(value, float) and value != value:
        raise ConfigError(f"config.{key} is NaN, which equals nothing, itself included")


def flatten(config: ConfigDict) -> dict[str, Any]:
    """Returns `{"optim.lr": 1e-4, ...}`, every leaf by its full key path, sorted."""
    return dict(sorted(_leaves(config)))


def save_config(config: ConfigDict, path: str | os.PathLike[str]) -> None:
    """Writes a config as JSON, so that `read_config(path) == config`.

    Args:
      config: what `load_config` returned (its leaves are checked again).
      path: local path or a bucket's `gs://...`; the folder must exist.
    """
    from etils import epath  # late: it costs more than the rest of the module

    target = epath.Path(path)
    text = json.dumps(_resolve(config).to_dict(), indent=2, ensure_ascii=False)
    # A reader never sees half a file, even when the job is killed here.
    partial = target.with_name(target.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(target)


def read_config(path: str | os.PathLike[str]) -> ConfigDict:
    """Reads what `save_config` wrote; the result is locked, its JSON lists are tuples.

    Raises:
      ConfigError: the file is missing, is not JSON, or is not an object.
    """
    from etils import epath

    try:
        tree = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ConfigError(f"there is no saved config at {os.fspath(path)}") from None
    except ValueError as error:
        raise ConfigError(f"{os.fspath(path)} is not a saved config: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{os.fspath(path)} is not a saved config: it holds no object")
    config = _resolve(ConfigDict(tree))
    config.lock()
    return config


def training_folders(config: ConfigDict) -> list[str]:
    """Datasets that the config's model was trained on; none if others have trained it."""
    mixture = [folder for folder, _ in config.data.get("mixture", ())]
    return mixture or [config.data.dir] * bool(config.data.dir)


def config_diff(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Returns one line for each leaf that differs, `optim.lr: 0.001 -> 0.01`, sorted by key.

    A leaf that one side lacks is `(absent)` there.
    """
    # By text: True == 1 == 1.0 in Python, yet each means something else in a config.
    before = {key: repr(value) for key, value in flatten(old).items()}
    after = {key: repr(value) for key, value in flatten(new).items()}
    return [
        f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def to_text(config: ConfigDict) -> str:
    """Returns one sorted `key = value` line a leaf, for logs, golden files and comparisons."""
    return "".join(f"{key} = {value!r}\n" for key, value in flatten(config).items())


@dataclasses.dataclass(frozen=True)
class TrainArgs:
    """What `alm train` was asked for.

    Attributes:
      config: the config, loaded and with its overrides applied.
      workdir: folder of the run; local, or `gs://...`.
      spec: the config's name as given.
      overrides: the overrides as given, without their prefix.
    """

    config: ConfigDict
    workdir: str
    spec: str
    overrides: tuple[str, ...]


def parse_train_argv(argv: Sequence[str] | None = None, prog: str = "alm train") -> TrainArgs:
    """Parses `--config=SPEC --workdir=DIR --config.key=value ...`.

    An unknown flag, or a missing one, ends the process with status 2 and a message that names the
    closest flag.

    Raises:
      ConfigError: as `load_config`.
    """
    parser = arguments.ArgumentParser(
        prog=prog,
        description="Trains what a config describes; run again, it resumes from its checkpoint.",
    )
    parser.add_config_argument()
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder of config, metrics and checkpoints"
    )
    parsed = parser.parse_args(argv)
    return TrainArgs(
        config=load_config(parsed.config, parsed.overrides),
        workdir=parsed.workdir,
        spec=parsed.config,
        overrides=tuple(parsed.overrides),
    )
