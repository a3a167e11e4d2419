"""From rows to a dataset: what is rejected, what a second run does, what training and tools see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from alm_jax import cli
from alm_jax.errors import UserError
from alm_jax.evaluators.clips import Clips
from alm_jax.evaluators.suite import caption_results, retrieval_results
from input_pipeline import audio_files, cleaning, parts, plan, prepare
from input_pipeline.cleaning import Limits, check_pcm, clean_captions, find_duplicates
from input_pipeline.examples import Example, Settings, examples, label_text
from input_pipeline.formats.rows import Row
from input_pipeline.loader import train_loader
from input_pipeline.sources import open_source
from input_pipeline.text import Tokenizer
from tests.input_pipeline.own_data import (
    RATE,
    read,
    rejected,
    stored,
    write_sound,
    write_text,
)
from tests.input_pipeline.own_data import prepare as build

Sounds = list[np.ndarray]


def _corpus(root: Path, sounds: Sounds, captions: int = 1) -> list[str]:
    """A folder with a table, every clip with several captions."""
    names = [f"{number:02d}.wav" for number in range(len(sounds))]
    lines = ["file,caption"]
    for name, pcm in zip(names, sounds, strict=True):
        write_sound(root / name, pcm)
        lines += [f"{name},caption {k} of {name}" for k in range(captions)]
    write_text(root / "captions.csv", "\n".join(lines))
    return names


# Cleaning -----------------------------------------------------------------------------------------


def test_every_reason(sounds: Sounds, tmp_path: Path) -> None:
    """What is kept out must be counted and named, each clip with the right reason."""
    root = tmp_path / "in"
    noise = np.random.default_rng(0).normal(0, 9, RATE)
    odd: dict[str, tuple[np.ndarray, str]] = {
        "short.wav": (sounds[0][:1000], "too_short"),
        "long.wav": (np.tile(sounds[1], 20)[: 7 * RATE], "too_long"),
        "zero.wav": (np.zeros(RATE, np.int16), "silent"),
        "step.wav": (np.tile(np.array([0, 7], np.int16), RATE // 2), "silent"),
        "clipped.wav": (np.rint(np.clip(noise, -1, 1) * 32767).astype(np.int16), "clipped"),
        "twin.wav": (sounds[2], "duplicate"),
        "dots.wav": (sounds[3], "no_caption"),
    }
    names = _corpus(root, sounds)
    lines = ["file,caption"]
    for name, (pcm, _) in odd.items():
        write_sound(root / name, pcm)
        lines.append(f"{name},{' ... ' if name == 'dots.wav' else 'x'}")
    (root / "text.wav").write_text("This is not audio. " * 50)
    (root / "empty.wav").touch()
    write_text(root / "odd.csv", "\n".join([*lines, "text.wav,x", "empty.wav,x", "gone.wav,x"]))
    with pytest.raises(UserError, match=r"10 of 22 rows \(45%\) were rejected, more than --max-re"):
        build(root, tmp_path / "out", split="train", limits=Limits(max_seconds=6.0))
    limits = Limits(max_seconds=6.0, max_rejected=0.5)
    folder = build(root, tmp_path / "out", split="train", limits=limits)
    assert rejected(folder) == {name: reason for name, (_, reason) in odd.items()} | {
        "text.wav": "not_audio",
        "empty.wav": "empty",
        "gone.wav": "missing",
    }
    assert set(read(folder)) == set(names)
    report = json.loads((folder / "prepare_report.json").read_text())
    assert report["rejected_by_reason"] == Counter(rejected(folder).values())
    assert report["rows"] == 22 and report["splits"]["train"]["examples"] == 12
    assert report["splits"]["train"]["rejected"] == report["rejected_by_reason"]


def test_limits_are_what_they_say() -> None:
    """A limit that is off by a factor would silently take half of a corpus away."""
    rng = np.random.default_rng(1)
    clip = rng.integers(-3000, 3000, RATE).astype(np.int16)
    limits = Limits(min_seconds=0.5, max_seconds=2.0, silence_db=-40.0, max_clipped=0.25)
    assert check_pcm(clip, RATE, limits) is None
    reasons = [
        check_pcm(pcm, RATE, limits)
        for pcm in (
            clip[: RATE // 2 - 1],
            np.tile(clip, 3),
            (clip // 3000 * 326).astype(np.int16),  # peak 326 of 32767 is -40.04 dB
            np.where(np.arange(RATE) % 3 == 0, -32768, clip).astype(np.int16),
        )
    ]
    assert [reason and reason[0] for reason in reasons] == [
        *("too_short", "too_long", "silent", "clipped")
    ]
    assert check_pcm(np.array([-328] * RATE, np.int16), RATE, limits) is None
    assert check_pcm(clip[: RATE // 2], RATE, limits) is None
    # By default the project's own threshold of silence.
    quiet = np.full(RATE, 8, np.int16)
    assert audio_files.is_silent(quiet) == (check_pcm(quiet, RATE, Limits()) is not None)


def test_captions_are_tidied() -> None:
    """Line breaks and empty captions would become tokens."""
    assert clean_captions(["  a\n dog\t barks ", "", " . ", "犬が吠える"]) == (
        *("a dog barks", "犬が吠える"),
    )
    assert label_text(["Electric_guitar"]) == "electric guitar"
    assert label_text(["Dog", "Rain", "Wind_noise"]) == "dog, rain and wind noise"


def test_duplicates_leave_training_first() -> None:
    """A training clip that is also in the test split inflates every score."""
    clips = [*zip("abcde", "12314", [2] * 5, strict=True)]  # training
    clips += [*zip("xyz", "255", [0] * 3, strict=True), ("v", "5", 1), ("w", "4", 1)]
    names, digests, ranks = (list(column) for column in zip(*clips, strict=True))
    hashes = np.frombuffer(b"".join(bytes.fromhex(d.zfill(32)) for d in digests), np.uint8)
    hashes, rank = hashes.reshape(-1, 16), np.array(ranks)
    gone, kept = find_duplicates(hashes, rank, np.zeros(10, bool))
    found = {names[one]: names[other] for one, other in zip(gone, kept, strict=True)}
    assert found == {"b": "x", "d": "a", "e": "w", "z": "y", "v": "y"}
    gone, kept = find_duplicates(hashes, rank, rank == 0)
    assert [names[one] for one in gone] == ["b", "d", "e", "v"]
    assert len(find_duplicates(hashes[:0], rank[:0], rank[:0] == 0)[0]) == 0


def test_examples_is_pure(sounds: Sounds, tmp_path: Path) -> None:
    """An engine maps it over rows anywhere: rows in any order give the same examples."""
    rows = [
        Row(str(n), write_sound(tmp_path / f"{n}.flac", sounds[n]), (f"c{n}",)) for n in range(4)
    ]
    rows.append(Row("bytes", (tmp_path / "0.flac").read_bytes(), ("from memory",)))
    rows.append(Row("gone", None, ("x",), problem="not there"))
    forth = list(examples(rows, Settings()))
    back = list(examples(rows[::-1], Settings()))[::-1]
    for one, other in zip(forth, back, strict=True):
        if isinstance(one, Example):
            assert isinstance(other, Example)
            assert (one.split, one.digest) == (other.split, other.digest)
    assert forth[0].digest == forth[4].digest  # the same PCM from a file and from memory
    assert str(forth[5]) == "not there (missing)"
    seconds = len(sounds[0]) / RATE
    spans = {(1.0, 0.5): "bad_span", (0.0, 3 * seconds): "bad_span", (9.0, 10.0): "empty"}
    for (start, end), reason in spans.items():
        row = Row("e", rows[0].audio, ("x",), start=start, end=end)
        (outcome,) = examples([row], Settings())
        assert isinstance(outcome, cleaning.Rejected) and outcome.reason == reason
    # Tables often round ends up.
    (outcome,) = examples([Row("e", rows[0].audio, ("x",), end=1.5 * seconds)], Settings())
    assert isinstance(outcome, Example)


# Building -----------------------------------------------------------------------------------------


def test_second_run_and_changed_input(sounds: Sounds, tmp_path: Path, capsys) -> None:
    """A finished dataset costs nothing; one of other data is never silently taken or replaced."""
    root, out = tmp_path / "in", tmp_path / "out"
    _corpus(root, sounds[:3])
    folder = build(root, out)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    assert build(root, out) == folder and "is ready" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert sorted(os.listdir(out)) == [".lock", "1.0.0"]
    with pytest.raises(UserError, match=r"made from other input or with other settings: choose"):
        build(root, out, sample_rate=8000)
    write_sound(root / "00.wav", sounds[5])
    with pytest.raises(UserError, match=r"made from other input"):
        build(root, out)


def test_stopped_build_goes_on(
    sounds: Sounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of decoding must not be lost to a power cut; nor a mended file be overlooked."""
    monkeypatch.setattr(plan, "_ROWS_PER_PART", 2)
    root, out = tmp_path / "in", tmp_path / "out"
    names = _corpus(root, [*sounds[:5], sounds[0]])
    decoded: list[str] = []
    original = audio_files.stream_audio

    def counting(source, **options):
        decoded.append(Path(source).name)
        if len(decoded) == 4:
            raise KeyboardInterrupt
        return original(source, **options)

    monkeypatch.setattr(audio_files, "stream_audio", counting)
    with pytest.raises(KeyboardInterrupt):
        build(root, out)
    assert decoded == names[:4]  # part 1 is done, part 2 was under way
    monkeypatch.setattr(
        audio_files, "stream_audio", lambda *a, **k: decoded.append("") or original(*a, **k)
    )
    decoded.clear()
    with pytest.raises(UserError, match=r"1 of 6 rows \(17%\).*1 duplicate"):
        build(root, out)
    assert len(decoded) == 4
    decoded.clear()
    write_sound(root / names[5], sounds[6])
    folder = build(root, out)
    assert len(decoded) == 2  # only the part with the mended file
    assert set(read(folder)) == set(names) and not (out / ".work").exists()


