"""Finding and fetching packages by name; the clients are stand-ins that count calls."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from input_pipeline.opensounds import fetch, index

THEME = index.PACKAGES["sound-theme-freedesktop"]
NPM = index.PACKAGES["supersonic-scsynth-samples"]


def _client(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho \"$@\" >> '{folder}/{name}.log'\n{script}\n")
    path.chmod(0o755)


def _calls(folder: Path, name: str) -> list[str]:
    log = folder / f"{name}.log"
    return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-in clients that comes first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    return folder


@pytest.mark.parametrize(
    ("package", "files", "expected"),
    [
        ("ktuberling-data", ["ktuberling-data_4%3a22.12.3-1_all.deb"], 0),
        ("ktuberling-data", ["ktuberling-data_4:25.04.0-1_all.deb"], 0),
        ("minetest-data", ["minetest-data_5.6.1+dfsg+~1.9.0mt8+dfsg-2_all.deb"], 0),
        (
            "pretty_midi",
            ["pretty-midi-0.2.9.tar.gz", "pretty_midi-0.2.11.post0-py3-none-any.whl"],
            1,
        ),
        ("foxdot", ["FoxDot-0.9.0.tar.gz"], 0),
        (
            "lmms-common",
            ["lmms-common-doc_1_all.deb", "lmms-common_1.9_all.deb", "lmms-common_1.10_all.deb"],
            2,
        ),
        ("supersonic-scsynth-samples", ["supersonic-scsynth-samples-0.84.2.tgz"], 0),
        ("supersonic-scsynth-samples", ["supersonic-scsynth-0.84.2.tgz"], None),
        ("lmms-common", ["lmms-common_1.9_all.deb.part", "lmms-common.txt"], None),
    ],
)
def test_archives_are_found_whatever_their_version(
    tmp_path: Path, package: str, files: list[str], expected: int | None
) -> None:
    """A folder filled on another machine, with other versions, must serve without network."""
    for name in files:
        (tmp_path / name).touch()
    found = fetch.find_package(tmp_path, index.PACKAGES[package])
    assert found == (None if expected is None else tmp_path / files[expected])


def test_offline_never_calls_a_client(tmp_path: Path, path: Path) -> None:
    """A given folder promises that no network is used; what is missing names its remedy."""
    for client in ("apt-get", "npm", "pip"):
        _client(path, client, "exit 0")
    located = fetch.locate([THEME, NPM], tmp_path / "given", offline=True)
    assert located.archives == {}
    assert (
        f"cd {tmp_path}/given && apt-get download sound-theme-freedesktop"
        in located.missing[THEME.name]
    )
    assert (
        f"cd {tmp_path}/given && npm pack supersonic-scsynth-samples" in located.missing[NPM.name]
    )
    assert _calls(path, "apt-get") == _calls(path, "npm") == []


def test_nothing_is_downloaded_twice(
    tmp_path: Path, path: Path, tiny_packages: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A second run must not fetch 325 MB again; an interrupted one must leave nothing half."""
    real = fetch.find_package(tiny_packages, THEME)
    assert real is not None
    _client(path, "apt-get", f"cp '{real}' .")
    store = tmp_path / "packages"
    for _ in range(2):
        located = fetch.locate([THEME], store, offline=False)
        assert located.archives == {THEME.name: store / real.name} and not located.missing
    assert _calls(path, "apt-get") == ["download sound-theme-freedesktop"]
    assert [file.name for file in store.iterdir()] == [real.name]
    assert "fetching sound-theme-freedesktop (0.4 MB, apt)" in capfd.readouterr().out


def test_without_package_lists_own_ones_are_made(
    tmp_path: Path, path: Path, tiny_packages: Path
) -> None:
    """A bare container has no apt lists; its user must not need root and apt-get update."""
    real = fetch.find_package(tiny_packages, THEME)
    script = f"""case "$*" in
      *Dir::State::Lists=*download*) cp '{real}' . ;;
      *Dir::State::Lists=*update*) exit 0 ;;
      *) echo 'E: Unable to locate package sound-theme-freedesktop' >&2; exit 100 ;;
    esac"""
    _client(path, "apt-get", script)
    located = fetch.locate([THEME], tmp_path / "packages", offline=False)
    assert list(located.archives) == [THEME.name]
    calls = _calls(path, "apt-get")
    assert calls[0] == f"download {THEME.name}"
    assert sum(call.endswith("update") for call in calls) == 1


def test_a_package_that_cannot_be_had(tmp_path: Path, path: Path) -> None:
    """The client's own complaint and the exact command must be shown; other packages go on."""
    _client(path, "apt-get", "echo 'E: Unable to locate package' $3 >&2; exit 100")
    _client(path, "npm", "exit 0")
    located = fetch.locate([THEME, NPM], tmp_path / "packages", offline=False)
    assert located.archives == {}
    assert "E: Unable to locate package" in located.missing[THEME.name]
    assert "&& apt-get download sound-theme-freedesktop" in located.missing[THEME.name]
    assert "left no archive" in located.missing[NPM.name]
    assert not list((tmp_path / "packages").iterdir())


def test_missing_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without npm or apt must be told which client is missing."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch.apt_is_missing()
    located = fetch.locate([NPM], tmp_path / "packages", offline=False)
    assert "npm is not installed" in located.missing[NPM.name]
