"""Every command and Python block in the README and in docs/ works as written.

They run in a folder laid out as the quickstart leaves one, on a small model with random parameters.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.numpy
from flax import serialization

from alm_jax import cli
from alm_jax.config import read_config
from tests.evaluators import published
from tests.input_pipeline.own_data import prepare
from tests.interop.official_trees import CACOPHONY_HEADS, cacophony, nested, text_tower
from tests.model_fixtures import clap_workdir

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a training command is shrunk by: the documented lengths take minutes.
_PARTS = {
    "mae": ("audio", "mae_decoder"),
    "clap": ("audio", "text", "caption_decoder"),
    "labels": (),  # as large as the encoder that it starts from
}
_SHRINK = ["train.steps=3", "optim.warmup_steps=1", "data.batch_size=8", "data.max_seconds=1.0"]


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language on all pages."""
    found = []
    for page in PAGES:
        found += re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return found


def commands() -> list[str]:
    """Every command of the shell blocks, each once, continuation lines joined."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return list(dict.fromkeys(line.strip() for line in lines if line.strip()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Path) -> Path:
    """A user's folder after the quickstart: runs/, data/ and some sounds."""
    path = tmp_path_factory.mktemp("user")
    shutil.copytree(clap_workdir(), path / "runs" / "quickstart" / "clap")
    (path / "data").mkdir()
    (path / "data" / "opensounds").symlink_to(tiny_dataset.parents[1])
    (path / "sounds").mkdir()
    _write_sounds(tiny_dataset, path / "sounds")
    for name in ("clotho", "esc50"):
        published.LAYOUTS[name](path / "corpora" / name, published.six(tiny_dataset))
        prepare(path / "corpora" / name, path / "data" / name, name)
    _write_checkpoints(path)
    return path


def _write_checkpoints(folder: Path) -> None:
    """Cacophony.ckpt and roberta-base/, tiny; the one has the other's vocabulary."""
    params = nested(cacophony("cacophony_caco_tiny"))
    (folder / "Cacophony.ckpt").write_bytes(
        serialization.msgpack_serialize({"0": {"params": params}})
    )
    state, config = text_tower("text_roberta_tiny")
    roberta = folder / "roberta-base"
    roberta.mkdir()
    safetensors.numpy.save_file(state, roberta / "model.safetensors")
    (roberta / "config.json").write_text(json.dumps(config))
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *map(chr, range(33, 127))]
    names += [f"filler{number}" for number in range(config["vocab_size"] - len(names))]
    vocabulary = {name: number for number, name in enumerate(names)}
    (roberta / "vocab.json").write_text(json.dumps(vocabulary))
    (roberta / "merges.txt").write_text("#version: 0.2\n")


def _write_sounds(dataset: Path, folder: Path) -> None:
    import soundfile

    from input_pipeline.sources import open_source

    source = open_source(dataset, "test")
    for name, row in (("one", 0), ("two", 1), ("three", 2)):
        soundfile.write(folder / f"{name}.wav", source[row]["audio"], 16000)
    table = ["file,caption", *(f"{name}.wav,sound {name}" for name in ("one", "two", "three"))]
    (folder / "captions.csv").write_text("\n".join(table), encoding="utf-8")


def _shrunk(words: list[str]) -> list[str]:
    stage = "mae" if any(":mae" in word for word in words) else "clap"
    if any("_labels" in word for word in words):
        stage = "labels"
    smaller = [
        f"model.{part}.{field}"
        for part in _PARTS[stage]
        for field in ("width=16", "depth=1", "heads=2", "mlp_dim=32")
    ]
    if stage == "labels":
        sizes = read_config(clap_workdir() / "config.json").model.audio
        fields = ("width", "depth", "heads", "mlp_dim", "unroll")
        smaller += [f"model.audio.{name}={sizes[name]}" for name in fields]
    if stage == "clap":
        smaller += ["model.embed_dim=16", "model.audio_pool.heads=2"]
    return words + [f"--config.{override}" for override in (*_SHRINK, *smaller)]


@pytest.mark.parametrize("command", commands())
def test_command(command: str, folder: Path, tiny_packages: Path, monkeypatch) -> None:
    """A user who copies this line from the documentation would get an error."""
    monkeypatch.chdir(folder)
    words = shlex.split(command)
    if words[0] == "make":
        # What the targets do is tested by running them: CI and tests/e2e.
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    if words[:3] == ["python", "-m", "launch"]:
        # From a checkout; what it prints is compared with goldens in tests/launch.
        assert "--dry-run" in words, f"{command!r} would need the cloud"
        subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    assert words[0] == "alm", f"no way to test {command!r}"
    if words[1] == "train":
        words = _shrunk(words)
    if words[1] == "plan":
        # The shipped sizes for TPUs are compiled by `make plans`, which takes five minutes.
        words = [word for word in words if ":" not in word and not word.startswith("--config")]
        words = [word for word in words if word != "--topology"]
        words += ["--config=quickstart:mae", "--topology=cpu:1", "--config.optim.name=adamw"]
        words = _shrunk(words)
    if "--format=cacophony" in words:
        words += CACOPHONY_HEADS
    if words[1] == "prepare" and not any(word.startswith("--input") for word in words):
        words.append(f"--packages={tiny_packages}")
    if words[1] == "eval" and not any(word.startswith("--data") for word in words):
        words.append("--data=data/opensounds/tiny")
    # Rendered notes of the tiny tier share samples; status 1 says so.
    assert cli.main(words[1:]) == (1 if words[1] == "overlap" else 0)


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code: str, folder: Path, monkeypatch, capsys) -> None:
    """A user who pastes this block would get an exception."""
    monkeypatch.chdir(folder)
    exec(compile(code, "documentation", "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """A link or picture on this page would lead nowhere."""
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
