"""The local search page: a text box, the best matches, and players to hear them.

Nothing is loaded from the network and nothing is sent: gradio's analytics and version check are
off, the fonts are the system's, the server listens on 127.0.0.1 alone, and serves no file outside
the folder of sounds and that of its own previews.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import importlib.util
import os
import tempfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from alm_jax.errors import UserError
from alm_jax.search_index import Hit, Index
from input_pipeline.audio_files import AudioError, read_audio

if TYPE_CHECKING:
    from alm_jax.inference.model import Model

HOST = "127.0.0.1"
EXAMPLES = (
    "a dog barks",
    "a woman speaks",
    "a door closes",
    "an explosion",
    "a bell rings",
    "water is poured",
    "a low note on a piano",
)
# What Chromium, Firefox and Safari all play; libsndfile's names of format -> encodings.
_PLAYABLE = {
    "WAV": {"PCM_U8", "PCM_16", "PCM_24", "FLOAT"},
    "FLAC": {"PCM_S8", "PCM_16", "PCM_24"},
    "OGG": {"VORBIS", "OPUS"},
    "MP3": {"MPEG_LAYER_III"},
}
_PREVIEW_SECONDS = 60.0

_STYLE = """<style>
.alm-hits {display: grid; gap: .75rem; margin: .25rem 0}
.alm-hit {display: grid; grid-template-columns: 4rem minmax(0, 1fr) minmax(14rem, 24rem);
  gap: 1rem; align-items: center; border: 1px solid var(--border-color-primary);
  border-radius: 8px; padding: .6rem 1rem; background: var(--block-background-fill)}
.alm-hit .score {font-variant-numeric: tabular-nums; font-weight: 600}
.alm-hit .score meter {display: block; width: 100%}
.alm-hit .name {overflow-wrap: anywhere}
.alm-hit .where {opacity: .7; font-size: .85em; overflow-wrap: anywhere}
.alm-hit audio {width: 100%}
.alm-note {opacity: .8}
@media (max-width: 48rem) {.alm-hit {grid-template-columns: 4rem minmax(0, 1fr)}
  .alm-hit audio {grid-column: 1 / -1}}
</style>"""


class Page:
    """Answers the page's queries; knows nothing of gradio."""

    def __init__(self, model: Model, index: Index, previews: Path) -> None:
        """Takes the model, the index and a folder for playable copies."""
        self.model = model
        self.index = index
        self.previews = previews

    def results(self, query: str, top: float) -> str:
        """The HTML of the `top` best matches of a query."""
        query = (query or "").strip()
        if not query:
            return _STYLE + '<p class="alm-note">Type what you would like to hear.</p>'
        embedding = self.model.embed_text([query])[0]
        hits = self.index.search(embedding, max(1, int(top)))
        note = ""
        if self.model.is_cut(query):
            note = (
                f'<p class="alm-note">Only the first {self.model.max_text_tokens} tokens of this'
                " text count.</p>"
            )
        return f'{_STYLE}{note}<div class="alm-hits">{"".join(map(self._hit, hits))}</div>'

    def _hit(self, hit: Hit) -> str:
        path = Path(hit.path)
        where = os.path.relpath(path.parent, self.index.folder)
        place = "" if where == "." else f"{where} · "
        source, note = self._source(path)
        player = (
            f'<audio controls preload="none" src="{html.escape(source)}"></audio>' if source else ""
        )
        return (
            f'<div class="alm-hit"><div class="score">{hit.score:.3f}'
            f'<meter min="0" max="1" value="{max(0.0, hit.score):.3f}"></meter></div>'
            f'<div><div class="name">{html.escape(_shown(path.name))}</div><div class="where">'
            f"{html.escape(_shown(place))}{_duration(hit.seconds)}{html.escape(note)}</div></div>"
            f"{player}</div>"
        )

    def _source(self, path: Path) -> tuple[str, str]:
        """The address of something a browser plays, and what to say of it."""
        try:
            # gradio serves what a link in the folder points to only if that lies in it as well.
            if not _plays(path) or not path.resolve().is_relative_to(self.index.folder):
                return _address(self._preview(path)), " · preview"
        except (AudioError, OSError, soundfile.LibsndfileError):
            # Deleted or damaged since it was indexed.
            return "", " · can no longer be read"
        return _address(path), ""

    def _preview(self, path: Path) -> Path:
        """A copy as 16-bit WAV of at most a minute, mono, made once."""
        status = path.stat()
        key = f"{os.fspath(path)}\0{status.st_mtime_ns}\0{status.st_size}"
        copy = self.previews / f"{hashlib.sha256(os.fsencode(key)).hexdigest()[:24]}.wav"
        if not copy.exists():
            rate = 44100
            audio = read_audio(path, sample_rate=rate, max_seconds=_PREVIEW_SECONDS)
            partial = copy.with_suffix(f".{os.urandom(4).hex()}.part")
            soundfile.write(partial, np.clip(audio, -1, 1), rate, subtype="PCM_16", format="WAV")
            partial.replace(copy)
        return copy


