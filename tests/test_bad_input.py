"""Odd files and texts in `alm embed`, `alm caption` and `alm search`: each has its outcome."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from alm_jax import caption, embed, search
from alm_jax.errors import UserError
from tests import odd_files
from tests.model_fixtures import clap_model


@dataclasses.dataclass
class Run:
    """What a verb printed."""

    status: int
    out: str
    err: str


def call(main: Callable[[list[str]], int], *argv: str | Path) -> Run:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in argv])
    return Run(status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module", autouse=True)
def shared_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One loaded model for all verbs, and a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for verb in (embed, caption, search):
            patch.setattr(verb, "load_model", lambda folder: clap_model())
        patch.setenv("ALM_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folder(tiny_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "Geräusche 音"
    folder.mkdir()
    odd_files.make_all(folder, odd_files.real_clip(tiny_packages))
    return folder


@pytest.fixture(scope="module")
def embedded(folder: Path) -> tuple[Run, dict[str, np.ndarray]]:
    output = folder.parent / "out.npz"
    texts = ["a dog", "", "word " * 5000]
    run = call(embed.main, "--model=M", "--audio", folder, "--text", *texts, f"--output={output}")
    with np.load(output) as arrays:
        return run, dict(arrays)


@pytest.fixture(scope="module")
def captioned(folder: Path) -> Run:
    return call(caption.main, "--model=M", "--audio", folder, "--max_length=4")


@pytest.fixture(scope="module")
def searched(folder: Path) -> Run:
    return call(search.main, "--model=M", "--audio", folder, "--text=lava", "--top=100")


@pytest.mark.parametrize("name", [*odd_files.GOOD, *odd_files.SILENT])
def test_usable_files_are_embedded(name: str, folder: Path, embedded: tuple[Run, dict]) -> None:
    """A user's recording of unusual length, rate, channels or name has no embedding."""
    run, arrays = embedded
    assert run.status == 0
    row = arrays["audio_path"].tolist().index(str(folder / name))
    assert np.linalg.norm(arrays["audio"][row]) == pytest.approx(1.0, abs=1e-5)
    assert f"skipped {folder / name}" not in run.err


@pytest.mark.parametrize("name", ["5khz.wav", "192khz.wav", "8_channels.wav", "звук 音 é.wav"])
def test_form_of_the_file_hardly_matters(name: str, folder: Path, embedded: tuple) -> None:
    """The same sound in another rate or with more channels gets an unrelated embedding."""
    _, arrays = embedded
    paths = arrays["audio_path"].tolist()
    rows = [arrays["audio"][paths.index(str(folder / n))] for n in ("plain.wav", name)]
    # At 5 kHz nothing above 2.5 kHz is left of the sound.
    assert rows[0] @ rows[1] > (0.5 if name == "5khz.wav" else 0.999)


@pytest.mark.parametrize("name", [*odd_files.GOOD, *odd_files.SILENT])
def test_usable_files_are_described(name: str, folder: Path, captioned: Run) -> None:
    """`alm caption` leaves out a file, breaks its line in two, or stops at it."""
    assert captioned.status == 0
    lines = [line.split("\t") for line in captioned.out.splitlines()]
    assert sum(line[0] == str(folder / name) for line in lines) == 1
    assert all(len(line) == 2 for line in lines)


@pytest.mark.parametrize("name", odd_files.GOOD)
def test_usable_files_are_found(name: str, folder: Path, searched: Run) -> None:
    """A sound in the user's folder can never be found."""
    assert searched.status == 0
    paths = [line.split("\t")[1] for line in searched.out.splitlines()]
    assert paths.count(str(folder / name)) == 1
    assert len(paths) == len(odd_files.GOOD)


@pytest.mark.parametrize("verb", ["embed", "caption", "search"])
@pytest.mark.parametrize("name", odd_files.BAD)
def test_unusable_files_are_named_with_the_reason(
    name: str,
    verb: str,
    folder: Path,
    embedded: tuple[Run, dict],
    captioned: Run,
    searched: Run,
) -> None:
    """One bad file among thousands ends the whole run, or vanishes without a word."""
    run = {"embed": embedded[0], "caption": captioned, "search": searched}[verb]
    lines = [line for line in run.err.splitlines() if f"skipped {folder / name}" in line]
    assert len(lines) == 1
    assert odd_files.BAD[name][0] in lines[0]
    assert str(folder / name) not in run.out


def test_silence_is_noted_and_not_searched(
    folder: Path, embedded: tuple[Run, dict], captioned: Run, searched: Run
) -> None:
    """A silent file comes up as the best match of some query."""
    path = folder / "silent.wav"
    assert f"note: {path}" in embedded[0].err
    assert f"note: {path}" in captioned.err
    assert f"skipped {path}: silent" in searched.err


def test_counts(embedded: tuple[Run, dict]) -> None:
    """The summary contradicts what was written."""
    run, arrays = embedded
    good, bad = len(odd_files.GOOD) + len(odd_files.SILENT), len(odd_files.BAD)
    width = clap_model().embed_dim
    assert arrays["audio"].shape == (good, width) and arrays["text"].shape == (3, width)
    assert run.out.strip().endswith(f"audio [{good}, {width}], text [3, {width}], {bad} skipped")


def test_empty_and_very_long_captions(embedded: tuple[Run, dict]) -> None:
    """An empty line or a whole page among the strings ends the run or spoils the other rows."""
    run, arrays = embedded
    assert np.linalg.norm(arrays["text"], axis=1) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(
        arrays["text"], clap_model().embed_text(arrays["text_string"].tolist())
    )
    np.testing.assert_allclose(arrays["text"][:1], clap_model().embed_text("a dog"), atol=1e-6)
    assert arrays["text_string"].tolist() == ["a dog", "", "word " * 5000]
    assert "a string is empty" in run.err
    assert f"only the first {clap_model().max_text_tokens} tokens count of 'word word" in run.err


def test_search_text_that_is_empty_or_very_long(folder: Path, searched: Run) -> None:
    """An empty query gives an arbitrary order; a pasted page fails."""
    with pytest.raises(UserError, match="--text is empty"):
        search.main(["--model=M", f"--audio={folder}", "--text= "])
    run = call(search.main, "--model=M", "--audio", folder, f"--text={'word ' * 5000}", "--top=3")
    assert run.status == 0 and len(run.out.splitlines()) == 3
    assert "tokens of the text count" in run.err


@pytest.mark.parametrize("name", odd_files.BAD)
def test_nothing_usable_at_all(name: str, folder: Path, tmp_path: Path) -> None:
    """A script takes a run without any result for a success."""
    output = tmp_path / "out.npz"
    with pytest.raises(UserError, match="none of 1 files"):
        call(embed.main, "--model=M", "--audio", folder / name, f"--output={output}")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="none of 1 files"):
        call(caption.main, "--model=M", "--audio", folder / name)
    (tmp_path / name).symlink_to(folder / name)
    with pytest.raises(UserError, match="none of the 1 files"):
        call(search.main, "--model=M", "--audio", tmp_path, "--text=lava")


def test_folder_with_the_name_of_a_sound(folder: Path, tmp_path: Path) -> None:
    """A folder called x.wav is opened as a file and the message is a riddle."""
    (tmp_path / "x.wav").mkdir()
    output = tmp_path / "out.npz"
    arguments = ["--audio", tmp_path / "x.wav", folder / "plain.wav", f"--output={output}"]
    run = call(embed.main, "--model=M", *arguments)
    assert run.status == 0
    assert f"skipped {tmp_path / 'x.wav'}: no audio file in this folder" in run.err
