"""HEAR's, X-ARES' and MTEB's interfaces on exported models, with real sound."""

from __future__ import annotations

import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alm_jax.interop import alm_benchmarks as hear
from alm_jax.interop.exported import export_config, read_model
from alm_jax.interop.layouts import Exported, write_model
from input_pipeline.sources import open_source
from tests import model_fixtures
from tests.interop import clap_models


def exported(folder: Path, config: Any, params: Any, tokenizer: Any) -> Path:
    """An export without the comparison with JAX, which other tests are about."""
    folder.mkdir()
    rows = tokenizer.vocab_size if tokenizer else 0
    write_model(folder, Exported(export_config(config, rows, tokenizer), params, tokenizer))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Exports: a ViT with text, one without, an HTSAT with LAION-CLAP's front end."""
    root = tmp_path_factory.mktemp("exports")
    config, params, _ = read_model(model_fixtures.mae_workdir())
    return {
        "clap": exported(root / "clap", *read_model(model_fixtures.clap_workdir())),
        "mae": exported(root / "mae", config, params, None),
        "htsat": exported(root / "htsat", *clap_models.clap()),
    }


@pytest.fixture(scope="module")
def recording(tiny_dataset: Path) -> np.ndarray:
    """The longest clip of the tiny tier's test split, int16 [S] at 16 kHz."""
    return max((clip["audio"] for clip in open_source(tiny_dataset, "test")), key=len)[: 3 * 16000]


def waves(recording: np.ndarray, seconds: float, rate: int) -> torch.Tensor:
    """Two waveforms [2, S] of a length, float in [-1, 1]."""
    pcm = recording if rate == 16000 else clap_models.resampled([recording])[0]
    samples = round(seconds * rate)
    both = np.stack([np.resize(pcm, samples), np.resize(pcm[::-1], samples)])
    return torch.from_numpy(both / np.float32(32767))


@pytest.mark.parametrize("name", ["clap", "mae", "htsat"])
@pytest.mark.parametrize("seconds", [0.05, 5.3])
def test_hear(name: str, seconds: float, folders: dict[str, Path], recording: np.ndarray) -> None:
    """HEAR would refuse the model, or score events at the wrong time."""
    model = hear.load_model(str(folders[name]))
    audio = waves(recording, seconds, model.sample_rate)
    scenes = hear.get_scene_embeddings(audio, model)
    assert scenes.shape == (2, model.scene_embedding_size) and scenes.dtype == torch.float32
    torch.testing.assert_close(scenes.norm(dim=1), torch.ones(2))
    wanted = model.model.embed_audio([wave.numpy() for wave in audio], model.sample_rate)
    torch.testing.assert_close(scenes, wanted.clone())
    states, times = hear.get_timestamp_embeddings(audio, model)
    assert states.shape == (2, times.shape[1], model.timestamp_embedding_size)
    assert states.dtype == times.dtype == torch.float32 and times.shape[0] == 2
    assert bool((times.diff(dim=1) > 0).all()) and bool(states.isfinite().all())
    assert float(times[0, 0]) > 0 and float(times[0, -1]) <= 1000 * seconds
    assert not torch.equal(states[0], states[1])
    with pytest.raises(ValueError, match=r"\[n_sounds, n_samples\]"):
        hear.get_scene_embeddings(audio[0], model)


