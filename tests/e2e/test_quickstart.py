"""`make quickstart TIER=tiny` as a whole: the Makefile's own command, and what it leaves."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def _make_command(packages: Path, arguments: list[str]) -> list[str]:
    """What `make quickstart TIER=tiny` would run, with this Python."""
    shown = subprocess.run(
        [
            "make",
            "-n",
            "quickstart",
            "TIER=tiny",
            f"PACKAGES={packages}",
            f"ARGS={shlex.join(arguments)}",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    (line,) = [line for line in shown.splitlines() if "alm_jax quickstart" in line]
    python, *rest = shlex.split(line.lstrip("@"))
    assert python.endswith("bin/python"), line
    return [sys.executable, *rest]


def _quickstart(folder: Path, packages: Path) -> str:
    command = _make_command(
        packages, [f"--output={folder / 'quickstart'}", f"--data={folder / 'data'}"]
    )
    environment = os.environ | {
        "XLA_FLAGS": "",  # it is compiled as a user's
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_PLATFORMS": "cpu",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="module")
def output(folder: Path, tiny_packages: Path) -> str:
    """What the first run printed."""
    return _quickstart(folder, tiny_packages)


@pytest.fixture(scope="module")
def run(folder: Path, output: str) -> Path:
    return folder / "quickstart"


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, dict]:
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


def test_every_stage_says_what_it_does(output: str) -> None:
    """A person would look at a silent terminal for minutes."""
    for number in range(1, 8):
        assert f"[{number}/7] " in output
    assert output.count("done after") == 7
    assert "report.html" in output and "alm search" in output


def test_it_leaves_the_folder_of_the_documentation(run: Path) -> None:
    """The README would name files that are not there."""
    for name in (
        *(f"{stage}/config.json" for stage in ("mae", "clap")),
        *(f"{stage}/metrics.jsonl" for stage in ("mae", "clap")),
        *(f"{stage}/checkpoints" for stage in ("mae", "clap")),
        *(f"{stage}/tokenizer.model" for stage in ("mae", "clap", "export")),
        "export/model.safetensors",
        "export/config.json",
        "export/modeling_alm.py",
        "export/golden.npz",
        "results.json",
        "report.html",
    ):
        assert (run / name).exists(), name
    tokenizers = {(run / d / "tokenizer.model").read_bytes() for d in ("mae", "clap", "export")}
    assert len(tokenizers) == 1
    clap = json.loads((run / "clap" / "config.json").read_text())
    assert clap["init_from"]["workdir"] == str(run / "mae")


def test_metrics_are_one_object_a_line(run: Path) -> None:
    """Somebody's plotting script would not find its steps and scalars."""
    for stage, name in (("mae", "reconstruction_loss"), ("clap", "contrastive_loss")):
        lines = [json.loads(text) for text in (run / stage / "metrics.jsonl").open()]
        steps = [line["step"] for line in lines if f"train/{name}" in line]
        assert len(steps) >= 3 and steps == sorted(set(steps))
        assert all(isinstance(v, int | float) for line in lines for v in line.values())
        losses = [line[f"train/{name}"] for line in lines if f"train/{name}" in line]
        assert losses[-1] < losses[0]


def test_results_have_all_numbers_with_their_circumstances(results: dict[str, dict]) -> None:
    """A number would stand without its N, chance and prompt."""
    for direction in ("audio_to_text", "text_to_audio"):
        for metric in ("R@1", "R@5", "R@10", "mAP@10", "median_rank"):
            for start in ("eval", "baseline/ridge", "export"):
                row = results[f"{start}/retrieval/{direction}/{metric}"]
                assert row["n_clips"] > 20 and row["n_captions"] > 20
                assert row["chance"] > 0 and row["prompt"] and row["split"] == "test"
    for task in ("general_midi", "effects"):
        row = results[f"eval/zero_shot/{task}/accuracy"]
        assert row["chance"] == pytest.approx(1 / row["n_classes"]) and "{" in row["prompt"]
    for metric in ("BLEU-4", "ROUGE-L", "CIDEr-D"):
        assert results[f"eval/captions/{metric}"]["n_clips"] > 20
    for stage in ("data", "tokenizer", "stage1", "stage2", "evaluation", "export", "report"):
        assert results[f"quickstart/seconds/{stage}"]["value"] > 0
    assert 0.3 < results["quickstart/peak_memory"]["value"] < 6


