"""`alm embed`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alm_jax import cli, embed
from tests import odd_files
from tests.model_fixtures import clap_model, clap_workdir, mae_workdir


@pytest.fixture
def sounds(tiny_packages: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    (folder / "deep" / "er").mkdir(parents=True)
    clip = odd_files.real_clip(tiny_packages)
    for seconds, name in ((0.3, "b.wav"), (1.5, "a.flac"), (0.4, "deep/er/c.ogg")):
        odd_files.GOOD["plain.wav"](folder / name, clip[: int(seconds * odd_files.RATE)])
    (folder / "notes.txt").write_text("no sound")
    return folder


def test_command(sounds: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Rows do not belong to the paths and strings beside them."""
    output = tmp_path / "new" / "out.npz"
    single = sounds / "b.wav"
    arguments = ["--text", "rain", "a bell", "--audio", str(single), str(sounds)]
    status = cli.main(["embed", f"--model={clap_workdir()}", *arguments, f"--output={output}"])
    with np.load(output) as arrays:
        found = dict(arrays)
    # The folder's files in order of name; the one given twice is there once.
    wanted = [single, sounds / "a.flac", sounds / "deep" / "er" / "c.ogg"]
    assert status == 0
    assert set(found) == {"audio", "text", "audio_path", "text_string"}
    assert found["audio_path"].tolist() == [str(path) for path in wanted]
    assert found["text_string"].tolist() == ["rain", "a bell"]
    assert found["audio"].dtype == found["text"].dtype == np.float32
    np.testing.assert_allclose(found["audio"], clap_model().embed_audio(wanted), atol=1e-5)
    np.testing.assert_allclose(
        found["text"], clap_model().embed_text(["rain", "a bell"]), atol=1e-5
    )
    assert [path.name for path in output.parent.iterdir()] == ["out.npz"]
    out, err = capfd.readouterr()
    assert out == f"{output}: audio [3, 24], text [2, 24]\n"
    # A progress bar may be there, but no problems, and no notes of the libraries.
    assert "alm embed" not in err and "WARNING" not in err


def test_only_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without audio there is no array `audio`, or one of another width."""
    monkeypatch.setattr(embed, "load_model", lambda folder: clap_model())
    output = tmp_path / "out.npz"
    assert embed.main(["--model=M", "--text", "rain", f"--output={output}"]) == 0
    with np.load(output) as arrays:
        assert arrays["audio"].shape == (0, 24) and arrays["audio_path"].shape == (0,)
        assert arrays["text"].shape == (1, 24)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--text", "a", "--output=out.npy"], "--output=out.npy: the name must end in .npz"),
        (["--text", "a"], "--output"),
        (["--output=out.npz"], "nothing to embed"),
        (["--text", "a", "--output=out.npz", "--batch_size=0"], "positive integer"),
        (["--text", "a", "--output=out.npz", "--modle=x"], "did you mean '--model'"),
        (["--text", "a", "--output=out.npz", "--model=nowhere"], "no folder nowhere"),
        (["--text", "a", "--output=out.npz", f"--model={mae_workdir()}"], "no text side"),
    ],
)
def test_wrong_arguments(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mistake on the command line shows a traceback, or an hour later."""
    monkeypatch.chdir(tmp_path)
    model = [] if any(a.startswith("--model") for a in argv) else [f"--model={clap_workdir()}"]
    try:
        status = cli.main(["embed", *model, *argv])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk destroys the result of the last run, or litters the folder."""
    output = tmp_path / "out.npz"
    embed.write_npz(output, {"a": np.arange(3)})
    before = output.read_bytes()

    def full_disk(file, **arrays):  # type: ignore[no-untyped-def]
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        embed.write_npz(output, {"a": np.arange(5)})
    assert output.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


@pytest.mark.skipif(os.name != "posix", reason="the modes of files are POSIX's")
def test_file_has_the_usual_rights(tmp_path: Path) -> None:
    """Others in the group cannot read the result."""
    embed.write_npz(tmp_path / "out.npz", {"a": np.arange(3)})
    (tmp_path / "usual").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("out.npz", "usual")}
    assert len(modes) == 1


def test_help_imports_nothing_heavy() -> None:
    """`alm embed --help` takes seconds to appear."""
    code = """
import sys
from alm_jax import caption, embed, search
for verb in (caption, embed, search):
    try:
        verb.main(["--help"])
    except SystemExit:
        pass
heavy = {"jax", "numpy", "soundfile", "gradio", "flax"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: alm") == 3
