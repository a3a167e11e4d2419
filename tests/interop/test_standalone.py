"""The modelling file that is assembled for a model: its imports, its parts, its looks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from alm_jax.config import load_config
from alm_jax.interop.exported import export_config
from alm_jax.interop.standalone import standalone_source
from tests import model_fixtures

ROOT = Path(__file__).parents[2]
# Config -> what its file must define, and what it must not.
FILES = {
    "quickstart": ({"AudioViT", "TextRoberta", "CaptionDecoder"}, {"Htsat", "MaeSide", "Swin"}),
    "quickstart:mae": ({"ConcatenatingDecoder"}, {"TextSide", "VitDecoder", "Tokenizer"}),
    "audiomae": ({"SwinDecoder", "FixedPositions"}, {"PatchPositions", "VitDecoder", "TextSide"}),
    "audiomae:finetune": ({"Classifier", "MeanPooler"}, {"MaeSide", "AttentionPooler"}),
}


def source(spec: str) -> str:
    config = load_config(spec)
    tokenizer = model_fixtures.tiny_tokenizer() if config.model.text is not None else None
    rows = tokenizer.vocab_size if tokenizer is not None else 0
    return standalone_source(export_config(config, rows, tokenizer).to_dict())


@pytest.mark.parametrize("spec", FILES)
def test_holds_what_the_model_needs_and_no_more(spec):
    """Who reads the file would wade through other models' code, or miss some of their own."""
    there, absent = FILES[spec]
    names = {getattr(node, "name", "") for node in ast.parse(source(spec)).body}
    assert there <= names
    assert not {name for name in names if name.startswith(tuple(absent))}


@pytest.mark.parametrize("spec", FILES)
def test_imports_only_what_a_stranger_has(spec):
    """The folder is useless where one of its imports is not installed."""
    tree = ast.parse(source(spec))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(str(node.module).split(".")[0])
    text = {"sentencepiece"} if spec == "quickstart" else set()
    assert names - set(sys.stdlib_module_names) == {"numpy", "torch"} | text
    top = {alias.name for n in tree.body if isinstance(n, ast.Import) for alias in n.names}
    assert "sentencepiece" not in top, "audio alone must work without it"


def test_passes_ruff(tmp_path):
    """The file is meant to be read and edited: unused imports and long lines are in the way."""
    for spec in FILES:
        (tmp_path / f"{spec.replace(':', '_')}.py").write_text(source(spec), encoding="utf-8")
    for arguments in (["check", "--output-format=concise"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, f"--config={ROOT / 'pyproject.toml'}"]
        result = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
