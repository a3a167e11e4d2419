"""Reading members of package archives, against the ordinary tools and with damage."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from input_pipeline.opensounds import archives, fetch, index, licences

FILES = {
    "usr/share/x/a.wav": b"alpha" * 5000,
    "usr/share/x/A#4_light.wav": b"sharp",
    "usr/share/x/b/b.ogg": bytes(range(256)) * 400,
    "usr/share/doc/x/copyright": b"License: CC0\n",
}


def _zip(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


def _tar(files: dict[str, bytes], mode: str, top: str = "./") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(top + name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def _deb(data: bytes, name: str) -> bytes:
    """An ar archive as dpkg lays it out: 60-byte headers, members padded to even length."""
    result = b"!<arch>\n"
    for member, content in (("debian-binary", b"2.0\n"), ("control.tar.gz", b"odd"), (name, data)):
        result += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        result += content + b"\n" * (len(content) % 2)
    return result


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("x_1_all.deb", lambda files: _deb(_tar(files, "w:xz"), "data.tar.xz")),
        ("x_1_all.deb", lambda files: _deb(_tar(files, "w:gz"), "data.tar.gz/")),
        ("x_1_all.deb", lambda files: _deb(_tar(files, "w"), "data.tar")),
        ("x-1.tar.gz", lambda files: _tar(files, "w:gz", "x-1/")),
        ("x-1.tgz", lambda files: _tar(files, "w:gz", "package/")),
        ("x-1-py3-none-any.whl", _zip),
    ],
)
def test_members_of_every_archive(tmp_path: Path, name: str, make) -> None:  # type: ignore[no-untyped-def]
    """Each kind of package must give the same files under the same names."""
    files = FILES | {"usr/share/x/0snd.pk3": _zip({"sound/ui/beep.ogg": b"beep", "other": b"no"})}
    path = tmp_path / name
    path.write_bytes(make(files))
    wanted = [*FILES, "usr/share/x/0snd.pk3#sound/ui/beep.ogg", "usr/share/x/0snd.pk3#gone", "gone"]
    found = dict(archives.read_members(path, wanted))
    assert found == FILES | {"usr/share/x/0snd.pk3#sound/ui/beep.ogg": b"beep"}


@pytest.mark.parametrize("compression", ["xz", "zstd"])
def test_packages_built_by_dpkg(tmp_path: Path, compression: str) -> None:
    """Debian's and Ubuntu's packages (zstd) must be read as the distribution itself writes them."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip(
            "dpkg-deb is not on this machine, so no package can be built as Debian builds it"
        )
    tree = tmp_path / "tree"
    for name, content in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: x\n"
    )
    path = tmp_path / "x_1_all.deb"
    command = [
        "dpkg-deb",
        f"-Z{compression}",
        "--root-owner-group",
        "--build",
        str(tree),
        str(path),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "unknown compression" in built.stderr:
        pytest.skip(f"this machine's dpkg-deb cannot write {compression}")
    assert built.returncode == 0, built.stderr
    assert dict(archives.read_members(path, FILES)) == FILES


@pytest.mark.parametrize("kind", ["deb", "tar.gz", "whl"])
def test_damaged_archives(tmp_path: Path, kind: str) -> None:
    """A truncated download must be named with its remedy, never read as a shorter package."""
    whole = {
        "deb": _deb(_tar(FILES, "w:xz"), "data.tar.xz"),
        "tar.gz": _tar(FILES, "w:gz", "x-1/"),
        "whl": _zip(FILES),
    }[kind]
    for content in (whole[: len(whole) // 2], whole[:30], b"", b"<html>not found</html>" * 50):
        path = tmp_path / f"x-1.{kind}"
        path.write_bytes(content)
        with pytest.raises(
            archives.ArchiveError, match=f"x-1.{kind}.*delete it and fetch it again"
        ):
            list(archives.read_members(path, FILES))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(archives.ArchiveError):
        assert dict(archives.read_members(path, FILES)) == FILES
        raise archives.ArchiveError("the flipped byte fell into padding")


def test_licences_of_real_packages(tiny_packages: Path) -> None:
    """Every clip must carry what its package says of its licence."""
    said = {}
    for package in index.tier_packages("tiny"):
        archive = fetch.find_package(tiny_packages, package)
        assert archive is not None
        member = licences.licence_member(package.name, archive)
        ((_, text),) = archives.read_members(archive, [member])
        said[package.name] = licences.describe(package.name, member, text.decode())
    assert said["simutrans-pak64"] == "Artistic-1.0; see usr/share/doc/simutrans-pak64/copyright"
    assert "CC-BY-SA-3.0" in said["minetest-data"] and said["minetest-data"].startswith(
        "one or more"
    )
    assert "GPL-2 (TimGM6mb.sf2" in said["pretty_midi"] and "MIT" in said["pretty_midi"]
    assert licences.describe("foxdot", "PKG-INFO", "") == "unknown"
    assert licences.describe("x", "package.json", '{"license": "CC0-1.0"}') == "CC0-1.0"
