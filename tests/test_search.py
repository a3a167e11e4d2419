"""`alm search`: the index, its cache, the page."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from alm_jax import cli, search, search_index, search_page
from alm_jax.inference.model import Model
from alm_jax.search_index import Index, build_index
from alm_jax.search_page import Page
from tests import odd_files
from tests.model_fixtures import clap_model, clap_workdir, mae_workdir

RATE = odd_files.RATE
STRANGE = "${alert(1)} {{x}} <img src=x> #1 100%41 音.wav"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALM_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "search"


@pytest.fixture
def sounds(tiny_packages: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    (folder / "sub").mkdir(parents=True)
    clip = odd_files.real_clip(tiny_packages)
    for number, name in enumerate(("a.wav", "b.flac", "sub/c.ogg", STRANGE, "old.aiff")):
        soundfile.write(folder / name, clip[number * 4000 : number * 6000 + 9000], RATE)
    soundfile.write(folder / "silent.wav", np.zeros(500), RATE)
    (folder / "text.mp3").write_text("This is not audio. " * 50)
    return folder


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were embedded since it was last cleared."""
    names: list[str] = []
    each = Model.embed_audio_each

    def watched(self: Model, paths: list[Path], *args: Any, **options: Any):  # type: ignore[no-untyped-def]
        names.extend(Path(path).name for path in paths)
        return each(self, paths, *args, **options)

    monkeypatch.setattr(Model, "embed_audio_each", watched)
    return names


def test_best_matches(sounds: Path) -> None:
    """The best match is not the sound that the model holds most like the text."""
    model = clap_model()
    names = ["a.wav", "b.flac", "sub/c.ogg", STRANGE, "old.aiff"]
    index = build_index(model, sounds)
    query = model.embed_text("a bell")[0]
    scores = dict(zip(names, model.embed_audio([sounds / n for n in names]) @ query, strict=True))
    hits = index.search(query, 3)
    best = sorted(names, key=lambda name: -scores[name])[:3]
    assert [hit.path for hit in hits] == [str(sounds / name) for name in best]
    assert [hit.score for hit in hits] == pytest.approx([scores[n] for n in best], abs=1e-5)
    assert len(index.search(query, 100)) == len(index) == 5
    seconds = soundfile.info(hits[0].path).duration
    assert hits[0].seconds == pytest.approx(seconds, abs=1e-3)
    assert {Path(path).name for path in index.skipped} == {"silent.wav", "text.mp3"}


def test_second_start_embeds_nothing(sounds: Path, embedded: list[str]) -> None:
    """Every start takes as long as the first, or a bad file is decoded again each time."""
    first = build_index(clap_model(), sounds)
    assert len(embedded) == 7
    embedded.clear()
    second = build_index(clap_model(), sounds)
    assert embedded == []
    query = clap_model().embed_text("a bell")[0]
    assert second.search(query, 9) == first.search(query, 9)
    assert second.skipped == first.skipped
    build_index(clap_model(), sounds, fresh=True)
    assert len(embedded) == 7


def test_what_changed_is_embedded_again(sounds: Path, embedded: list[str]) -> None:
    """A replaced sound is found by what it used to be; a deleted one is still offered."""
    build_index(clap_model(), sounds)
    embedded.clear()
    soundfile.write(sounds / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 9000), RATE)
    (sounds / "b.flac").unlink()
    shutil.copy(sounds / "old.aiff", sounds / "new.aiff")
    index = build_index(clap_model(), sounds)
    assert sorted(embedded) == ["a.wav", "new.aiff"]
    query = clap_model().embed_text("a bell")[0]
    hits = index.search(query, 9)
    assert sorted(Path(hit.path).name for hit in hits) == sorted(
        ["a.wav", "c.ogg", STRANGE, "old.aiff", "new.aiff"]
    )
    # Two, for they make a batch of a shape that is compiled already.
    wanted = clap_model().embed_audio([sounds / "a.wav"] * 2)[0] @ query
    found = next(hit.score for hit in hits if hit.path.endswith("a.wav"))
    assert found == pytest.approx(wanted, abs=1e-5)