def _plays(path: Path) -> bool:
    """Whether browsers play the file as it is."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return False  # Its name has no address.
    info = soundfile.info(os.fspath(path))
    usual = 1 <= info.channels <= 2 and 8000 <= info.samplerate <= 96000
    return usual and info.subtype in _PLAYABLE.get(info.format, ())


def _address(path: Path) -> str:
    # Relative, so that it holds behind a proxy that serves the page below some folder, too.
    return "gradio_api/file=" + urllib.parse.quote(path.as_posix(), safe="/:")


def _shown(name: str) -> str:
    return name.encode("utf-8", "replace").decode("utf-8")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d} min"


def require_gradio() -> None:
    """Raises UserError, with the remedy, where gradio is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the search page needs gradio: pip install 'gradio>=6.0' (the extra `app` of this"
            " project), or print results in the terminal with --text=QUERY"
        )


def make_page(page: Page) -> Any:
    """Builds the gradio page.

    Args:
      page: answers the queries.

    Returns:
      A `gradio.Blocks`; its endpoint `/search` takes (text, top) and returns HTML.
    """
    # Read when gradio is imported. The proxy must not be asked for this very machine.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in ("NO_PROXY", "no_proxy"):
        known = os.environ.get(name, "")
        if HOST not in known:
            os.environ[name] = ",".join(filter(None, [known, HOST, "localhost"]))
    import gradio

    index = page.index
    left_out = f" ({len(index.skipped)} left out)" if index.skipped else ""
    folder = html.escape(_shown(os.fspath(index.folder)))
    with gradio.Blocks(title="alm search", analytics_enabled=False) as blocks:
        gradio.HTML(f"<h2>Search by description</h2>{len(index)} sounds{left_out} in {folder}")
        with gradio.Row():
            text = gradio.Textbox(
                label="What would you like to hear?",
                placeholder="a dog barks in the distance",
                submit_btn="Search",
                scale=4,
                autofocus=True,
            )
            top = gradio.Slider(1, 50, value=10, step=1, label="Matches", scale=1)
        found = gradio.HTML(page.results("", 1), render=False)
        gradio.Examples(
            [[example] for example in EXAMPLES],
            inputs=[text],
            outputs=[found],
            fn=lambda example: page.results(example, 10),
            run_on_click=True,
            cache_examples=False,
        )
        found.render()
        text.submit(page.results, [text, top], found, api_name="search")
    return blocks


@contextlib.contextmanager
def serving(model: Model, index: Index, port: int | None) -> Iterator[tuple[Any, str]]:
    """Serves the page while the context lasts.

    Args:
      model: embeds the queries.
      index: the sounds.
      port: TCP port on 127.0.0.1; None takes the first free one from 7860 on.

    Yields:
      The `gradio.Blocks` and the page's address.

    Raises:
      UserError: the port is taken, or gradio is missing.
    """
    require_gradio()
    with tempfile.TemporaryDirectory(prefix="alm_search_") as previews:
        folder = Path(previews).resolve()
        blocks = make_page(Page(model, index, folder))
        import gradio

        # gradio's own theme of some versions loads a font from the network.
        theme = gradio.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        )
        try:
            _, address, _ = blocks.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                ssr_mode=False,
                enable_monitoring=False,
                allowed_paths=[os.fspath(index.folder), os.fspath(folder)],
                footer_links=[],
                theme=theme,
            )
        except OSError as error:
            where = "ports 7860 to 7959" if port is None else f"port {port}"
            raise UserError(
                f"{where} of {HOST} cannot be used ({error}); try another --port=..."
            ) from error
        try:
            yield blocks, address
        finally:
            blocks.close(verbose=False)


def serve(model: Model, index: Index, port: int | None) -> None:
    """Serves the page until Ctrl-C, and says where (see `serving`)."""
    with serving(model, index, port) as (blocks, address):
        print(f"{len(index)} sounds of {index.folder}: open {address} (Ctrl-C ends)", flush=True)
        blocks.block_thread()
