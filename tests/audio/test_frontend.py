"""Front ends against the official implementations and against float64 NumPy."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alm_jax.audio import frontend, mel
from alm_jax.audio.frontend import (
    FLAVOURS,
    LogMelConfig,
    log_mel,
    num_frames,
    output_frames,
    pcm_to_float,
)
from alm_jax.perf import flops

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
sys.path.insert(0, str(FOLDER))
from rule import waveform  # noqa: E402

GOLDEN = np.load(FOLDER / "frontend.npz")
CLIP_SECONDS = (1.0, 2.5)
# (max, mean) absolute differences: a few times the float32 noise of the official code itself.
DB, KALDI, TIGHT, M2D = (2e-3, 5e-5), (1e-2, 1e-4), (5e-5, 5e-6), (3e-4, 1e-5)
TOLERANCE = {
    "cacophony": TIGHT,
    "kaldi_fbank": KALDI,
    "laion_clap": DB,
    "laion_clap_fusion": DB,
    "msclap2022": DB,
    "msclap2023": DB,
    "panns": DB,
    "htsat": DB,
    "m2d": M2D,
    "m2d_32k": M2D,
    "whisper": TIGHT,
    "whisper_128": TIGHT,
}


def clips(cfg: LogMelConfig) -> list[np.ndarray]:
    return [waveform(cfg.sample_rate, s).astype(np.float32) / 32768 for s in CLIP_SECONDS]


def flavour(name: str) -> LogMelConfig:
    """The flavour as its golden was computed (Kaldi and M2D goldens are not normalised)."""
    if name == "whisper_128":
        return dataclasses.replace(FLAVOURS["whisper"], num_mels=128)
    if name in ("kaldi_fbank", "m2d", "m2d_32k"):
        return dataclasses.replace(FLAVOURS[name], mean=0.0, std=1.0, std_multiple=1.0)
    return FLAVOURS[name]


jitted = jax.jit(log_mel, static_argnums=1)


def one(clip: np.ndarray, cfg: LogMelConfig) -> np.ndarray:
    return np.asarray(jitted(jnp.asarray(clip, jnp.float32)[None], cfg)[0])


def padded(rows: list[np.ndarray], filler: float) -> tuple[jax.Array, jax.Array]:
    batch = np.full((len(rows), max(map(len, rows)) + 777), filler, np.float32)
    for row, clip in zip(batch, rows, strict=True):
        row[: len(clip)] = clip
    return jnp.asarray(batch), jnp.asarray([len(r) for r in rows], jnp.int32)


def reference(clip: np.ndarray, cfg: LogMelConfig) -> np.ndarray:
    """Float64 front end, one frame at a time with NumPy's FFT, for the framings without extras."""
    clip = clip.astype(np.float64)
    if cfg.framing == "pad_end":
        count = int(np.ceil(len(clip) / cfg.hop_length))
        clip = np.pad(clip, (0, cfg.fft_length))
    else:
        count = 1 + len(clip) // cfg.hop_length
        clip = np.pad(clip, cfg.fft_length // 2, mode="reflect")
    window = np.hanning(cfg.window_length + 1)[:-1]
    bank = mel.mel_filter_bank(
        sample_rate=cfg.sample_rate,
        fft_length=cfg.fft_length,
        num_mels=cfg.num_mels,
        fmin=cfg.fmin,
        fmax=cfg.fmax,
        scale=cfg.mel_scale,
        shape=cfg.triangle,
        norm=cfg.filter_norm,
    )
    rows = []
    for t in range(count):
        start = t * cfg.hop_length
        if cfg.window_position == "centre":
            start += (cfg.fft_length - cfg.window_length) // 2
        frame = clip[start : start + cfg.window_length] * window
        rows.append(np.abs(np.fft.rfft(frame, cfg.fft_length)) ** cfg.power @ bank)
    values = np.array(rows)
    if cfg.floor_mode == "add":
        values = values + cfg.floor
    else:
        values = np.maximum(values, cfg.floor)
    values = {"ln": np.log, "log10": np.log10, "db": lambda v: 10 * np.log10(v)}[cfg.log](values)
    return (values - cfg.mean) / cfg.std


@pytest.mark.parametrize("clip", [0, 1])
@pytest.mark.parametrize("name", TOLERANCE)
def test_equals_the_official_front_end(name: str, clip: int):
    """If this fails, a published checkpoint hears another spectrogram than it was trained on."""
    cfg = flavour(name)
    key = f"{'panns' if name == 'htsat' else name}/{clip}"
    ours, frames = one(clips(cfg)[clip], cfg), GOLDEN[f"{key}/frames"]
    if cfg.fixed_samples is None:
        assert len(ours) == GOLDEN[f"{key}/total"]
    difference = np.abs(ours[frames] - GOLDEN[f"{key}/values"])
    assert difference.max() < TOLERANCE[name][0]
    assert difference.mean() < TOLERANCE[name][1]


def test_every_flavour_has_a_reference():
    """If this fails, a flavour was added that nothing compares with its official code."""
    # Cnn14's 16 kHz variant shares every rule with the 32 kHz one and is compared in float64 below.
    assert set(FLAVOURS) - set(TOLERANCE) == {"panns_16k"}


def test_audiomae_normalisation_and_padding():
    """If this fails, AudioMAE sees wrongly scaled input, or other pads than it was trained with."""
    cfg = FLAVOURS["kaldi_fbank"]
    audio, length = padded(clips(cfg)[:1], 0.0)
    out = np.asarray(jitted(audio, cfg, length=length))[0]
    # The golden holds the last four valid frames and the first four padded ones.
    golden = GOLDEN["kaldi_fbank/0/normalised_from_94"]
    np.testing.assert_allclose(out[94:102], golden, atol=1e-3)
    np.testing.assert_allclose(out[98:], golden[-1, -1], atol=1e-6)


def test_whisper_frames_past_the_clip_are_the_official_ones():
    """If this fails, the silence after a clip is not the value Whisper's encoder knows."""
    cfg = FLAVOURS["whisper"]
    out = one(clips(cfg)[0], cfg)
    assert out.shape == (3000, 80)
    np.testing.assert_allclose(out[106:], -0.703644871711731, atol=5e-5)
    assert num_frames(16000, cfg) == 100
    assert output_frames(16000, cfg) == 3000


def test_whisper_cuts_at_thirty_seconds():
    """If this fails, clips over 30 s give shapes or values that Whisper's encoder cannot take."""
    cfg = FLAVOURS["whisper"]
    rng = np.random.default_rng(0)
    clip = rng.standard_normal(500000).astype(np.float32) * 0.1
    np.testing.assert_array_equal(one(clip, cfg), one(clip[:480000], cfg))
    assert num_frames(500000, cfg) == 3000


@pytest.mark.parametrize("name", FLAVOURS)
def test_frames_do_not_depend_on_padding_or_batch(name: str):
    """If this fails, a clip's embedding changes with what else is in the batch or its padding."""
    cfg = FLAVOURS[name]
    rng = np.random.default_rng(1)
    tolerance = 2e-4 if cfg.log == "db" else 2e-5
    shortest = max(cfg.window_length, cfg.fft_length // 2 + 1)
    rows = [rng.standard_normal(shortest + n) * 0.1 + 0.05 for n in (0, 159, 4321)]
    audio, length = padded(rows, np.nan)
    out = np.asarray(jitted(audio, cfg, length=length))
    assert out.shape == (len(rows), output_frames(audio.shape[1], cfg), cfg.num_mels)
    for row, clip in zip(out, rows, strict=True):
        valid = num_frames(len(clip), cfg)
        alone = one(clip, cfg)
        np.testing.assert_allclose(row[:valid], alone[:valid], rtol=1e-5, atol=tolerance)
        if cfg.fixed_samples is None:
            assert len(alone) == valid
            padding = cfg.normalise(cfg.padding_log_value)
            np.testing.assert_allclose(row[valid:], padding, rtol=1e-6)


@pytest.mark.parametrize("name", ["cacophony", "panns", "panns_16k", "m2d"])
@pytest.mark.parametrize("samples", [1, 2, 159, 160, 161, 1000, 5000])
def test_equals_float64_numpy_at_any_length(name: str, samples: int):
    """If this fails, very short clips (or the last frame of any clip) get wrong features."""
    cfg = FLAVOURS[name]
    clip = np.random.default_rng(samples).uniform(-0.5, 0.5, samples).astype(np.float32)
    expected = reference(clip, cfg)
    tolerance = 5e-4 if cfg.log == "db" else 2e-5
    np.testing.assert_allclose(one(clip, cfg), expected, rtol=1e-6, atol=tolerance)
    audio = jnp.full((1, 6000), 3.0).at[0, :samples].set(clip)
    with_padding = np.asarray(jitted(audio, cfg, length=jnp.array([samples])))[0, : len(expected)]
    np.testing.assert_allclose(with_padding, expected, rtol=1e-6, atol=tolerance)


@pytest.mark.parametrize("name", ["kaldi_fbank", "laion_clap"])
def test_faint_bands_beside_a_loud_tone_are_heard(name: str):
    """If this fails, another program (an export, the official code) hears other faint bands."""
    cfg = FLAVOURS[name]
    seconds = np.arange(cfg.sample_rate // 2) / cfg.sample_rate
    level = 3e-6 if name == "laion_clap" else 3e-5  # just above the floor
    noise = level * np.random.default_rng(7).standard_normal(len(seconds))
    clip = (0.9 * np.sin(2 * np.pi * 130 * seconds) + noise).astype(np.float32)
    ours = one(clip, cfg)
    if name == "laion_clap":
        expected, tolerance = reference(clip, cfg), 5e-3  # dB; plain sums in float32 give 0.5
    else:
        expected, tolerance = kaldi_reference(clip, cfg), 4e-5  # plain sums: 2e-4
    np.testing.assert_allclose(ours, expected, atol=tolerance)


def kaldi_reference(clip: np.ndarray, cfg: LogMelConfig) -> np.ndarray:
    """Float64: mean of clip and frame removed, pre-emphasis, window, NumPy's FFT."""
    clip = clip.astype(np.float64) - clip.mean(dtype=np.float64)
    bank = mel.mel_filter_bank(
        sample_rate=16000,
        fft_length=512,
        num_mels=128,
        fmin=20.0,
        fmax=8000.0,
        scale="htk",
        shape="mel",
        norm=None,
    )
    rows = []
    for start in range(0, len(clip) - 399, 160):
        frame = clip[start : start + 400] - clip[start : start + 400].mean()
        frame = frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])
        rows.append(np.abs(np.fft.rfft(frame * np.hanning(400), 512)) ** 2 @ bank)
    return (np.log(np.maximum(rows, cfg.floor)) - cfg.mean) / (cfg.std * cfg.std_multiple)


def test_window_in_the_middle_of_a_longer_fft():
    """If this fails, a librosa-style front end with window < FFT is shifted in time."""
    cfg = dataclasses.replace(
        FLAVOURS["m2d"], fft_length=512, window_position="centre", window_length=300
    )
    clip = np.random.default_rng(2).uniform(-0.5, 0.5, 3000).astype(np.float32)
    np.testing.assert_allclose(one(clip, cfg), reference(clip, cfg), atol=2e-5)


@pytest.mark.parametrize("window_length", [399, 400])
@pytest.mark.parametrize("window", ["hann_periodic", "hann_symmetric"])
def test_folded_dft_equals_the_plain_one(window: str, window_length: int):
    """If this fails, the halved DFT is wrong for windows of even or odd length."""
    cfg = LogMelConfig(window=window, window_length=window_length)
    clip = np.random.default_rng(3).uniform(-0.5, 0.5, 2000)
    n, period = np.arange(window_length), window_length - (window == "hann_symmetric")
    taper = 0.5 - 0.5 * np.cos(2 * np.pi * n / period)
    bank = mel.mel_filter_bank(
        sample_rate=16000,
        fft_length=512,
        num_mels=128,
        fmin=0,
        fmax=8000,
        scale="htk",
        shape="mel",
        norm=None,
    )
    padded_clip = np.pad(clip.astype(np.float32).astype(np.float64), (0, 512))
    frames = [padded_clip[t * 160 : t * 160 + window_length] * taper for t in range(13)]
    expected = np.log(np.abs(np.fft.rfft(frames, 512)) @ bank + 1e-5) * 0.2 + 0.9
    np.testing.assert_allclose(one(clip, cfg), expected, atol=2e-5)


def test_time_chunks_give_the_same_result(monkeypatch: pytest.MonkeyPatch):
    """If this fails, large batches on CPU get other features than small ones."""
    cfg = FLAVOURS["cacophony"]
    audio = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, (3, 16111)), jnp.float32)
    whole = jitted(audio, cfg)
    for frames in (30, 70, 100):
        monkeypatch.setattr(frontend, "_CPU_FRAMES_AT_ONCE", frames)
        in_chunks = jax.jit(lambda a: log_mel(a, cfg))(audio)
        np.testing.assert_allclose(in_chunks, whole, atol=1e-5)