def test_interrupted_indexing_goes_on(
    sounds: Path, embedded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of indexing are lost with one Ctrl-C."""
    monkeypatch.setattr(search_index, "_SAVE_EVERY_SECONDS", 0.0)
    each = Model.embed_audio_each

    def stopped(self: Model, paths: list[Path], **options: int):  # type: ignore[no-untyped-def]
        for number, result in enumerate(each(self, paths, **options)):
            if number == 4:
                raise KeyboardInterrupt
            yield result

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Model, "embed_audio_each", stopped)
        build_index(clap_model(), sounds)
    embedded.clear()
    assert len(build_index(clap_model(), sounds)) == 5
    assert len(embedded) == 3


def test_another_model_has_another_index(
    sounds: Path, embedded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newly trained model searches with the embeddings of the old one."""
    build_index(clap_model(), sounds)
    embedded.clear()
    monkeypatch.setitem(clap_model().__dict__, "fingerprint", "0" * 16)
    build_index(clap_model(), sounds)
    assert len(embedded) == 7


def test_damaged_or_unwritable_cache(
    sounds: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A half-written cache file makes the verb unusable until the user finds and deletes it."""
    build_index(clap_model(), sounds)
    (saved,) = cache.iterdir()
    saved.write_bytes(saved.read_bytes()[:-100])
    assert len(build_index(clap_model(), sounds)) == 5
    assert f"{saved} is damaged" in capsys.readouterr().err
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    assert len(build_index(clap_model(), sounds)) == 5
    assert "the index cannot be kept" in capsys.readouterr().err


def test_file_that_may_be_read_now(sounds: Path, embedded: list[str]) -> None:
    """A file that was unreadable once is left out for ever."""
    (sounds / "link.wav").symlink_to(sounds / "later.wave")
    build_index(clap_model(), sounds)
    embedded.clear()
    build_index(clap_model(), sounds)
    assert embedded == ["link.wav"]


def test_command_prints_matches(
    sounds: Path,
    capsys: pytest.CaptureFixture[str],
    embedded: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results cannot be used in a script."""
    monkeypatch.setattr(search, "load_model", lambda folder: clap_model())
    argv = ["search", "--model=M", f"--audio={sounds}", "--text=a bell"]
    assert cli.main([*argv, "--top=2"]) == 0
    out, err = capsys.readouterr()
    index = build_index(clap_model(), sounds)
    hits = index.search(clap_model().embed_text("a bell")[0], 2)
    assert out == "".join(f"{hit.score:.4f}\t{hit.path}\n" for hit in hits)
    assert err.count("alm search: skipped") == 2
    assert len(embedded) == 7, "the command and the API share the index"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--audio=nowhere", "--text=a"], "--audio=nowhere: no such folder"),
        (["--audio=empty", "--text=a"], "no audio file in this folder"),
        (["--audio=empty", "--text=a", f"--model={mae_workdir()}"], "no text side"),
        (["--audio=empty", "--port=99999"], "port (1 to 65535)"),
        (["--audio=empty", "--text=a", "--top=0"], "positive integer"),
    ],
)
def test_wrong_arguments(
    argv: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A mistake on the command line shows a traceback, or only after hours of embedding."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    model = [] if any(a.startswith("--model") for a in argv) else [f"--model={clap_workdir()}"]
    try:
        status = cli.main(["search", *model, *argv])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    assert message in capsys.readouterr().err


def test_missing_gradio_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the user sees ModuleNotFoundError after the folder was embedded."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(search.UserError, match=r"pip install 'gradio.*--text=QUERY"):
        search.main([f"--model={clap_workdir()}", f"--audio={tmp_path}"])


def _sources(results: str) -> list[str]:
    return [html.unescape(source) for source in re.findall(r'src="([^"]*)"', results)]


def test_results_of_the_page(sounds: Path, tmp_path: Path) -> None:
    """A file name becomes code in the page, or the browser cannot play a result."""
    outside = tmp_path / "outside.wav"
    shutil.copy(sounds / "a.wav", outside)
    (sounds / "link.wav").symlink_to(outside)
    previews = tmp_path / "previews"
    previews.mkdir()
    page = Page(clap_model(), build_index(clap_model(), sounds), previews)
    results = page.results("a bell", 10)
    assert results.count('class="alm-hit"') == 6
    assert "<img" not in results and html.escape(STRANGE) in results
    paths = [
        Path(urllib.parse.unquote(source.removeprefix("gradio_api/file=")))
        for source in _sources(results)
    ]
    inside = {path.relative_to(sounds).as_posix() for path in paths if sounds in path.parents}
    assert inside == {"a.wav", "b.flac", "sub/c.ogg", STRANGE}
    # What browsers do not play, and what lies elsewhere, is copied; and copied once.
    copies = [path for path in paths if path.parent == previews]
    assert len(copies) == 2
    assert all(soundfile.info(str(path)).subtype == "PCM_16" for path in copies)
    assert page.results("a bell", 10) == results
    (sounds / "old.aiff").unlink()
    assert "can no longer be read" in page.results("a bell", 10)
    assert "Type what" in page.results("  ", 10)
    assert "tokens of this text count" in page.results("word " * 5000, 1)


@pytest.fixture
def address(sounds: Path):  # type: ignore[no-untyped-def]
    index = build_index(clap_model(), sounds)
    (sounds.parent / "secret.txt").write_text("secret")
    with search_page.serving(clap_model(), index, None) as (_, address):
        yield address


def _get(url: str, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


@pytest.mark.slow
def test_page_over_http(sounds: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page does not answer, loads from the internet, or hands out other files."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert address.startswith("http://127.0.0.1:")
    status, page = _get(address)
    assert status == 200
    assert not re.findall(rb'(?:src|href)="https?://(?!127\.0\.0\.1)[^"]+\.(?:js|css|woff2?)', page)
    assert b"fonts.g" not in page.lower().replace(b"fonts.gradio", b"")
    config = json.loads(_get(f"{address}config")[1])
    assert not any("google" in str(sheet) for sheet in config.get("stylesheets", []))
    body = json.dumps({"data": ["a bell", 3]}).encode()
    request = urllib.request.Request(
        f"{address}gradio_api/call/search", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        event = json.load(reply)["event_id"]
    stream = _get(f"{address}gradio_api/call/search/{event}")[1].decode()
    results = json.loads(re.findall(r"^data: (.*)$", stream, re.MULTILINE)[-1])[0]
    sources = _sources(results)
    assert len(sources) == 3
    for source in sources:
        status, content = _get(address + source, Range="bytes=0-99")
        assert status == 206 and len(content) == 100
    for path in (sounds.parent / "secret.txt", sounds / ".." / "secret.txt", "/etc/passwd"):
        assert _get(f"{address}gradio_api/file={os.fspath(path)}")[0] in (403, 404)


def test_index_without_usable_sounds() -> None:
    """An empty index breaks on its first query."""
    assert Index(Path("."), {}).search(np.zeros(1, np.float32), 5) == []