@pytest.mark.parametrize("captions", [("a dog", "Hündin 犬"), ()])
def test_records_are_those_of_tfds(sounds: Sounds, tmp_path: Path, captions: tuple) -> None:
    """A record that TFDS would have written differently is one that other tools cannot read."""
    path = write_sound(tmp_path / "a.wav", sounds[0])
    row = Row("a", path, captions, labels=captions[:1], fold=3, licence="CC0")
    settings = Settings(limits=Limits(needs_caption=False))
    (example,) = examples([row], settings)
    assert isinstance(example, Example)
    features = tfds.features.FeaturesDict(parts.FEATURES)
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    theirs = serializer.serialize_example(features.encode_example(example.features))
    message = tf_example_pb2.Example.FromString
    assert message(parts.encode(example)) == message(theirs)


def test_duplicates_in_different_parts(
    sounds: Sounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts know nothing of each other; the clip must leave its shard without moving the rest."""
    monkeypatch.setattr(plan, "_ROWS_PER_PART", 3)
    clips = [*sounds[:5], sounds[1], sounds[5], sounds[0]]
    names = _corpus(tmp_path / "in", clips)
    kept = build(
        *(tmp_path / "in", tmp_path / "kept"), split="train", limits=Limits(keep_duplicates=True)
    )
    assert len(read(kept)) == 8
    folder = build(
        *(tmp_path / "in", tmp_path / "out"), split="train", limits=Limits(max_rejected=0.5)
    )
    assert rejected(folder) == {names[5]: "duplicate", names[7]: "duplicate"}
    found = [example["id"] for example in open_source(folder, "train")]
    assert found == [*names[:5], names[6]]
    for name, example in read(folder).items():
        assert np.array_equal(example["audio"], stored(clips[names.index(name)]))
    builder = tfds.builder_from_directory(folder)  # TFDS itself agrees with us
    assert builder.info.splits["train"].num_examples == 6
    example = builder.as_data_source("train")[5]
    assert example["id"].decode() == names[6]
    assert [text.decode() for text in example["text"]] == [f"caption 0 of {names[6]}"]
    np.testing.assert_array_equal(example["audio"], stored(sounds[5]))


def test_other_rates(sounds: Sounds, tmp_path: Path) -> None:
    """Models at 32 and 48 kHz need data at their rate, and the loader must know it."""
    stereo = np.stack([sounds[0], sounds[0]], 1)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/a.flac", stereo, 16000)
    write_text(tmp_path / "in/t.csv", "file,caption\na.flac,x\n")
    folder = build(tmp_path / "in", tmp_path / "out", sample_rate=32000, split="train")
    source = open_source(folder, "train")
    assert source.sample_rate == 32000
    assert abs(len(source[0]["audio"]) - 2 * len(sounds[0])) <= 1
    reference = stored(sounds[0]).astype(float)
    again = source[0]["audio"][::2][: len(reference)].astype(float)
    assert np.corrcoef(reference[: len(again)], again)[0, 1] > 0.99


def test_training_draws_a_caption_and_evaluation_has_all(sounds: Sounds, tmp_path: Path) -> None:
    """Five captions a clip are five descriptions to learn from, not one and four lost."""
    _corpus(tmp_path / "in", sounds[:4], captions=5)
    folder = build(tmp_path / "in", tmp_path / "out", split="train")
    source = open_source(tmp_path / "out", "train")
    captions = list(source.captions())
    assert len(captions) == 20 and len(set(captions)) == 20
    tokenizer = Tokenizer.train(captions * 3, 280)
    config = {"dir": str(folder), "batch_size": 4, "max_seconds": 1.0, "max_text_length": 40}
    seen = set()
    with train_loader(config, tokenizer, seed=0) as loader:
        for _ in range(40):
            batch = next(loader)
            seen |= {
                tuple(row[mask].tolist())
                for row, mask in zip(batch["text"], batch["text_mask"], strict=True)
            }
    assert len(seen) == 20


def test_evaluation_takes_all_captions(sounds: Sounds, tmp_path: Path) -> None:
    """Retrieval on Clotho counts each of five captions; scored on the first alone it is another."""
    root = tmp_path / "in"
    names = _corpus(root, sounds[:4], captions=3)
    with (root / "captions.csv").open("a") as file:
        file.write(f"\n{names[0]},a fourth one")
    build(root, tmp_path / "out", split="test")
    clips = Clips.read(tmp_path / "out", "test")
    assert [len(texts) for texts in clips.references] == [4, 3, 3, 3]
    assert clips.caption_of_clip.shape == (4, 4) and len(clips.captions) == 13
    assert clips.column("text").tolist() == [f"caption 0 of {name}" for name in names]
    assert clips.caption(2) == "caption 0 of 02.wav" and clips.column("fold").tolist() == [0] * 4
    # A model that knows what belongs together, but for the fourth caption.
    audio = np.eye(4, dtype=np.float32)
    text = np.zeros((13, 4), np.float32)
    for clip, captions in enumerate(clips.caption_of_clip):
        text[captions[captions >= 0], clip] = 1
    text[clips.captions.index("a fourth one")] = [0, 1, 0, 0]
    rows = retrieval_results(audio, text, clips)
    assert rows["eval/retrieval/text_to_audio/R@1"]["value"] == pytest.approx(12 / 13)
    assert rows["eval/retrieval/text_to_audio/R@1"]["n_queries"] == 13
    assert rows["eval/retrieval/audio_to_text/R@1"]["value"] == 0.75  # a tie counts against it
    captions = caption_results([texts[-1] for texts in clips.references], clips)
    assert captions["eval/captions/BLEU-4"]["value"] == pytest.approx(1.0)


@pytest.mark.slow
def test_command_line(sounds: Sounds, tmp_path: Path) -> None:
    """The documented command in a process of its own, with workers; tars keep their order."""
    root = tmp_path / "Sammlung ü"
    for number in range(3):
        with tarfile.open(_made(root / f"{number}.tar"), "w") as tar:
            for name in (f"{number}.flac", f"{number}.txt"):
                path = tmp_path / "files" / name
                if path.suffix == ".flac":
                    write_sound(path, sounds[number])
                else:
                    write_text(path, f"caption {number}")
                tar.add(path, name)
    command = [sys.executable, "-m", "input_pipeline.prepare", f"--input={root}", "--workers=2"]
    command += [f"--output={tmp_path / 'my data'}", "--split=train", "--min-seconds=0.2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "my data/1.0.0"
    assert done.stdout.splitlines()[-1] == str(folder)
    assert "format webdataset (tars of audio and JSON" in done.stdout
    assert "because there are 3 tars, the first 0.tar" in done.stdout
    assert "train: 3 clips, 3 captions, 0.00 h" in done.stdout
    source = open_source(folder, "train")
    assert [example["id"] for example in source] == ["0/0", "1/1", "2/2"]
    assert list(source.captions()) == ["caption 0", "caption 1", "caption 2"]


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_flags(sounds: Sounds, tmp_path: Path, capsys) -> None:
    """What was guessed is said; a wrong flag names the remedy."""
    root = tmp_path / "in"
    _corpus(root, sounds[:6])
    base = [f"--input={root}", f"--output={tmp_path / 'out'}", "--workers=0"]
    for arguments, message in (
        ([f"--input={root}"], "--output=DIR is missing"),
        ([*base, "--tier=tiny"], "--tier belongs to OpenSounds"),
        ([*base, "--test=2"], "not shares"),
        ([*base, "--sample-rate=16"], "1000 to 192000 Hz"),
        ([*base, f"--input={root / 'no'}"], "no such file or folder"),
        ([*base, "--caption-column=captoin"], "mean 'caption'?"),
    ):
        assert cli.run(prepare.main, arguments) == 2
        assert message in capsys.readouterr().err
    assert cli.run(prepare.main, [*base, "--caption-column=caption", "--split=train"]) == 0
    said = capsys.readouterr().out
    assert "format table (a folder of audio with" in said
    assert "because there is the table captions.csv" in said
    assert "captions.csv: audio=file, captions=caption" in said