def test_the_model_has_learned_something(results: dict[str, dict]) -> None:
    """Training would run and teach nothing: the clearest of all regressions."""
    row = results["eval/retrieval_with_notes/audio_to_text/R@10"]
    assert row["value"] > 4 * row["chance"]
    row = results["eval/retrieval_with_notes/text_to_audio/R@10"]
    assert row["value"] > 4 * row["chance"]


def test_numbers_follow_from_the_embeddings(run: Path, results: dict[str, dict]) -> None:
    """The numbers would be about other clips or captions than the embeddings beside them."""
    with np.load(run / "evaluation" / "embeddings.npz") as arrays:
        audio, text = arrays["audio"].astype(float), arrays["text"].astype(float)
        of_clip, ids = arrays["caption_of_clip"], arrays["id"]
    scores = audio @ text.T
    right = scores[np.arange(len(audio)), of_clip]
    rank = (scores >= right[:, None] - 1e-6).sum(axis=1)
    row = results["eval/retrieval_with_notes/audio_to_text/R@10"]
    assert row["n_clips"] == len(audio) and row["n_captions"] == len(text)
    assert np.mean(rank <= 10) == pytest.approx(row["value"], abs=2.5 / len(audio))
    recorded = np.asarray([".sf2#" not in name for name in ids])
    captions = np.unique(of_clip[recorded])
    rank = (scores[recorded][:, captions] >= right[recorded][:, None] - 1e-6).sum(axis=1)
    row = results["eval/retrieval/audio_to_text/R@10"]
    assert row["n_clips"] == recorded.sum() and row["n_captions"] == len(captions)
    assert np.mean(rank <= 10) == pytest.approx(row["value"], abs=1.5 / recorded.sum())


def test_exported_model_is_the_same(run: Path, results: dict[str, dict]) -> None:
    """Who takes the model to PyTorch would get other search results than the report shows."""
    parity = {n: r["value"] for n, r in results.items() if n.startswith("export/parity/")}
    assert {"export/parity/audio_embedding", "export/parity/text_embedding"} <= parity.keys()
    assert max(parity.values()) <= 1e-4
    ours = {n: r["value"] for n, r in results.items() if n.startswith("eval/retrieval")}
    theirs = {
        n.replace("export/retrieval", "eval/retrieval", 1): r["value"]
        for n, r in results.items()
        if n.startswith("export/retrieval")
    }
    assert theirs == ours


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "poster")]


def test_the_report_is_whole_in_itself(run: Path) -> None:
    """The page would be empty on a train, or somebody's server see who reads it."""
    html = (run / "report.html").read_text(encoding="utf-8")
    assert len(html) < 15e6
    page = _Links()
    page.feed(html)
    assert all(value.startswith(("data:", "#")) for value in page.values)
    assert not re.search(r"url\(\s*['\"]?(?!data:)|@import", html)
    assert page.tags.count("script") == 0
    assert page.tags.count("audio") >= 12 * 5  # a dozen searches, five sounds each
    assert page.tags.count("img") == 4 * 3  # spectrogram, masked, reconstructed
    assert page.tags.count("svg") == 3  # loss curves
    for said in ("ridge regression", "chance", "CIDEr-D", "PyTorch", "minetest-data", "alm search"):
        assert said in html, said
    assert "all are equal" in html


def test_running_again_keeps_what_is_done(folder: Path, run: Path, tiny_packages: Path) -> None:
    """A second run would download and train everything again, or change the numbers."""
    before = {
        path: path.read_bytes()
        for path in (run / "clap" / "metrics.jsonl", run / "export" / "model.safetensors")
    }
    report = (run / "report.html").stat().st_mtime_ns
    output = _quickstart(folder, tiny_packages)
    assert output.count("done before") == 6 and "ready" in output
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (run / "report.html").stat().st_mtime_ns == report
