"""Prints pip constraints that pin every dependency to its lower bound in pyproject.toml.

`make test-lower-bounds` installs with them. Run by any Python >= 3.11 without packages.
"""

import pathlib
import re
import tomllib

PYPROJECT = pathlib.Path(__file__).parent.parent / "pyproject.toml"
_REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?:\[[^]]*\])?>=(?P<version>[0-9][0-9a-z.]*)")


def lower_bounds() -> dict[str, str]:
    """Returns name -> oldest admitted version, over the dependencies and all extras.

    Raises:
      ValueError: a requirement that is not of the form `name[extra]>=version`, or one name with two
        bounds.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        requirements += extra
    bounds: dict[str, str] = {}
    for requirement in requirements:
        match = _REQUIREMENT.fullmatch(requirement)
        if match is None:
            raise ValueError(f"pyproject.toml: {requirement!r} states no lower bound")
        name, version = match["name"], match["version"]
        if bounds.setdefault(name, version) != version:
            raise ValueError(f"pyproject.toml: {name} has the bounds {bounds[name]} and {version}")
    return bounds


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in lower_bounds().items()))