def test_large_batches_cost_no_more_a_clip():
    """A pod would compute frames that no clip has: 16 times too many for 65,536 clips."""

    def operations(rows: int) -> float:
        clips = jax.ShapeDtypeStruct((rows, 160_000), jnp.float32)
        jaxpr = jax.make_jaxpr(lambda audio: log_mel(audio, FLAVOURS["kaldi_fbank"]))(clips)
        return flops.count(jaxpr) / rows

    assert operations(65_536) <= 1.05 * operations(64)  # chunks of a CPU end in a shorter one


@pytest.mark.parametrize("name", FLAVOURS)
def test_num_frames_on_ints_and_arrays(name: str):
    """If this fails, masks disagree with the spectrogram about which frames are valid."""
    cfg = FLAVOURS[name]
    lengths = np.array([1, 159, 160, 161, 399, 400, 401, 16000, 79999])
    as_ints = [num_frames(int(n), cfg) for n in lengths]
    np.testing.assert_array_equal(num_frames(lengths, cfg), as_ints)
    np.testing.assert_array_equal(jax.jit(lambda n: num_frames(n, cfg))(lengths), as_ints)
    assert isinstance(as_ints[0], int)
    assert min(as_ints) >= 0


def test_all_matmuls_run_at_full_precision():
    """If this fails, TPUs and GPUs compute the spectrogram in bfloat16 / TF32."""
    for cfg in FLAVOURS.values():
        audio = jax.ShapeDtypeStruct((2, cfg.sample_rate), jnp.float32)
        text = str(jax.make_jaxpr(lambda a, cfg=cfg: log_mel(a, cfg))(audio))
        products = text.split("dot_general[")[1:]
        assert len(products) >= 3
        for product in products:
            settings = product.split("preferred_element_type")[0]
            assert "HIGHEST" in settings, settings


