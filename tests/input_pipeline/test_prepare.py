"""The prepare verb: from package archives to a TFDS dataset, and everything that goes wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import tensorflow_datasets as tfds

from alm_jax import cli
from input_pipeline import prepare
from input_pipeline.opensounds import archives, build, captions, fetch, index, splits
from input_pipeline.prepare import PrepareError, prepare_opensounds

SMALL = ("simutrans-pak64", "sound-theme-freedesktop")


def _read(folder: Path) -> dict[str, list[dict]]:
    builder = tfds.builder_from_directory(folder)
    return {
        split: [dict(example) for example in builder.as_data_source(split)]
        for split in builder.info.splits
    }


@pytest.fixture(scope="module")
def examples(tiny_dataset: Path) -> dict[str, list[dict]]:
    return _read(tiny_dataset)


@pytest.fixture
def packages(tiny_packages: Path, tmp_path: Path) -> Path:
    """A folder with the two smallest packages of the tiny tier, 51 recordings."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in SMALL:
        archive = fetch.find_package(tiny_packages, index.PACKAGES[name])
        assert archive is not None
        (folder / archive.name).symlink_to(archive)
    return folder


def test_dataset_as_promised(examples: dict[str, list[dict]], tiny_dataset: Path) -> None:
    """Training reads these very fields; a changed type or an empty clip breaks it."""
    assert tuple(sorted(examples)) == tuple(sorted(splits.SPLITS))
    rows = dict(captions.with_ids(index.rows()))
    ids = set()
    for split, found in examples.items():
        for example in found:
            audio = example["audio"]
            text = {name: value.decode() for name, value in example.items() if name != "audio"}
            assert audio.dtype == np.int16 and audio.ndim == 1 and len(audio) >= 1
            assert np.abs(audio.astype(int)).max() >= 8
            row = rows[text["id"]]
            assert text == {
                "text": captions.caption(row),
                "id": text["id"],
                "source": row.package,
                "licence": text["licence"],
                "kind": row.kind,
                "lang": row.lang,
                "label": row.label,
                "group": splits.group_key(row),
                "zeroshot_label": row.zeroshot_label,
            }
            assert text["licence"] not in ("", "unknown")
            assert splits.split_of(text["group"]) == split
            ids.add(text["id"])
    assert len(ids) == sum(map(len, examples.values())) == 331 + 1659
    builder = tfds.builder_from_directory(tiny_dataset)
    assert dict(builder.info.metadata or {})["sample_rate"] == 16000
    assert all("array_record" in file.name for file in tiny_dataset.glob("opensounds-*"))


def test_audio_is_the_package_s(
    examples: dict[str, list[dict]], tiny_packages: Path, tmp_path: Path
) -> None:
    """A clip under another's caption, or at the wrong speed, would poison training silently."""
    archive = fetch.find_package(tiny_packages, index.PACKAGES["sound-theme-freedesktop"])
    assert archive is not None
    stored = {
        example["id"].decode(): example["audio"] for found in examples.values() for example in found
    }
    rows = [row for row in index.rows() if row.package == "sound-theme-freedesktop"][::5]
    files = dict(archives.read_members(archive, [row.path for row in rows]))
    for row in rows:
        file = tmp_path / "sound.oga"
        file.write_bytes(files[row.path])
        data, rate = soundfile.read(file, always_2d=True)
        reference = soxr.resample(data.mean(1), rate, 16000)
        audio = stored[f"{row.package}/{row.path}"] / 32767
        assert abs(len(audio) - len(reference)) <= 1
        size = min(len(audio), len(reference))
        np.testing.assert_allclose(audio[:size], reference[:size].clip(-1, 1), atol=2e-4)


def test_no_recording_on_two_sides(examples: dict[str, list[dict]]) -> None:
    """The same sound in train and test would inflate every score; compared by the audio itself."""
    sides = defaultdict(set)
    for split, found in examples.items():
        for example in found:
            sides[example["audio"].tobytes()].add(split)
    assert all(len(found) == 1 for found in sides.values())


def test_report_names_what_was_left_out(
    examples: dict[str, list[dict]], tiny_dataset: Path, tiny_packages: Path
) -> None:
    """A person must see which files gave no clip, and why."""
    report = json.loads((tiny_dataset / "prepare_report.json").read_text())
    for split, found in examples.items():
        numbers = report["splits"][split]
        assert numbers["examples"] == len(found)
        assert numbers["captions"] == len({example["text"] for example in found})
        seconds = sum(len(example["audio"]) for example in found) / 16000
        assert numbers["hours"] == pytest.approx(seconds / 3600, abs=1e-3)
    assert report["skipped_by_reason"] == {"not_audio": 5}
    assert {Path(entry["path"]).stem for entry in report["skipped"]} == {
        *("kick04", "scratch01", "wind_chimes01", "harpsichord01", "hit01")
    }
    assert all("Malformed" in entry["detail"] for entry in report["skipped"])
    assert report["missing_packages"] == report["damaged_packages"] == {}
    assert set(report["packages"]) == set(index.TIERS["tiny"])
    assert all(
        (tiny_packages / entry["archive"]).is_file() for entry in report["packages"].values()
    )