def test_times_are_the_middles_of_patches(folders: dict[str, Path], recording: np.ndarray) -> None:
    """All onsets of DCASE 2016 would be shifted."""
    model = hear.load_model(str(folders["clap"]))
    _, times = hear.get_timestamp_embeddings(waves(recording, 4.0, 16000), model)
    fields = model.model.fields
    frames = fields["patches"]["time"]
    # A patch of f frames of 25 ms, 10 ms apart, covers 10 (f - 1) + 25 ms.
    first, step = (10 * (frames - 1) + 25) / 2, 10 * frames
    inside = int(2000 // step)
    assert times[0, :inside].tolist() == pytest.approx([first + step * n for n in range(inside)])
    # Windows are 2 s long, and the next one starts there.
    second = times[0][times[0] > 2000]
    assert float(second[0]) == pytest.approx(2000 + first)


def test_x_ares(folders: dict[str, Path], recording: np.ndarray, monkeypatch) -> None:
    """X-ARES' own check of an encoder would fail."""
    monkeypatch.setenv("ALM_MODEL", str(folders["clap"]))
    encoder = hear.AlmEncoder()
    assert encoder.sampling_rate == 16000 and encoder.output_dim == 32
    assert encoder.hop_size_in_ms == pytest.approx(
        10 * encoder.exported.model.fields["patches"]["time"]
    )
    long = waves(recording, 9.0, 16000)
    found = encoder(long)
    assert found.shape[0] == 2 and found.shape[2] == 32
    assert found.shape[1] == pytest.approx(9_000 / encoder.hop_size_in_ms, rel=0.1)
    torch.testing.assert_close(encoder(long[0]), found[:1])
    assert encoder(torch.randn(2, 50000)).ndim == 3


class Collator:
    """Stands in for MTEB's, which resamples and hands on lists."""

    def __init__(self, target_sampling_rate: int):
        self.rate = target_sampling_rate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        assert all(row["audio"]["sampling_rate"] == self.rate for row in rows)
        return {"audio": [row["audio"] for row in rows]}


class Loader:
    """As much of a DataLoader as the protocol takes."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows
        self.dataset = types.SimpleNamespace(features=dict.fromkeys(rows[0]))
        self.collate_fn: Any = lambda some: {k: [row[k] for row in some] for k in some[0]}

    def __iter__(self) -> Iterator[Any]:
        return (self.collate_fn(self.rows[n : n + 2]) for n in range(0, len(self.rows), 2))


def test_mteb(folders: dict[str, Path], recording: np.ndarray, monkeypatch) -> None:
    """MTEB would rank texts against the wrong clips, or not run at all."""
    module = types.ModuleType("mteb.models.modality_collators")
    module.AudioCollator = Collator  # type: ignore[attr-defined]
    for name in ("mteb", "mteb.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    model = hear.MtebModel(str(folders["clap"]))
    clips = [recording[:n] / np.float32(32767) for n in (8000, 30000, 40000)]
    rows = [{"audio": {"array": clip, "sampling_rate": 16000}} for clip in clips]
    audio = model.encode(Loader(rows), task_metadata=None, hf_split="test", hf_subset="default")
    texts = ["a dog", "rain", "a bell"]
    text = model.encode(Loader([{"text": t} for t in texts]), task_metadata=None)
    assert audio.shape == text.shape == (3, 24)
    plain = model.exported.model
    np.testing.assert_allclose(audio, plain.embed_audio(clips, 16000).numpy(), atol=1e-6)
    np.testing.assert_allclose(text, plain.embed_text(texts).numpy(), atol=1e-6)
    cosines = model.similarity(audio, text)
    np.testing.assert_allclose(cosines.numpy(), audio @ text.T, atol=1e-6)
    pairs = model.similarity_pairwise(audio, text)
    np.testing.assert_allclose(pairs.numpy(), np.diag(audio @ text.T), atol=1e-6)
    with pytest.raises(ValueError, match="no text side"):
        hear.MtebModel(str(folders["mae"])).encode(Loader([{"text": "x"}]))


def test_file_works_without_this_package(folders: dict[str, Path], tmp_path: Path) -> None:
    """HEAR's environment has another Python and no JAX."""
    shutil.copy(hear.__file__, tmp_path)
    code = (
        "import sys, torch, alm_benchmarks as hear\n"
        "model = hear.load_model(sys.argv[1])\n"
        "print(hear.get_timestamp_embeddings(torch.zeros(1, 16000), model)[0].shape[2])\n"
        "assert not {'jax', 'alm_jax', 'flax'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(folders["clap"])]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "32", run.stderr
    with pytest.raises(ValueError, match=r"holds no modeling_alm\.py"):
        hear.load_model(str(tmp_path))
