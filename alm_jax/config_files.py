"""Config files: finding them by path or name, and running their `get_config`."""

import hashlib
import inspect
import pathlib
import re
import sys
import types

from ml_collections.config_dict import ConfigDict

from alm_jax import errors
from alm_jax.errors import ConfigError


def shipped_configs() -> dict[str, pathlib.Path]:
    """Returns the configs that come with the project: bare name -> file.

    An installed wheel carries them inside the package; a checkout has them in `configs/`.
    """
    package = pathlib.Path(__file__).parent
    folder = package / "_configs"
    # The pyproject check keeps a stranger's site-packages/configs from being taken for ours.
    if not folder.is_dir() and (package.parent / "pyproject.toml").is_file():
        folder = package.parent / "configs"
    has_get_config = re.compile(r"^def get_config\(", re.MULTILINE)
    return {
        path.stem: path
        for path in sorted(folder.glob("*.py"))
        if has_get_config.search(path.read_text(encoding="utf-8"))
    }


def split_spec(spec: str) -> tuple[str, str]:
    """Splits `FILE[:ARG]` into the two; a folder's name may hold a colon too."""
    match = re.fullmatch(r"(.*?\.(?:py|json))(?::(.*))?", spec, re.DOTALL)
    if match:
        return match[1], match[2] or ""
    name, _, arg = spec.partition(":")
    return name, arg


def find(name: str) -> pathlib.Path:
    """Returns the file of a path or of a shipped config's bare name.

    Raises:
      ConfigError: there is none; the message lists the shipped configs, the closest first.
    """
    path = pathlib.Path(name)
    shipped = shipped_configs()
    if path.suffix in (".py", ".json") or len(path.parts) > 1:
        if path.is_file():
            return path
    elif name in shipped:
        return shipped[name]
    stem = path.stem
    close = errors.closest(stem, shipped, limit=len(shipped) or 1)
    ordered = close + [other for other in shipped if other not in close]
    message = f"there is no config {name!r}"
    if path.is_dir():
        message += " (that is a folder)"
    if ordered:
        message += f"; shipped configs, closest first: {', '.join(ordered)} (--config={ordered[0]})"
    raise ConfigError(message)


def run_file(path: pathlib.Path) -> types.ModuleType:
    """Executes a config file as a member of a private package, so relative imports work."""
    folder = str(path.parent.resolve())
    package_name = f"_alm_config_{hashlib.sha1(folder.encode()).hexdigest()[:12]}"
    for name in [name for name in sys.modules if name.startswith(package_name + ".")]:
        del sys.modules[name]  # a neighbour may have been edited since the last load
    package = types.ModuleType(package_name)
    package.__path__ = [folder]
    sys.modules[package_name] = package
    module = types.ModuleType(f"{package_name}.{path.stem}")
    module.__file__ = str(path)
    module.__package__ = package_name
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module


def run_get_config(path: pathlib.Path, arg: str) -> ConfigDict:
    """Runs a config file and returns what its `get_config` makes of `arg`.

    Raises:
      ConfigError: the file cannot be run (with the line), or gives no ConfigDict.
    """
    try:
        module = run_file(path)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise ConfigError(f"config file {path} defines no get_config(arg='') function")
        takes_arg = bool(inspect.signature(get_config).parameters)
        if arg and not takes_arg:
            raise ConfigError(f"config file {path} takes no argument, but {arg!r} was given")
        config = get_config(arg) if takes_arg else get_config()
    except errors.UserError:
        raise
    except Exception as error:  # whatever a user's file raises is reported with its place
        message = f"config file {path} failed{_line_in(path, error)}: "
        message += f"{type(error).__name__}: {error}"
        name = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and path.with_name(f"{name}.py").is_file():
            message += f"; for the file beside it write `from .{name} import ...`"
        raise ConfigError(message) from error
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"get_config of {path} must return an ml_collections ConfigDict, "
            f"not {type(config).__name__}"
        )
    return config


def _line_in(path: pathlib.Path, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f" at line {error.lineno}"
    line = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" at line {line}" if line else ""
