"""`alm inspect`: the page's numbers against counts made here, on real sound."""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from alm_jax import cli, inspect
from alm_jax.audio.frontend import FLAVOURS
from alm_jax.report import charts, dataset
from input_pipeline.sources import open_source


@pytest.fixture(scope="module")
def page(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The page, and what the command printed."""
    output = tmp_path_factory.mktemp("inspect") / "folder" / "tiny.html"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(words)))
        words = ["inspect", str(tiny_dataset), f"--output={output}", "--clips=3"]
        assert cli.main([*words, "--feature-clips=12"]) == 0
    return output.read_text(encoding="utf-8"), "\n".join(printed)


def test_numbers(page: tuple[str, str], tiny_dataset: Path) -> None:
    """A person decides by these numbers what to train on."""
    text, printed = page
    captions: Counter[str] = Counter()
    seconds = 0.0
    for split in ("train", "validation", "test"):
        source = open_source(tiny_dataset, split)
        captions.update(source.captions())
        hours = source.lengths.sum() / 16000 / 3600
        seconds += hours * 3600
        assert f"{split}: {len(source):,} clips, {hours:.2f} h" in printed
        assert source.fingerprint in text
    words = {word for caption in captions for word in re.findall(r"\w+", caption.lower())}
    for label, value in (
        ("Hours", f"{seconds / 3600:,.2f}"),
        ("Captions", f"{captions.total():,}"),
        ("Distinct captions", f"{len(captions):,}"),
        ("Different words", f"{len(words):,}"),
    ):
        assert f"<dt>{label}</dt><dd>{value}</dd>" in text
    caption, times = captions.most_common(1)[0]
    assert re.search(rf"{html.escape(caption)}</th><td class=\"n\">{times}<", text)
    assert "Left out when it was prepared: 5 not_audio" in text


def test_page_stands_alone(page: tuple[str, str]) -> None:
    """A page that loads something is broken on a machine without network, and tells on the user."""
    text, _ = page
    assert text.count("data:audio/") == 3 and text.count("data:image/png") == 3
    sources = set(re.findall(r'(?:src|href)="([^"#:]*)[":]', text))
    assert sources <= {"data", ""} and "default-src 'none'" in text
    assert "<script" not in text


def test_features_against_numpy(tiny_dataset: Path) -> None:
    """A config normalised by wrong statistics trains worse and nobody sees why."""
    source = open_source(tiny_dataset, "validation")
    cfg = FLAVOURS["cacophony"]
    found = inspect.features(source, "x", cfg, 9)
    values = np.concatenate(
        list(
            inspect.log_mels([source[int(i)]["audio"] for i in inspect._draw(len(source), 9)], cfg)
        )
    ).astype(np.float64)
    assert found.clips == 9 and found.used == (-4.5, 5.0)
    np.testing.assert_allclose([found.mean, found.std], [values.mean(), values.std()], rtol=1e-5)
    np.testing.assert_allclose(found.by_bin, values.mean(0), rtol=1e-5)
    # A second of digital silence is log(1e-5) in every cell, in its 100 frames alone.
    (silent,) = inspect.log_mels([np.zeros(16000, np.int16)], cfg)
    assert silent.shape == (100, 128) and np.allclose(silent, np.log(1e-5), atol=1e-5)


def test_levels_and_scripts() -> None:
    """Silent and clipped clips, and captions in another alphabet, are what one looks for here."""
    sine = np.rint(32767 * np.sin(np.arange(16000) / 8)).astype(np.int16)
    seconds, peak, level, clipped = dataset._levels(sine, 16000)
    assert seconds == 1 and abs(peak) < 1e-3 and level == pytest.approx(-3.01, abs=0.01)
    assert 0 < clipped < 0.02
    assert dataset._levels(np.zeros(0, np.int16), 16000) == (0, -np.inf, -np.inf, 0)
    assert dataset._levels(np.zeros(9, np.int16), 16000)[1] == -np.inf
    captions = Counter({"a dog": 2, "собака barks лает": 1, "犬が吠える": 1, "1, 2": 3})
    assert dataset.scripts(captions) == {"latin": 2, "cyrillic": 1, "hiragana": 1, "none": 3} or (
        dataset.scripts(captions) == {"latin": 2, "cyrillic": 1, "cjk": 1, "none": 3}
    )
    assert dataset.lengths(Counter({"a dog barks": 2, "": 1})).tolist() == [3, 3, 0]
    field = dataset.Field()
    for number in range(dataset._DISTINCT + 5):
        field.add([str(number)])
    assert field.many and not field.varies and len(field.counts) == dataset._DISTINCT + 1


def test_histogram() -> None:
    """Bars must be as high as their counts, and end where the axis says."""
    svg = str(charts.histogram("t", [0.5, 1, 2, 4], [1, 0, 4], x_label="s", logarithmic=True))
    bars = re.findall(
        r'<rect class="bar-of" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"'
        r' height="([\d.]+)"',
        svg,
    )
    x, _, width, height = np.array(bars, float).T
    assert height[2] == pytest.approx(4 * height[0], rel=0.01) and height[1] == 0
    np.testing.assert_allclose(np.diff(x), width[0] + 0.5, atol=0.2)  # octaves are equally wide
    assert "5 clips from 0.5 to 4" in svg


def test_bad_input(tmp_path: Path, tiny_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong folder and wrong config end in one line with the remedy."""
    assert cli.main(["inspect", str(tmp_path / "no")]) == 2
    assert f"there is no dataset folder {tmp_path / 'no'}" in capsys.readouterr().err
    assert cli.main(["inspect", str(tiny_dataset), "--config=quickstrat"]) == 2
    assert "quickstart" in capsys.readouterr().err
    assert inspect.front_end("laion_clap", [], 16000) is None  # of 48 kHz
