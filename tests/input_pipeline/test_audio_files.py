"""Audio file reading: real recordings, and odd files made from them."""

from __future__ import annotations

import io
import os
import sys
import tracemalloc
from math import gcd
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from input_pipeline import audio_files
from input_pipeline.audio_files import AudioError, read_audio
from input_pipeline.opensounds import archives, fetch, index

RATE = 16000
LAVA = "usr/share/games/minetest/games/minetest_game/mods/env_sounds/sounds/env_sounds_lava.1.ogg"
UNDECODABLE = (
    "drums/kick04",
    "effects/scratch01",
    "effects/wind_chimes01",
    "instruments/harpsichord01",
    "misc/hit01",
)


def _members(folder: Path, package: str, names: list[str]) -> dict[str, bytes]:
    archive = fetch.find_package(folder, index.PACKAGES[package])
    assert archive is not None
    return dict(archives.read_members(archive, names))


@pytest.fixture(scope="module")
def ogg(tiny_packages: Path) -> bytes:
    """A real recording: 7.8 s of lava, 22,050 Hz, mono, Vorbis."""
    return _members(tiny_packages, "minetest-data", [LAVA])[LAVA]


@pytest.fixture(scope="module")
def clip(ogg: bytes) -> np.ndarray:
    """Two seconds of it at its own rate, float64 [S] of 22,050 Hz, peak 0.5."""
    data, rate = soundfile.read(io.BytesIO(ogg))
    assert rate == 22050
    return data[: 2 * rate] / np.abs(data[: 2 * rate]).max() * 0.5


def _at_rate(clip: np.ndarray, rate: int) -> np.ndarray:
    """The clip at another rate, by an independent resampler."""
    common = gcd(rate, 22050)
    return resample_poly(clip, rate // common, 22050 // common)


def _write(path: Path, data: np.ndarray, rate: int = RATE, **options: str) -> Path:
    soundfile.write(path, data, rate, **options)
    return path


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    size = min(len(a), len(b))
    return float(np.corrcoef(a[:size], b[:size])[0, 1])


@pytest.mark.parametrize("rate", [5000, 8012, 11127, 16000, 22254, 44100, 96000, 192000])
def test_any_sample_rate_becomes_16_khz(tmp_path: Path, clip: np.ndarray, rate: int) -> None:
    """A recording at an odd rate would play at the wrong pitch or end early."""
    path = _write(tmp_path / "clip.wav", _at_rate(clip, rate), rate, subtype="FLOAT")
    audio = read_audio(path)
    assert audio.dtype == np.float32 and audio.ndim == 1
    assert abs(len(audio) - 2 * RATE) <= 2
    # What a file at a low rate cannot hold is not asked for.
    low = _at_rate(clip, rate) if rate < RATE else clip
    common = gcd(RATE, rate if rate < RATE else 22050)
    reference = resample_poly(low, RATE // common, (rate if rate < RATE else 22050) // common)
    assert _similarity(audio, reference) > 0.995


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8])
def test_channels_are_averaged(tmp_path: Path, clip: np.ndarray, channels: int) -> None:
    """Surround files would lose all but their first channels."""
    gains = np.linspace(0.2, 1.0, channels)
    path = _write(tmp_path / "clip.wav", clip[:, None] * gains, 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(path), clip * gains.mean(), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "floor"),
    [
        ("u8.wav", {"subtype": "PCM_U8"}, 0.99),
        ("adpcm.wav", {"subtype": "MS_ADPCM"}, 0.99),
        ("24.WAV", {"subtype": "PCM_24"}, 0.99999),
        ("float.wav", {"subtype": "FLOAT"}, 0.99999),
        ("really_aiff.wav", {"format": "AIFF"}, 0.99999),
        ("clip.flac", {}, 0.99999),
        ("clip.ogg", {"format": "OGG", "subtype": "VORBIS"}, 0.95),
        ("clip.opus", {"format": "OGG", "subtype": "OPUS"}, 0.9),
        ("clip.mp3", {"format": "MP3"}, 0.0),
    ],
)
def test_formats(tmp_path: Path, clip: np.ndarray, name: str, options: dict, floor: float) -> None:
    """A person's folder holds all of these; each must come out as the same sound."""
    path = _write(tmp_path / name, clip, RATE, **options)
    audio = read_audio(path)
    assert abs(len(audio) - len(clip)) <= 0.1 * RATE
    assert floor == 0.0 or _similarity(audio, clip) > floor
    np.testing.assert_array_equal(audio, read_audio(path.read_bytes()))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"this is a letter, not a sound\n" * 99, "not_audio"),
        (b"RIFF\xff\xff\xff\x7fWAVEfmt \x03\x00\x00\x00abc", "not_audio"),
        (bytes(range(256)) * 64, "not_audio"),
    ],
)
def test_not_audio(tmp_path: Path, content: bytes, reason: str) -> None:
    """One stray file in a folder must give one clear message, naming the file."""
    for name in ("stray.wav", "stray.raw", "stray"):
        path = tmp_path / name
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(AudioError) as caught:
                read_audio(source, name=str(path))
            assert caught.value.reason == reason
            assert str(path) in str(caught.value)


