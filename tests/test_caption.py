"""`alm caption`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alm_jax import caption, cli
from tests import odd_files
from tests.model_fixtures import clap_model, clap_workdir, mae_workdir


@pytest.fixture(autouse=True)
def shared_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption, "load_model", lambda folder: clap_model())


@pytest.fixture
def sounds(tiny_packages: Path, tmp_path: Path) -> list[Path]:
    """Long and short in turn, so that they are done in another order than given."""
    clip = odd_files.real_clip(tiny_packages)
    names = ["z.wav", "a.wav", "tab\there\nand\\there.wav", "b.wav"]
    paths = [tmp_path / name for name in names]
    for path, seconds in zip(paths, (1.5, 0.3, 0.9, 0.4), strict=True):
        odd_files.GOOD["plain.wav"](path, clip[: int(seconds * odd_files.RATE)])
    return paths


def test_lines(sounds: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Captions belong to other files, or a strange file name breaks the table."""
    output = tmp_path / "out" / "captions.jsonl"
    argv = ["--audio", *map(str, sounds), "--max_length=12", f"--output={output}"]
    assert caption.main(["--model=M", *argv]) == 0
    wanted = clap_model().caption(sounds, max_length=12)
    assert len(set(wanted)) > 1, "the captions are too alike to tell"
    lines = capsys.readouterr().out.removesuffix("\n").split("\n")
    shown = [str(path) for path in sounds]
    shown[2] = shown[2].replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    assert lines == [f"{path}\t{text}" for path, text in zip(shown, wanted, strict=True)]
    records = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert records == [
        {"path": str(path), "caption": text} for path, text in zip(sounds, wanted, strict=True)
    ]
    assert [path.name for path in output.parent.iterdir()] == ["captions.jsonl"]


def test_file_name_that_is_no_utf8() -> None:
    """One file with a broken name ends the writing of all captions."""
    path = b"caf\xe9.wav".decode("utf-8", "surrogateescape")
    assert json.loads(caption._json({"path": path, "caption": "音"})) == {
        "path": path,
        "caption": "音",
    }


def test_model_without_captions(
    sounds: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage-1 model ends in a traceback."""
    monkeypatch.undo()
    argv = ["caption", f"--model={mae_workdir()}", "--audio", str(sounds[0])]
    assert cli.main(argv) == 2
    assert f"{mae_workdir()} has no caption decoder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--audio"),
        (["--audio", "a.wav", "--max_length=0"], "positive integer"),
        (["--audio", "a.wav", "--max_length=9999"], "max_length=9999: must be 1 to"),
        (["--audio", "a.wav", f"--output={clap_workdir()}"], "is a folder; name a file"),
    ],
)
def test_wrong_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake on the command line shows a traceback."""
    try:
        status = cli.main(["caption", "--model=M", *argv])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


def test_decode(sounds: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    """`--decode` would be accepted and not used."""
    argv = ["--model=M", "--audio", str(sounds[0]), "--max_length=5"]
    shown = {}
    for how in ("greedy", "beam:beams=3", "sample:temperature=3,seed=1", "sample:temperature=3"):
        assert caption.main([*argv, f"--decode={how}"]) == 0
        shown[how] = capsys.readouterr().out
        wanted = clap_model().caption(sounds[0], max_length=5, decode=how)
        assert shown[how].rstrip("\n").split("\t")[1] == wanted[0]
    assert len(set(shown.values())) >= 3
    assert cli.run(caption.main, [*argv, "--decode=bean"]) == 2
    assert "did you mean 'beam'" in capsys.readouterr().err