def test_output_is_float32_whatever_comes_in():
    """If this fails, bfloat16 models get spectrograms with three digits."""
    audio = jnp.zeros((1, 4000), jnp.bfloat16)
    for cfg in FLAVOURS.values():
        assert jax.eval_shape(lambda a, cfg=cfg: log_mel(a, cfg), audio).dtype == jnp.float32


def test_silence_and_its_gradient_are_finite():
    """If this fails, a silent clip turns the loss (or an input gradient) into NaN."""
    for name in ("cacophony", "kaldi_fbank", "panns", "m2d"):
        cfg = FLAVOURS[name]
        audio = jnp.zeros((1, 2000))
        value, grad = jax.jit(jax.value_and_grad(lambda a, cfg=cfg: log_mel(a, cfg).sum()))(audio)
        assert np.isfinite(value), name
        assert np.isfinite(grad).all(), name


def test_dynamic_range_ignores_other_rows_and_padding():
    """If this fails, top_db clipping of a quiet clip follows a loud neighbour."""
    cfg = dataclasses.replace(FLAVOURS["panns"], dynamic_range=30.0)
    rng = np.random.default_rng(5)
    quiet = rng.standard_normal(6000) * 1e-3 * np.linspace(0, 1, 6000) ** 4
    loud = rng.standard_normal(9000)
    audio, length = padded([quiet, loud], 50.0)
    out = np.asarray(jitted(audio, cfg, length=length))
    valid = num_frames(6000, cfg)
    np.testing.assert_allclose(out[0, :valid], one(quiet, cfg), atol=1e-3)
    assert np.ptp(out[0, :valid]) == pytest.approx(30.0, abs=1e-3)


