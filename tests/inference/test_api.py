"""`alm_jax.load`: embeddings and captions from Python."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

import alm_jax
from alm_jax.errors import UserError
from alm_jax.inference import clips
from alm_jax.inference.model import Model
from input_pipeline.audio_files import AudioError, read_audio, to_int16
from input_pipeline.text import Tokenizer
from tests.model_fixtures import clap_model, clap_workdir, mae_workdir

RATE = 16000
WINDOW = 2 * RATE  # data.max_seconds of the tiny model


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Noise with a slow rhythm, so that its parts differ: int16 [S]."""
    rng = np.random.default_rng(seed)
    rhythm = 0.5 + 0.5 * np.sin(np.arange(samples) * 2 * np.pi * (1 + seed) / RATE)
    return (3000 * rhythm * rng.standard_normal(samples)).astype(np.int16)


def alone(model: Model, audio: np.ndarray) -> np.ndarray:
    """The embedding [d] of one window as the model gives it without padding or batch mates."""
    forward = model._inference.embed_audio
    length = np.asarray([len(audio)], np.int32)
    return np.asarray(forward(model._params, audio[None], length))[0]


@pytest.fixture(scope="module")
def mae() -> Model:
    return alm_jax.load(mae_workdir())


def test_properties(mae: Model) -> None:
    """Code that asks the model what it is gets a wrong answer."""
    model = clap_model()
    assert (model.sample_rate, model.embed_dim, model.max_seconds) == (16000, 24, 2.0)
    assert model.has_text and model.has_captions and model.max_text_tokens == 16
    assert (mae.embed_dim, mae.has_text, mae.has_captions) == (32, False, False)
    config = model.config
    config.model.embed_dim = 1
    assert model.embed_dim == 24