def test_malformed_files_of_a_real_package(tiny_packages: Path) -> None:
    """Five files that ship in lmms-common are broken; they must be refused, not crash."""
    names = [f"usr/share/lmms/samples/{name}.ogg" for name in UNDECODABLE]
    members = _members(tiny_packages, "lmms-common", names)
    assert sorted(members) == sorted(names)
    for name, data in members.items():
        with pytest.raises(AudioError, match=name) as caught:
            read_audio(data, name=name)
        assert caught.value.reason == "not_audio"
        assert "BytesIO" not in caught.value.detail


def test_missing_folder_and_unreadable(tmp_path: Path, clip: np.ndarray) -> None:
    """A mistyped path must not be reported as a broken file, nor a permission as a missing one."""
    loop = tmp_path / "loop.wav"
    loop.symlink_to(loop)
    for path, reason in (
        (tmp_path / "no.wav", "missing"),
        (tmp_path, "unreadable"),
        (loop, "unreadable"),
    ):
        with pytest.raises(AudioError) as caught:
            read_audio(path)
        assert (caught.value.reason, caught.value.path) == (reason, str(path))
    path = _write(tmp_path / "secret.wav", clip)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:  # root may read everything: be nobody for a moment
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(AudioError, match=r"Permission denied \(unreadable\)"):
            read_audio(path)
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_non_finite_samples(tmp_path: Path, clip: np.ndarray, value: float, subtype: str) -> None:
    """One NaN sample would turn a whole batch, then all weights, into NaN."""
    damaged = clip.copy()
    damaged[31234] = value
    path = _write(tmp_path / "clip.wav", damaged, 22050, subtype=subtype)
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert caught.value.reason == "non_finite"
    assert len(read_audio(path, max_seconds=1.0)) == RATE  # the damage is not in the part asked for