def test_second_run_does_nothing(
    tiny_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Quickstart is run again and again; a finished dataset must cost nothing."""
    before = {file.name: file.stat().st_mtime_ns for file in tiny_dataset.iterdir()}
    monkeypatch.setenv("PATH", "/nowhere")  # no client could be called
    assert prepare_opensounds("tiny", tiny_dataset.parents[2]) == tiny_dataset
    assert "is ready" in capsys.readouterr().out
    assert {file.name: file.stat().st_mtime_ns for file in tiny_dataset.iterdir()} == before


def test_command_line(packages: Path, tmp_path: Path) -> None:
    """The README's command, in a process of its own, with packages given and two workers."""
    command = [
        sys.executable,
        "-m",
        "input_pipeline.prepare",
        "--dataset=opensounds",
        "--tier=tiny",
    ]
    command += [f"--output={tmp_path / 'data ü'}", f"--packages={packages}", "--workers=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data ü/opensounds/tiny/1.0.0"
    assert done.stdout.splitlines()[-1] == str(folder)
    assert sum(map(len, _read(folder).values())) == 51
    assert (
        f"missing package lmms-common: not in {packages}; remedy: cd {packages} &&" in done.stdout
    )
    assert "remedy: cd " in done.stdout and "pip download --no-deps pretty_midi" in done.stdout
    assert sorted(os.listdir(folder.parent)) == [".lock", "1.0.0"]


def test_interrupted_build_is_redone(packages: Path, tmp_path: Path) -> None:
    """After a Ctrl-C or a power cut the next run must give a whole dataset."""
    tier = tmp_path / "opensounds/tiny"
    for left in ("incomplete.ABC_1.0.0", "1.0.0", ".work"):
        (tier / left).mkdir(parents=True)
        (tier / left / "opensounds-train.array_record-00000-of-00001").write_bytes(b"half")
    (tier / "1.0.0/dataset_info.json").write_text("{}")  # written, but no report: not finished
    folder = prepare_opensounds("tiny", tmp_path, packages=packages, workers=0)
    assert sum(map(len, _read(folder).values())) == 51
    assert sorted(os.listdir(tier)) == [".lock", "1.0.0"]


def test_missing_package_that_comes_later(
    packages: Path, tmp_path: Path, tiny_packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dataset built without a package must not stay incomplete once the package is there."""
    folder = prepare_opensounds("tiny", tmp_path, packages=packages, workers=0)
    prepare_opensounds("tiny", tmp_path, packages=packages, workers=0)
    assert "missing package minetest-data" in capsys.readouterr().out.split("is ready")[1]
    archive = fetch.find_package(tiny_packages, index.PACKAGES["minetest-data"])
    assert archive is not None
    (packages / archive.name).symlink_to(archive)
    prepare_opensounds("tiny", tmp_path, packages=packages, workers=0)
    assert "built without minetest-data" in capsys.readouterr().out
    assert sum(map(len, _read(folder).values())) == 51 + 109
    with pytest.raises(PrepareError, match="missing packages:\n  lmms-common"):
        prepare_opensounds("tiny", tmp_path, packages=packages, require_all=True)


def test_damaged_packages_are_named(
    packages: Path, tiny_packages: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A truncated download must cost its own clips only, and say which file to delete."""
    for name in ("simutrans-pak64", "pretty_midi"):
        archive = fetch.find_package(tiny_packages, index.PACKAGES[name])
        assert archive is not None
        damaged = packages / archive.name
        damaged.unlink(missing_ok=True)
        damaged.write_bytes(archive.read_bytes()[: archive.stat().st_size // 3])
    folder = prepare_opensounds("tiny", tmp_path, packages=packages, workers=0)
    assert sum(map(len, _read(folder).values())) == 27
    report = json.loads((folder / "prepare_report.json").read_text())
    assert sorted(report["damaged_packages"]) == ["pretty_midi", "simutrans-pak64"]
    assert report["skipped_by_reason"] == {"damaged": 24, "unreadable": 1659}
    assert f"{damaged}: damaged archive" in capsys.readouterr().out


def test_other_version_of_a_package(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another distribution ships other files: what is gone is counted, the rest is used."""
    ghost = index.Row("simutrans-pak64", "usr/share/gone.wav", "x", "effect", "", "0", "x", "")
    rows, keys = index.rows(), splits._index_keys()
    monkeypatch.setattr(index, "rows", lambda rows=rows: (*rows, ghost))
    monkeypatch.setattr(splits, "_index_keys", lambda keys=keys: {**keys, "0": "0"})
    folder = prepare_opensounds("tiny", tmp_path, packages=packages, workers=0)
    report = json.loads((folder / "prepare_report.json").read_text())
    assert report["skipped"] == [
        {
            "package": "simutrans-pak64",
            "path": "usr/share/gone.wav",
            "reason": "gone",
            "detail": "not in this version",
        }
    ]


def test_without_apt_the_portable_tier_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On macOS or Fedora the quickstart must say what happens and go on."""
    taken = []

    def locate(packages, folder, *, offline):  # type: ignore[no-untyped-def]
        taken.extend(package.name for package in packages)
        return fetch.Located({}, {package.name: "no network in this test" for package in packages})

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(build.fetch, "locate", locate)
    with pytest.raises(PrepareError, match="tier 'portable': not one clip"):
        prepare_opensounds("default", tmp_path)
    assert tuple(taken) == index.TIERS["portable"]
    said = capsys.readouterr().out
    assert "apt-get is not on this machine" in said and "taking the tier 'portable' instead" in said


def test_nothing_to_build_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty dataset must be an error with its remedy, not a training run that fails later."""
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = ["--tier=tiny", f"--output={tmp_path}"]
    assert cli.run(prepare.main, [*arguments, f"--packages={empty}"]) == 2
    said = capsys.readouterr().err
    assert "not one clip could be decoded" in said and "apt-get download minetest-data" in said
    assert cli.run(prepare.main, [*arguments, f"--packages={tmp_path / 'nowhere'}"]) == 2
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare.main(["--tier=huge"])
    assert "'tiny', 'default', 'plus', 'portable'" in capsys.readouterr().err.replace('"', "'")