@pytest.mark.parametrize("which", ["clap", "mae"])
def test_embedding_depends_on_the_clip_alone(which: str, mae: Model) -> None:
    """The same file gets another embedding in another folder, batch or padding."""
    model = clap_model() if which == "clap" else mae
    sounds = [noise(n, seed) for seed, n in enumerate((7000, 9000, 1, 8001, 32000))]
    found = model.embed_audio(sounds, RATE)
    assert found.dtype == np.float32 and found.shape == (5, model.embed_dim)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(model.embed_audio(sounds[::-1], RATE)[::-1], found, atol=1e-5)
    np.testing.assert_allclose(found[1], alone(model, sounds[1]), atol=1e-5)
    if which == "clap":
        pair = model.embed_audio([sounds[3], sounds[1]], RATE, batch_size=2)
        np.testing.assert_allclose(pair, found[[3, 1]], atol=1e-5)
        np.testing.assert_allclose(model.embed_audio(sounds[1], RATE)[0], found[1], atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3, "the clips are too alike to tell"


@pytest.mark.parametrize(
    ("samples", "parts"),
    [
        (2 * WINDOW, [WINDOW, WINDOW]),
        (2 * WINDOW + WINDOW // 10, [WINDOW, WINDOW, WINDOW // 10]),
        (2 * WINDOW + WINDOW // 10 - 1, [WINDOW, WINDOW]),
        (WINDOW + 20000, [WINDOW, 20000]),
        (WINDOW // 10 - 1, [WINDOW // 10 - 1]),
    ],
)
def test_long_clip_is_the_weighted_mean_of_its_windows(samples: int, parts: list[int]) -> None:
    """A long recording is represented by its beginning alone, or by a scrap of its end."""
    model = clap_model()
    audio = noise(samples)
    starts = np.cumsum([0, *parts])[:-1]
    windows = [audio[start : start + part] for start, part in zip(starts, parts, strict=True)]
    mean = (np.asarray(parts)[:, None] * model.embed_audio(windows, RATE)).sum(axis=0)
    found = model.embed_audio([audio, audio], RATE)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("seconds", [2.0, 2.9999, 3.0, 3.00001, 5.0, 7.3])
def test_file_read_in_stretches_equals_the_whole(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files longer than ten minutes get clicks, gaps or repeats where the stretches meet."""
    monkeypatch.setattr(clips, "_STRETCH_SECONDS", 2)
    path = tmp_path / "long.wav"
    soundfile.write(path, noise(round(seconds * 22050)), 22050)
    blocks = list(clips.pcm_blocks(path, None, RATE, "long"))
    assert len(blocks) > 1 or seconds < 3
    assert max(map(len, blocks)) <= 3 * RATE
    whole = to_int16(read_audio(path))
    joined = np.concatenate(blocks)
    assert len(joined) == len(whole)
    assert np.abs(joined.astype(int) - whole).max() <= 1


def test_error_late_in_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN behind the windows that were computed already leaves half an embedding."""
    monkeypatch.setattr(clips, "_STRETCH_SECONDS", 2)
    audio = noise(9 * RATE).astype(np.float32) / 32768
    good, bad = tmp_path / "good.wav", tmp_path / "bad.wav"
    soundfile.write(good, audio, RATE, subtype="FLOAT")
    audio[8 * RATE] = np.nan
    soundfile.write(bad, audio, RATE, subtype="FLOAT")
    rows = clap_model().embed_audio([bad, good, bad], batch_size=2, on_error="skip")
    assert np.isnan(rows[[0, 2]]).all() and np.isfinite(rows[1]).all()
    with pytest.raises(AudioError, match=r"bad.wav.*non_finite"):
        clap_model().embed_audio([good, bad])


def test_files_and_arrays_agree(tmp_path: Path) -> None:
    """A sound has two embeddings: one as a file, another as an array or in the dataset."""
    model = clap_model()
    stereo = np.stack([noise(20000, 1), noise(20000, 2)], axis=1)
    soundfile.write(tmp_path / "s.wav", stereo, 44100)
    scaled = (stereo / 32768).astype(np.float32)
    mono = soxr.resample(scaled.mean(axis=1), 44100, RATE)
    rows = [
        model.embed_audio(tmp_path / "s.wav")[0],
        model.embed_audio(str(tmp_path / "s.wav"))[0],
        model.embed_audio(scaled, 44100)[0],
        model.embed_audio([scaled], 44100)[0],
        model.embed_audio(mono, RATE)[0],
        model.embed_audio(to_int16(mono), RATE)[0],
        # int16 arrays: full scale is 32767, as in the datasets.
        model.embed_audio([stereo], 44100)[0],
        # What `alm prepare` would store.
        model.embed_audio(to_int16(read_audio(tmp_path / "s.wav")), RATE)[0],
    ]
    np.testing.assert_allclose(rows, np.broadcast_to(rows[0], (8, 24)), atol=2e-3)
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[7])


@pytest.mark.parametrize(
    ("clip", "rate", "error", "message"),
    [
        (np.zeros(100, np.float32), None, UserError, "sample_rate"),
        (np.zeros(100, np.float32), -1, UserError, "must be a positive number"),
        (np.zeros((2, 16000), np.float32), RATE, UserError, r"\[samples, channels\]: transpose"),
        (np.zeros((1, 2, 3), np.float32), RATE, UserError, "shape"),
        (np.zeros(100, np.int32), RATE, UserError, "int32"),
        (np.full(100, 3000.0), RATE, UserError, "full scale of floats is 1.0"),
        (np.zeros(0, np.float32), RATE, AudioError, "empty"),
        (np.asarray([0.0, np.nan]), RATE, AudioError, "non_finite"),
        (np.asarray([0.0, -np.inf]), RATE, AudioError, "non_finite"),
        ([0.1, 0.2], RATE, UserError, "clip 0 is a float"),
        ("missing.wav", None, AudioError, "missing"),
    ],
)
def test_useless_clips(clip: Any, rate: float | None, error: type, message: str) -> None:
    """A mistake in the arguments gives an embedding of something else, or a riddle."""
    with pytest.raises(error, match=message):
        clap_model().embed_audio(clip, rate)
    with pytest.raises(error, match=message):
        clap_model().caption(clip, rate)


def test_useless_options() -> None:
    """A wrong option is taken for another."""
    model = clap_model()
    with pytest.raises(UserError, match="on_error='ignore'"):
        model.embed_audio([], on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="batch_size=0"):
        model.embed_audio([noise(10)], RATE, batch_size=0)
    with pytest.raises(UserError, match="max_length=999: must be 1 to"):
        model.caption([noise(10)], RATE, max_length=999)


def test_nothing_gives_nothing() -> None:
    """An empty list fails, or has no width to stack with others."""
    model = clap_model()
    assert model.embed_audio([]).shape == (0, 24)
    assert model.embed_text([]).shape == (0, 24)
    assert model.caption([]) == []


def test_very_low_rate_and_one_sample() -> None:
    """A clip that resamples to less than one sample fails deep inside."""
    rows = clap_model().embed_audio([np.asarray([0.5]), np.asarray([0.5, 0.4])], 192000)
    assert np.isfinite(rows).all()


def test_text_rows_depend_on_the_string_alone() -> None:
    """A query finds other sounds when it is asked together with others."""
    model = clap_model()
    strings = ["a dog barks", "", "телефон", "word " * 5000, "a soft bell"]
    rows = model.embed_text(strings)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    for string, row in zip(strings, rows, strict=True):
        np.testing.assert_allclose(model.embed_text(string)[0], row, atol=1e-5)
    many = [strings[number % 5] for number in range(70)]  # more than a batch
    np.testing.assert_allclose(model.embed_text(many), rows[np.arange(70) % 5], atol=1e-5)
    assert [model.is_cut(string) for string in strings] == [False, False, False, True, False]
    with pytest.raises(UserError, match="takes strings, not int"):
        model.embed_text(["a", 3])  # type: ignore[list-item]


def test_captions() -> None:
    """A caption depends on the batch, or describes more than the promised first window."""
    model = clap_model()
    audio = noise(2 * WINDOW)
    sounds = [audio, audio[:WINDOW], noise(9000, 1)]
    found = model.caption(sounds, RATE, max_length=6)
    assert found[0] == found[1] and len(found) == 3
    assert model.caption(sounds[2], RATE, max_length=6) == found[2:]
    assert all("\n" not in caption and "\t" not in caption for caption in found)


def test_stage_1_model(mae: Model) -> None:
    """A masked autoencoder, which has no words, ends in an AttributeError."""
    with pytest.raises(UserError, match="no text side"):
        mae.embed_text("a dog")
    with pytest.raises(UserError, match="no caption decoder"):
        mae.caption(noise(100), RATE)


def test_fingerprint(mae: Model) -> None:
    """A search index of other parameters is taken for this model's, or never found again."""
    model = clap_model()
    again = alm_jax.load(clap_workdir())
    assert again.fingerprint == model.fingerprint != mae.fingerprint
    params = dict(again._params)
    params["logit_scale"] = params["logit_scale"] + 1
    other = Model(again.config, params, again._tokenizer, "here")
    assert other.fingerprint != model.fingerprint


def test_load_says_what_it_looked_for(tmp_path: Path) -> None:
    """A wrong folder ends in a traceback of orbax."""
    with pytest.raises(UserError, match="no folder"):
        alm_jax.load(tmp_path / "absent")
    with pytest.raises(UserError, match=r"config.json and checkpoints.*model.safetensors"):
        alm_jax.load(tmp_path)
    with pytest.raises(UserError, match=f"did you mean {clap_workdir()}"):
        alm_jax.load(clap_workdir().parent)
    with pytest.raises(UserError, match=f"did you mean {clap_workdir()}"):
        alm_jax.load(clap_workdir() / "checkpoints")


def test_load_of_a_workdir_with_missing_or_foreign_parts(tmp_path: Path) -> None:
    """A workdir that was copied in part ends in a message about tracers."""
    workdir = tmp_path / "run"
    shutil.copytree(clap_workdir(), workdir)
    Tokenizer.train(["other words entirely"] * 9, 300).save(workdir / "tokenizer.model")
    with pytest.raises(UserError, match=r"text.words is \(\d+, 32\), not \(\d+"):
        alm_jax.load(workdir)
    (workdir / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        alm_jax.load(workdir)
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "checkpoints").mkdir()
    shutil.copy(clap_workdir() / "tokenizer.model", workdir)
    with pytest.raises(UserError, match="holds no finished checkpoint"):
        alm_jax.load(workdir)