@pytest.mark.parametrize("rate", [5000, 16000, 44100, 192000])
@pytest.mark.parametrize("samples", [1, 2, 6])
def test_almost_no_samples(tmp_path: Path, rate: int, samples: int) -> None:
    """A file of one sample resamples to nothing; callers rely on at least one sample."""
    audio = read_audio(_write(tmp_path / "tick.wav", np.full(samples, 0.5), rate))
    assert 1 <= len(audio) <= max(1, -(-samples * RATE // rate) + 1)
    assert np.isfinite(audio).all()


def test_no_samples(tmp_path: Path, clip: np.ndarray) -> None:
    """A header without samples must be called empty, not become an empty array."""
    empty = _write(tmp_path / "empty.wav", np.zeros(0))
    short = _write(tmp_path / "short.wav", clip[:100])
    for path, start in ((empty, 0.0), (short, 5.0)):
        with pytest.raises(AudioError) as caught:
            read_audio(path, start_seconds=start)
        assert caught.value.reason == "empty"


def test_silence(tmp_path: Path, clip: np.ndarray) -> None:
    """Silence is returned as it is, and recognised whether digital or flickering by a step."""
    zeros = read_audio(_write(tmp_path / "zeros.wav", np.zeros(8000)))
    assert zeros.shape == (8000,) and not zeros.any()
    flicker = np.random.default_rng(0).integers(-2, 3, 8000).astype(np.int16)
    for audio in (zeros, flicker, flicker / np.float32(32767), np.zeros(0, np.float32)):
        assert audio_files.is_silent(audio)
    for audio in (clip * 1e-2, audio_files.to_int16(clip * 1e-2), np.array([-32768], np.int16)):
        assert not audio_files.is_silent(audio)


def test_ten_minutes_stay_small(tmp_path: Path, clip: np.ndarray) -> None:
    """A long file must stream: whole and in stereo it would take gigabytes at 192 kHz."""
    path = tmp_path / "long.wav"
    second = np.resize(clip, (44100, 2)).astype(np.float32)
    with soundfile.SoundFile(path, "w", 44100, 2, "PCM_16") as file:
        for _ in range(600):
            file.write(second)
    tracemalloc.start()
    audio = read_audio(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    part = read_audio(path, max_seconds=10, start_seconds=300)
    _, part_peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(audio) == 600 * RATE
    whole = 600 * 44100 * 2 * 4
    assert peak < 2.2 * audio.nbytes < whole
    assert part_peak - audio.nbytes < 20e6
    # A block's border leaves no click, and a part equals the same place of the whole.
    np.testing.assert_allclose(
        part[800:-800], audio[300 * RATE :][: len(part)][800:-800], atol=2e-4
    )


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg"])
def test_start_and_length(tmp_path: Path, clip: np.ndarray, extension: str) -> None:
    """Crops of long recordings must begin and end where they are asked to."""
    path = _write(tmp_path / f"clip.{extension}", clip, 22050)
    whole = read_audio(path)
    part = read_audio(path, start_seconds=0.5, max_seconds=1.0)
    assert len(part) == RATE
    assert _similarity(part[400:-400], whole[RATE // 2 :][:RATE][400:-400]) > 0.99


def test_file_cut_off_in_the_middle(tmp_path: Path, clip: np.ndarray) -> None:
    """An interrupted copy keeps what is there; if nothing is, it says so."""
    for extension in ("wav", "flac", "ogg"):
        whole = _write(tmp_path / f"clip.{extension}", clip, 22050).read_bytes()
        cut = tmp_path / f"cut.{extension}"
        cut.write_bytes(whole[: len(whole) // 2])
        try:
            audio = read_audio(cut)
        except AudioError as error:
            assert error.reason in ("not_audio", "unreadable", "empty")
        else:
            assert 1 <= len(audio) <= 2 * RATE + 2
            assert np.isfinite(audio).all()


def test_names_in_any_script(tmp_path: Path, clip: np.ndarray) -> None:
    """Folders named in Greek, Cyrillic or CJK must work like any other."""
    path = tmp_path / "ήχος вода 音 'a b'"
    path.mkdir()
    path = _write(path / "θάλασσα 海.flac", clip)
    np.testing.assert_allclose(read_audio(path), clip, atol=1e-4)
    assert list(audio_files.find_audio_files(tmp_path)) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems allow no such names")
def test_names_that_are_not_utf8(tmp_path: Path, clip: np.ndarray) -> None:
    """Archives from before Unicode hold names in Latin-1; one must not end a build."""
    path = _write(tmp_path / "clip.wav", clip).rename(os.fsdecode(bytes(tmp_path) + b"/\xe9.wav"))
    np.testing.assert_allclose(read_audio(path), clip, atol=1e-4)


def test_bad_arguments(tmp_path: Path, clip: np.ndarray) -> None:
    """A zero length or rate is the caller's mistake and must name the value."""
    path = _write(tmp_path / "clip.wav", clip)
    for arguments in ({"sample_rate": 0}, {"max_seconds": 0.0}, {"start_seconds": -1.0}):
        with pytest.raises(ValueError, match=str(next(iter(arguments.values())))):
            read_audio(path, **arguments)  # type: ignore[arg-type]


def test_to_int16() -> None:
    """Loud samples must clip, not wrap around to the other sign."""
    audio = np.array([0, 1, -1, 0.5, 1.5, -7, 1 / 32767], np.float32)
    expected = np.array([0, 32767, -32767, 16384, 32767, -32767, 1], np.int16)
    result = audio_files.to_int16(audio)
    assert result.dtype == np.int16
    np.testing.assert_array_equal(result, expected)


def test_find_audio_files(tmp_path: Path) -> None:
    """Search must see every audio file below a folder once, in a stable order."""
    for name in (
        "b/x.WAV",
        "b/a.ogg",
        "a/z.flac",
        "notes.txt",
        ".hidden/y.wav",
        "b/.y.wav",
        "c.opus",
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    found = [str(path.relative_to(tmp_path)) for path in audio_files.find_audio_files(tmp_path)]
    assert found == ["c.opus", "a/z.flac", "b/a.ogg", "b/x.WAV"]
    with pytest.raises(AudioError, match="no such folder"):
        list(audio_files.find_audio_files(tmp_path / "nowhere"))
