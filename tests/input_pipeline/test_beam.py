"""`alm prepare --runner`: the same dataset on Apache Beam, also one begun without it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alm_jax import cli
from alm_jax.errors import UserError
from input_pipeline import audio_files, prepare
from input_pipeline.cleaning import Limits
from input_pipeline.engines import Engine
from tests.input_pipeline.own_data import prepare as build
from tests.input_pipeline.own_data import read, rejected, write_sound, write_text

Sounds = list[np.ndarray]
needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="the extra `beam` is not installed"
)


def _corpus(root: Path, sounds: Sounds) -> Path:
    lines = ["file,caption"]
    for number, pcm in enumerate(sounds):
        write_sound(root / f"{number:02d}.flac", pcm)
        lines.append(f"{number:02d}.flac,sound {number}")
    write_text(root / "t.csv", "\n".join([*lines, "gone.flac,nothing"]))
    return root


def test_without_beam(
    sounds: Sounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Who asks for a runner without having Beam must read what to install."""
    root = _corpus(tmp_path / "in", sounds[:2])
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "apache_beam" else found(name)
    )
    words = [f"--input={root}", f"--output={tmp_path / 'out'}", "--max-rejected=1"]
    assert cli.run(prepare.main, [*words, "--runner=local"]) == 2
    assert "pip install 'apache-beam>=2.77'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepare.main([*words, "--", "--project=x"])
    assert "flags after -- are for a --runner" in capsys.readouterr().err


@needs_beam
def test_same_dataset(sounds: Sounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine must not matter: same clips, same order, same reasons; finished parts stay."""
    from input_pipeline import plan

    monkeypatch.setattr(plan, "_ROWS_PER_PART", 4)
    root = _corpus(tmp_path / "in", sounds)
    limits = Limits(max_rejected=0.5)
    here = build(root, tmp_path / "here", limits=limits)
    # Begun without Beam and stopped in its second part.
    decoded: list[str] = []
    original = audio_files.stream_audio

    def counting(source, **options):
        decoded.append(Path(source).name)
        if len(decoded) == 6:
            raise KeyboardInterrupt
        return original(source, **options)

    monkeypatch.setattr(audio_files, "stream_audio", counting)
    with pytest.raises(KeyboardInterrupt):
        build(root, tmp_path / "beam", limits=limits)
    beam = Engine(workers=1, runner="local")  # in this process
    there = build(root, tmp_path / "beam", limits=limits, engine=beam)
    assert sorted(decoded[6:]) == [f"{number:02d}.flac" for number in range(4, 12)]
    one, other = read(here), read(there)
    assert list(one) == list(other) and rejected(here) == rejected(there)
    for name, example in one.items():
        assert np.array_equal(example["audio"], other[name]["audio"])
        assert example["text"] == other[name]["text"] and example["split"] == other[name]["split"]


@needs_beam
def test_errors_are_the_persons(tmp_path: Path) -> None:
    """A damaged tar must be named as without Beam, not buried in a runner's traceback."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/0.tar").write_bytes(b"x" * 2048)
    beam = Engine(workers=1, runner="local")
    with pytest.raises(UserError, match=r"0\.tar: the tar is cut off or damaged"):
        build(tmp_path / "in", tmp_path / "out", layout="webdataset", engine=beam)


@needs_beam
@pytest.mark.parametrize(
    ("runner", "flags", "says"),
    [
        ("FlinkRunners", (), "Unexpected pipeline runner: FlinkRunners"),
        ("DataflowRunner", ("--project=x", "--region=y"), "temp_location"),
    ],
)
def test_a_runner_that_cannot_run(
    sounds: Sounds, tmp_path: Path, runner: str, flags: tuple[str, ...], says: str
) -> None:
    """A wrong name or a missing flag must be said in Beam's words, not by a traceback."""
    root = _corpus(tmp_path / "in", sounds)
    with pytest.raises(UserError, match=f"(?s)--runner={runner} has failed: .*{says}"):
        build(root, tmp_path / "out", engine=Engine(1, runner, flags))


@needs_beam
@pytest.mark.slow
def test_command_line_with_workers(sounds: Sounds, tmp_path: Path) -> None:
    """The documented command, on two processes of Beam."""
    root = _corpus(tmp_path / "in", sounds)
    command = [sys.executable, "-m", "input_pipeline.prepare", f"--input={root}", "--workers=2"]
    command += [f"--output={tmp_path / 'out'}", "--runner=local", "--", "--job_name=prepare"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    assert len(read(tmp_path / "out/1.0.0")) == len(sounds)
