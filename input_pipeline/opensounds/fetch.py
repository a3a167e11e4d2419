"""Finds packages in a folder, or fetches them there by name with the ordinary clients."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from input_pipeline.opensounds.index import Package

_SUFFIXES = {"apt": (".deb",), "pip": (".whl", ".tar.gz", ".zip"), "npm": (".tgz",)}
_FETCH_SECONDS = 3600
_APT_LISTS = ".apt"


@dataclasses.dataclass(frozen=True)
class Located:
    """Where a tier's packages are.

    Attributes:
      archives: package name -> archive file.
      missing: package name -> why it is not there and the exact command that brings it.
    """

    archives: dict[str, Path]
    missing: dict[str, str]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _package_of(file: Path, package: Package) -> bool:
    if not file.name.endswith(_SUFFIXES[package.manager]):
        return False
    if package.manager == "apt":  # name_version_arch.deb; a Debian name holds no underscore
        return file.name.partition("_")[0] == package.name
    match = re.match(r"(.+?)-v?\d", file.name)
    return match is not None and _plain(match.group(1)) == _plain(package.name)


def _version_order(file: Path) -> list[tuple[int, str]]:
    return [
        (int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)
    ]


def find_package(folder: Path, package: Package) -> Path | None:
    """The archive of ``package`` in ``folder``: any version, the newest if there are several."""
    if not folder.is_dir():
        return None
    found = [file for file in folder.iterdir() if file.is_file() and _package_of(file, package)]
    return max(found, key=_version_order) if found else None


def fetch_command(package: Package) -> list[str]:
    """The command that brings the package's archive into the current folder."""
    if package.manager == "apt":
        return ["apt-get", "download", package.name]
    if package.manager == "npm":
        return ["npm", "pack", package.name]
    return [sys.executable, "-m", "pip", "download", "--no-deps", package.name]


def remedy(package: Package, folder: Path) -> str:
    """The command a person can run to bring a missing package."""
    command = fetch_command(package)
    shown = "pip" if package.manager == "pip" else command[0]
    rest = command[3:] if package.manager == "pip" else command[1:]
    return f"cd {folder} && {' '.join([shown, *rest])}"


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _run(command: Sequence[str], folder: Path, megabytes: float = 0) -> str:
    """Runs a client in ``folder``; returns '' or its complaint. The bar follows the folder."""
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        except FileNotFoundError:
            return f"{command[0]} is not installed"
        # disable=None: no bar where the output is not a terminal.
        with (
            process,
            tqdm(total=round(megabytes * 1e6), unit="B", unit_scale=True, disable=None) as bar,
        ):
            while process.poll() is None:
                try:
                    process.wait(0.3)
                except subprocess.TimeoutExpired:
                    with contextlib.suppress(FileNotFoundError):  # clients rename while we look
                        bar.update(_bytes_in(folder) - bar.n)
                if time.monotonic() - begin > _FETCH_SECONDS:
                    process.kill()
                    return f"no end after {_FETCH_SECONDS} s"
        if process.returncode == 0:
            return ""
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    # The first error says what is wrong; what follows repeats it.
    errors = [line for line in lines if line.startswith(("E:", "ERROR", "npm error", "npm ERR"))]
    return (errors or lines[-1:] or [f"exit code {process.returncode}"])[0]


def _apt_download(package: Package, folder: Path, cache: Path) -> str:
    """Runs apt-get download; without package lists, with lists of our own (needs no root)."""
    command = fetch_command(package)
    if not _run(command, folder, package.megabytes):
        return ""
    lists = cache / _APT_LISTS
    (lists / "lists/partial").mkdir(parents=True, exist_ok=True)
    (lists / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    options = [
        "-o",
        f"Dir::State::Lists={lists.resolve()}/lists",
        "-o",
        f"Dir::Cache={lists.resolve()}/cache",
    ]
    updated = lists / "updated"
    if not updated.exists():
        print(
            "opensounds: apt-get update (lists of our own, the system's stay as they are)",
            flush=True,
        )
        if problem := _run(["apt-get", *options, "update"], folder):
            return problem
        updated.touch()
    return _run([command[0], *options, *command[1:]], folder, package.megabytes)


def _fetch(package: Package, cache: Path) -> str:
    cache.mkdir(parents=True, exist_ok=True)
    # Into a folder of its own first: an interrupted download never looks like a package.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as partial:
        folder = Path(partial)
        folder.chmod(0o755)
        if package.manager == "apt":
            problem = _apt_download(package, folder, cache)
        else:
            problem = _run(fetch_command(package), folder, package.megabytes)
        found = find_package(folder, package)
        if found is None:
            return problem or "the client ran but left no archive"
        shutil.move(found, cache / found.name)
    return ""


def apt_is_missing() -> bool:
    """True where there is no apt-get to fetch Debian packages with."""
    return shutil.which("apt-get") is None


def locate(packages: Sequence[Package], folder: Path, *, offline: bool) -> Located:
    """Finds packages in ``folder`` and, unless ``offline``, fetches those that are not there.

    Args:
      packages: what is needed.
      folder: folder of archives; created when something is fetched.
      offline: use only what is there.
    """
    archives: dict[str, Path] = {}
    missing: dict[str, str] = {}
    for package in packages:
        found = find_package(folder, package)
        if found is None and not offline:
            size = f"{package.megabytes:g} MB, {package.manager}"
            print(f"opensounds: fetching {package.name} ({size})", flush=True)
            if problem := _fetch(package, folder):
                missing[package.name] = f"{problem}; remedy: {remedy(package, folder)}"
            found = find_package(folder, package)
        if found is not None:
            archives[package.name] = found
        elif package.name not in missing:
            missing[package.name] = f"not in {folder}; remedy: {remedy(package, folder)}"
    shutil.rmtree(folder / _APT_LISTS, ignore_errors=True)
    return Located(archives, missing)
