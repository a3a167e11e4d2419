"""The project as a whole: what it depends on, what its wheel holds, what its documents name."""

import ast
import importlib.metadata
import os
import pathlib
import re
import stat
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator

import pytest
from packaging import version

from tests.lower_bounds import lower_bounds

ROOT = pathlib.Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("alm_jax", "input_pipeline")
# Declared, yet imported by none of our files: why it is declared all the same.
NOT_IMPORTED: dict[str, str] = {}


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", name, maxsplit=1)[0]).lower()


def _declared(extra: str | None = None) -> set[str]:
    project = PYPROJECT["project"]
    found = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {_normalise(requirement) for requirement in found}


def _tracked() -> list[pathlib.Path]:
    result = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if result.returncode:
        pytest.skip("not a git checkout, so which files belong to the project is unknown")
    return [ROOT / name for name in result.stdout.decode().split("\0") if name]


def _imports(path: pathlib.Path) -> Iterator[tuple[str, bool]]:
    """Yields each absolutely imported top-level module and whether importing the file needs it."""

    def walk(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0], at_import
        late = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_import and not late)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def _third_party() -> Iterator[tuple[pathlib.Path, str, set[str], bool]]:
    distributions = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for module, at_import in _imports(path):
                if module in sys.stdlib_module_names or module in PACKAGES:
                    continue
                names = {_normalise(name) for name in distributions.get(module, [module])}
                yield path.relative_to(ROOT), module, names, at_import


def test_every_import_is_declared():
    """An undeclared import works here by luck and fails on a fresh machine."""
    core = _declared()
    optional = set().union(
        *map(_declared, ("torch", "hf", "onnx", "app", "import", "captions", "beam", "language"))
    )
    for path, module, names, at_import in _third_party():
        # A file for use with an exported model runs beside torch, without this package.
        needs_torch = "modelling" in path.as_posix() or path.name == "alm_benchmarks.py"
        allowed = core | optional if not at_import or needs_torch else core
        assert names & allowed, (
            f"{path} imports {module}: declare it in pyproject.toml, or, if it belongs to an "
            "extra, import it inside the function that needs it"
        )


def test_every_dependency_is_used():
    """A dependency nobody needs costs every user its download and its conflicts."""
    used = set().union(*(names for _, _, names, _ in _third_party()))
    assert _declared() - used == set(NOT_IMPORTED), "declared - used, against the explained ones"


def test_tensorflow_is_no_dependency():
    """TensorFlow would double the installation and fight JAX for the accelerator."""
    todo, seen = sorted(_declared()), set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # wanted on another platform or Python only
        todo += [_normalise(r) for r in requirements if "extra ==" not in r.replace("'", '"')]
    assert "jaxlib" in seen
    assert not seen & {"tensorflow", "tensorflow-cpu", "tf-nightly"}
    for path, module, _, _ in _third_party():
        assert module != "tensorflow", path


def test_every_requirement_states_its_lower_bound():
    """`make test-lower-bounds` can only test bounds that are stated."""
    bounds = lower_bounds()
    assert {_normalise(name) for name in bounds} >= _declared()
    assert bounds["torch"]


def test_installed_versions_are_inside_the_bounds():
    """The tests must run on versions that a user's pip would accept."""
    for name, bound in lower_bounds().items():
        try:
            installed = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        parse = version.parse
        assert parse(installed) >= parse(bound), name


@pytest.mark.slow
def test_wheel_holds_packages_configs_and_data_and_nothing_else(tmp_path):
    """Installed without a checkout, `--config=NAME` and the data index must be there."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    assert {name.partition("/")[0].partition("-")[0] for name in names} == set(PACKAGES)
    for path in _tracked():
        name = path.relative_to(ROOT).as_posix()
        if name.partition("/")[0] in PACKAGES:
            assert name in names
        elif name.startswith("configs/"):
            assert f"alm_jax/_{name}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)

    code = """
import pathlib, alm_jax
from alm_jax import config
assert "site" in alm_jax.__file__, alm_jax.__file__
shipped = config.shipped_configs()
for name in shipped:
    config.load_config(name)
print(*sorted(shipped))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, text=True,
        capture_output=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    expected = [p.stem for p in ROOT.glob("configs/*.py") if "\ndef get_config(" in p.read_text()]
    assert result.stdout.split() == sorted(expected)


def test_continuous_integration_runs_make_test():
    """What is checked must be what the README tells people to run."""
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    assert lines[-1] == "make test"


def _documents() -> list[pathlib.Path]:
    return [path for path in _tracked() if path.suffix == ".md" and path.is_file()]


def test_documents_name_existing_files_and_targets():
    """A document that sends people to a file that is gone is worse than none."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in _documents():
        text = document.read_text(encoding="utf-8")
        pattern = r"[`(]((?:alm_jax|input_pipeline|configs|launch|tests|docs)/[\w./-]*\w/?)[`)#]"
        for name in re.findall(pattern, text):
            if re.fullmatch(r"[A-Z]+", pathlib.Path(name).stem):
                continue  # configs/NAME.py stands for any
            found = (ROOT / name).exists() or (document.parent / name).exists()
            assert found, f"{document.relative_to(ROOT)} names {name}"
        for target in re.findall(r"\bmake ([a-z][a-z-]*)(?=[`\s])(?! [a-z])", text):
            assert target in targets, f"{document.relative_to(ROOT)} names make {target}"


def test_no_file_names_a_package_registry():
    """Which mirror packages come from is the user's own setting of pip, apt and npm."""
    hosts = r"https?://[\w.-]*(pypi\.|pythonhosted|npmjs|debian\.org|download\.pytorch)"
    for path in _tracked():
        if path.is_file() and path.suffix in ("", ".md", ".py", ".toml", ".yaml", ".txt", ".sh"):
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not re.search(hosts, text), path