def test_int16_round_trip():
    """If this fails, `quantise_int16` does not do what LAION-CLAP's loader does."""
    cfg = dataclasses.replace(FLAVOURS["laion_clap"], quantise_int16=True)
    clip = np.random.default_rng(6).uniform(-1.2, 1.2, 5000).astype(np.float32)
    quantised = (np.clip(clip, -1, 1) * 32767.0).astype(np.int16) / np.float32(32767)
    np.testing.assert_allclose(one(clip, cfg), one(quantised, FLAVOURS["laion_clap"]), atol=1e-3)


def test_pcm_scale():
    """If this fails, clips in training and in `embed` differ in level."""
    pcm = jnp.asarray([[-32768, -32767, 0, 32767]], jnp.int16)
    np.testing.assert_allclose(pcm_to_float(pcm), [[-32768 / 32767, -1, 0, 1]], rtol=1e-6)


def test_wrong_input_is_refused_with_the_remedy():
    """If this fails, integer samples or wrong shapes give a plausible but wrong spectrogram."""
    cfg = FLAVOURS["cacophony"]
    with pytest.raises(TypeError, match="pcm_to_float"):
        log_mel(jnp.zeros((1, 400), jnp.int16), cfg)
    with pytest.raises(ValueError, match=r"\[B, S\]"):
        log_mel(jnp.zeros(400), cfg)
    with pytest.raises(ValueError, match="pad the batch"):
        log_mel(jnp.zeros((1, 399)), FLAVOURS["kaldi_fbank"])


