"""The report's page: whole in itself, safe, readable by machines and screen readers."""

import dataclasses
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import numpy as np
import pytest

from alm_jax.report import page
from alm_jax.report.charts import Line, line_chart
from alm_jax.report.examples import ClassRow, Hit, Query
from alm_jax.report.numbers import comparisons, everything
from alm_jax.report.reconstructions import Panel, png
from alm_jax.report.sounds import data_uri

EVIL = '<script>alert(1)</script>" onerror="alert(2)" \' {{ 1234567*3 }} <img src=http://evil.example/x>'
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.problems: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    return reader


def make_report(caption: str) -> page.Report:
    """Every section, each with a text that came from outside."""
    row = {
        "value": 0.5,
        "chance": 0.01,
        "unit": "fraction",
        "n_clips": 10,
        "n_captions": 9,
        "prompt": caption,
        "clips": "recorded clips",
        "protocol": caption,
    }
    results = {"eval/retrieval/audio_to_text/R@10": row}
    image = png(np.eye(4, dtype=np.float32), (0, 1))
    svg = line_chart(caption, [Line(caption, [(0, 1), (1, 2)])], x_label="steps", y_label="loss")
    assert svg is not None
    panel = Panel(image, image, image, 1.0, 2, 8, 0.5, 0.9, False)
    hits = [Hit(i, 0.5, caption, i == 0) for i in range(5)]
    sound = data_uri(np.zeros(4000, np.int16), 16000)
    return page.Report(
        title=caption,
        made=caption,
        summary=[caption],
        facts=[(caption, caption)],
        comparisons=comparisons(results),
        baselines=True,
        subsets=[{"title": caption, "sizes": caption, "cells": [{"model": "1", "ridge": "2"}]}],
        charts=[page.Chart(caption, caption, svg, [(caption, "model")])],
        stage1=[page.Shown(0, caption, caption, panel=panel)],
        queries=[Query(caption, caption, hits, 1, 1)],
        free=[Query(caption, "", hits, None, 0)],
        gallery=10,
        captions=[page.Shown(1, caption, caption, caption), page.Shown(2, "", caption, "")],
        caption_scores=[{"title": caption, "sizes": "", "cells": [("1", "2")], "prompt": caption}],
        zero_shot=[
            page.ZeroShot(
                caption,
                [{"title": caption, "value": "1", "chance": "2", "sizes": caption}],
                caption,
                [ClassRow(caption, 3, 1, [(caption, 2)])],
            )
        ],
        data={
            "sentence": caption,
            "split_columns": [caption],
            "splits": [{"name": caption, "cells": [caption]}],
            "sources": [
                {"name": caption, "archive": caption, "clips": 1, "skipped": 0, "licence": caption}
            ],
            "problems": [caption],
            "skipped": [{"package": caption, "path": caption, "reason": "x", "detail": caption}],
        },
        ablation={
            "columns": [caption],
            "rows": [{"title": caption, "cells": [caption], "steps": 1, "minutes": 2}],
            "command": caption,
            "provenance": caption,
            "note": caption,
        },
        parity={"title": caption, "sentence": caption, "rows": [(caption, "1")], "note": caption},
        numbers=everything(results),
        timing=[(caption, "1.0")],
        machine=caption,
        commands=[(caption, caption)],
        sounds=dict.fromkeys(range(5), sound),
    )


def test_captions_cannot_become_markup() -> None:
    """A caption from a stranger's file name would run as a script in the reader's browser."""
    html = page.render(make_report(EVIL))
    reader = read(html)
    assert not reader.problems and not reader.open
    assert not [tag for tag, _ in reader.tags if tag in ("script", "iframe", "object", "form")]
    for tag, attributes in reader.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
    assert "<script" not in html
    assert sum(EVIL in text for text in reader.text) > 10  # shown, word for word
    assert "3703701" not in html  # not run as a template


def test_nothing_is_loaded_from_elsewhere() -> None:
    """The report would not work offline, or tell a server that it is being read."""
    reader = read(page.render(make_report("rain")))
    for tag, attributes in reader.tags:
        for name in ("src", "href", "srcset", "poster", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    policy = [a["content"] for t, a in reader.tags if a.get("http-equiv")]
    assert policy and "default-src 'none'" in str(policy[0])
    style = (Path(page.__file__).parent / "style.css").read_text()
    assert "url(" not in style and "@import" not in style


def test_every_player_and_picture_has_a_name() -> None:
    """Somebody who cannot see the page would hear "button, button, button"."""
    reader = read(page.render(make_report("rain")))
    players = [a for tag, a in reader.tags if tag == "audio"]
    assert len(players) == 5 + 5 + 2 + 1
    assert all(a.get("aria-label") and "controls" in a for a in players)
    assert all(a.get("alt") for tag, a in reader.tags if tag == "img")
    assert all("<title>" in c.svg for c in make_report("rain").charts)
    ids = [str(a["id"]) for _, a in reader.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    links = [str(a["href"])[1:] for tag, a in reader.tags if tag == "a"]
    assert links and set(links) <= set(ids)
    assert [tag for tag, _ in reader.tags].count("h1") == 1


def test_a_report_with_the_least() -> None:
    """A model without captions, export or ablation would get no report at all."""
    least = dataclasses.replace(
        make_report("rain"),
        comparisons=[],
        subsets=[],
        charts=[],
        stage1=[],
        free=[],
        captions=[],
        caption_scores=[],
        zero_shot=[],
        data=None,
        ablation=None,
        parity=None,
        sounds={},
    )
    reader = read(page.render(least))
    assert not reader.problems and not [t for t, _ in reader.tags if t == "audio"]
    links = {str(a["href"])[1:] for tag, a in reader.tags if tag == "a"}
    assert links <= {str(a["id"]) for _, a in reader.tags if "id" in a}


def test_a_report_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while writing would leave half a page in the place of a good one."""
    path = page.write_page(make_report("rain"), tmp_path / "deep" / "report.html")
    before = path.read_text(encoding="utf-8")
    assert before.startswith("<!doctype html>") and before.rstrip().endswith("</html>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(jinja2.UndefinedError, match="split_columns"):
        page.write_page(dataclasses.replace(make_report("x"), data={"sentence": "x"}), path)
    assert path.read_text(encoding="utf-8") == before