@pytest.mark.parametrize(
    "fields",
    [
        {"window": "hamming"},
        {"framing": "centre"},
        {"power": 3},
        {"hop_length": 0},
        {"fft_length": 256},
        {"fmin": 9000.0},
        {"log": "log2"},
        {"drop_last_frame": True},
        {"std": 0.0},
    ],
)
def test_bad_config_names_the_field(fields: dict):
    """If this fails, a typo in a config trains silently on another front end."""
    with pytest.raises(ValueError, match=next(iter(fields))):
        LogMelConfig(**fields)


def test_a_sharded_batch_stays_on_its_devices():
    """If this fails, every device of a pod computes (or fetches) the whole batch's spectrograms."""
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from alm_jax.audio.frontend import FLAVOURS, log_mel
rows = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
for name in ("cacophony", "panns"):
    cfg = FLAVOURS[name]
    step = jax.jit(lambda a, n: log_mel(a, cfg, length=n), in_shardings=(rows, rows),
                   out_shardings=rows)
    text = step.lower(jax.ShapeDtypeStruct((64, 2 * cfg.sample_rate), jnp.float32),
                      jax.ShapeDtypeStruct((64,), jnp.int32)).compile().as_text()
    assert "while(" in text, "expected the chunked path"
    for word in ("all-gather", "all-to-all", "all-reduce", "collective-permute"):
        assert word not in text, (name, word)
"""
    env = dict(
        os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=4", JAX_PLATFORMS="cpu"
    )
    root = pathlib.Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], env=env, cwd=root, check=True, timeout=300)


def test_short_clips_are_repeated_whole():
    """A short sound would reach HTSAT cut in the middle, or followed by another clip's samples."""
    plain = dataclasses.replace(FLAVOURS["panns_16k"], fmin=50.0)
    repeating = dataclasses.replace(plain, repeat_to_samples=4000)

    def same_power(a, b):
        # In dB, bins near silence are float32 rounding of their frame.
        np.testing.assert_allclose(10 ** (a / 10), 10 ** (b / 10), rtol=2e-4, atol=1e-9)

    lengths = np.array([1, 7, 1999, 2000, 3999, 4000, 4600])
    audio = np.random.default_rng(0).standard_normal((len(lengths), 5000)).astype(np.float32) * 0.1
    ours = np.asarray(log_mel(jnp.asarray(audio), repeating, length=jnp.asarray(lengths)))
    for row, length in enumerate(lengths):
        clip = audio[row, :length]
        if length < 4000:
            clip = np.pad(np.tile(clip, 4000 // length), (0, 4000 % length))
        want = np.asarray(log_mel(jnp.asarray(clip)[None], plain))[0]
        frames = num_frames(int(length), repeating)
        assert frames == len(want)
        same_power(ours[row, :frames], want)
    alone = log_mel(jnp.asarray(audio[1:2, :7]), repeating)
    assert alone.shape[1] == output_frames(7, repeating) == num_frames(7, repeating)
    same_power(np.asarray(alone[0]), ours[1, : alone.shape[1]])
