"""Datasets, captions and clips mixed in training: shares, generated captions, concatenation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from alm_jax import cli
from alm_jax.errors import UserError
from input_pipeline import prepare as prepare_verb
from input_pipeline.cleaning import Limits
from input_pipeline.concatenate import FORMS, join_audio, join_captions
from input_pipeline.labels import read_labels
from input_pipeline.loader import eval_batches, train_loader
from input_pipeline.loader_config import LoaderConfig
from input_pipeline.sources import open_source
from input_pipeline.text import Tokenizer
from tests.input_pipeline.own_data import prepare as build
from tests.input_pipeline.own_data import read, rejected, write_sound, write_text

ROWS = 8


@pytest.fixture(scope="module")
def config(dataset: Path) -> dict[str, Any]:
    return {
        "dir": str(dataset),
        "batch_size": ROWS,
        "sample_rate": 1000,
        "max_seconds": 1.0,
        "max_text_length": 150,
    }


def _take(count: int, config: dict[str, Any], tokenizer: Tokenizer, **options: Any) -> list[Any]:
    with train_loader(config, tokenizer, seed=3, **options) as loader:
        return list(islice(loader, count))


def _rows(batches: list[Any]) -> list[dict[str, Any]]:
    return [{n: v[row] for n, v in b.items()} for b in batches for row in range(ROWS)]


def test_shares() -> None:
    """A small set of good captions drowns, or is learnt by heart, if shares are not as said."""
    pairs = (("a", 3.0), ("b", 1.0))
    assert LoaderConfig(mixture=pairs).shares([10, 1000]) == [0.75, 0.25]
    # One pass over each dataset in the same number of steps: as one dataset of 1010 clips.
    ones = (("a", 1.0), ("b", 1.0))
    passes = LoaderConfig(mixture=ones, mixture_unit="epochs")
    np.testing.assert_allclose(passes.shares([10, 1000]), [10 / 1010, 1000 / 1010])
    # p ** (1 / T), as for sampling languages in multilingual training (Arivazhagan et al. 2019).
    warm = LoaderConfig(mixture=ones, mixture_unit="epochs", mixture_temperature=2.0)
    roots = np.sqrt([10, 1000])
    np.testing.assert_allclose(warm.shares([10, 1000]), roots / roots.sum())


def test_mixture_by_epochs(
    config: dict[str, Any],
    tokenizer: Tokenizer,
    write: Callable[..., Path],
    make_example: Any,
    tmp_path: Path,
) -> None:
    """With weights of 1 epoch every clip of every source comes equally often; evaluation stays."""
    other = write(tmp_path, {"train": [make_example(i, 70) for i in range(5)]})
    mixture = ((config["dir"], 1.0), (str(other), 2.0))
    mixed = {**config, "mixture": mixture, "mixture_unit": "epochs"}
    seen = Counter(row["example_id"] for row in _rows(_take(47, mixed, tokenizer)))  # 8 epochs
    counts = np.array([seen[index] for index in range(42)])
    assert counts[:37].min() >= 7 and counts[:37].max() <= 9
    assert counts[37:].min() >= 15 and counts[37:].max() <= 17
    ids = [b["example_id"] for b in eval_batches(mixed, tokenizer, "test", ROWS)]
    assert sorted(i for i in np.concatenate(ids).tolist() if i >= 0) == list(range(11))


def test_generated_captions(
    config: dict[str, Any],
    tokenizer: Tokenizer,
    write: Callable[..., Path],
    make_example: Any,
    tmp_path: Path,
) -> None:
    """Cacophony's synthetic_prob: too rare or too frequent, and the captions' style is another."""
    examples = [
        make_example(i, 50, text_generated=[f"the dog number {i}"] if i % 2 else [])
        for i in range(20)
    ]
    feature = tfds.features.Sequence(tfds.features.Text())
    made = write(tmp_path, {"train": examples}, text_generated=feature)
    plain = _rows(_take(50, {**config, "dir": str(made)}, tokenizer))
    mixed = _rows(_take(50, {**config, "dir": str(made), "generated_probability": 0.8}, tokenizer))
    source = open_source(made, "train")
    written = 0
    for one, other in zip(plain, mixed, strict=True):
        index = one["example_id"]
        own = source[index]["text"]
        assert tokenizer.decode(one["text"]) == own
        text = tokenizer.decode(other["text"])
        assert text in (own, *source[index]["text_generated"])
        assert text == own or source[index]["text_generated"]
        written += text != own
        assert one["audio"].tobytes() == other["audio"].tobytes()  # nothing else has changed
    both = sum(bool(source[row["example_id"]]["text_generated"]) for row in mixed)
    assert abs(written / both - 0.8) < 0.12
    # The quickstart's dataset has no such feature.
    same = _rows(_take(3, {**config, "generated_probability": 1.0}, tokenizer))
    assert [row["text"].tobytes() for row in same] == [
        row["text"].tobytes() for row in _rows(_take(3, config, tokenizer))
    ]


def test_concatenation(config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """A model learns order only if the caption's order is that of the sounds."""
    joined = {**config, "concat_probability": 0.5}
    batches = _take(12, joined, tokenizer)
    plain = _rows(_take(12, config, tokenizer))
    source = open_source(config["dir"], "train")
    by_caption = {example["text"]: example for example in source}
    orders = Counter()
    for row, alone in zip(_rows(batches), plain, strict=True):
        text, own = tokenizer.decode(row["text"]), source[row["example_id"]]["text"]
        assert row["example_id"] == alone["example_id"]
        if text == own:
            assert row["audio"].tobytes() == alone["audio"].tobytes()
            continue
        (form, second), *others = [
            (form, caption)
            for form in FORMS
            for caption in by_caption
            if text == form.replace("{a}", own, 1).replace("{b}", caption, 1)
        ]
        assert not others
        orders[form] += 1
        # Every sample of a clip is its position: the seam is where it steps back.
        length = row["audio_length"]
        sound = row["audio"][:length].astype(int)
        (seam,) = np.flatnonzero(np.diff(sound) != 1)[:1]
        first, then = len(source[row["example_id"]]["audio"]), len(by_caption[second]["audio"])
        assert seam + 1 == min(first, max(500, 1000 - then))
        assert length == min(1000, first + then) and sound[-1] < then
        assert not row["audio"][length:].any()
    assert 30 < sum(orders.values()) < 66 and len(orders) == len(FORMS)
    # Any number of hosts, and after a resume.
    halves = [_take(12, joined, tokenizer, process_index=h, process_count=2) for h in range(2)]
    for step, batch in enumerate(batches):
        for name, value in batch.items():
            pair = np.concatenate([halves[0][step][name], halves[1][step][name]])
            assert np.array_equal(value, pair), name
    with train_loader(joined, tokenizer, seed=3) as loader:
        loader.set_state({"next_step": 7})
        assert np.array_equal(next(loader)["audio"], batches[7]["audio"])


def test_concatenation_joins_labels(
    config: dict[str, Any],
    tokenizer: Tokenizer,
    write: Callable[..., Path],
    make_example: Any,
    tmp_path: Path,
) -> None:
    """Both sounds are heard, so both classes are true."""
    examples = [make_example(i, 50, labels=["ab"[i % 2]]) for i in range(12)]
    made = write(tmp_path, {"train": examples}, labels=tfds.features.Sequence(tfds.features.Text()))
    data = {**config, "dir": str(made), "labels": "labels", "concat_probability": 1.0}
    labels = read_labels([open_source(made, "train")], "labels", ("a", "b"), "error")
    sums = [row["labels"].sum() for row in _rows(_take(6, data, tokenizer, labels=labels))]
    assert set(sums) == {1, 2}


def test_captions_in_another_script(sounds: list[np.ndarray], tmp_path: Path) -> None:
    """A model of English must not be fed what its tokenizer spells in bytes."""
    lines = ["file,caption", "0.wav,a dog", "0.wav,собака", "1.wav,犬が吠える", "2.wav,123"]
    for number in range(3):
        write_sound(tmp_path / f"in/{number}.wav", sounds[number])
    write_text(tmp_path / "in/t.csv", "\n".join(lines))
    limits = Limits(max_rejected=1, script="latin")
    folder = build(tmp_path / "in", tmp_path / "out", limits=limits, split="train")
    assert rejected(folder) == {"1.wav": "other_script"}
    texts = {name: example["text"] for name, example in read(folder).items()}
    assert texts == {"0.wav": ("a dog",), "2.wav": ("123",)}


def test_joined_captions_and_sounds() -> None:
    """Odd captions and lengths must not give wrong or empty pairs."""
    assert join_captions("A dog barks.", "rain falls", 0.0) == "A dog barks followed by rain falls"
    assert join_captions("a", "b", 0.999) == "b after a"
    assert join_captions("{b} rings", "a {a}", 0.3) == "{b} rings, then a {a}"
    assert join_captions("", "b.", 0.5) == "b" and join_captions("a", " . ", 0.5) == "a"
    clips = np.arange(9, dtype=np.int16), np.arange(100, 104, dtype=np.int16)
    for samples, expected in ((13, (9, 4)), (12, (8, 4)), (7, (3, 4)), (6, (3, 3)), (20, (9, 4))):
        for place in (0.0, 0.999):
            pieces = join_audio(*clips, samples, (place, place))
            assert tuple(map(len, pieces)) == expected, samples
            assert (pieces[0][0], pieces[1][-1]) == (
                *((0,) if place == 0 else (9 - expected[0],)),
                *((99 + expected[1],) if place == 0 else (103,)),
            )


def test_prepared_captions_of_both_kinds(sounds: list[np.ndarray], tmp_path: Path) -> None:
    """People's captions, those of a model, and templates for labels, each where it belongs."""
    for number in range(4):
        write_sound(tmp_path / f"in/{number}.wav", sounds[number])
    lines = ["file,caption,by_gpt,label", "0.wav,a dog,a hound,", "1.wav,,a cat,"]
    lines += ["2.wav,,,Car_horn;Rain", "3.wav,rain,,"]
    write_text(tmp_path / "in/t.csv", "\n".join(lines))
    folder = build(
        tmp_path / "in",
        tmp_path / "out",
        generated_columns=("by_gpt",),
        label_captions=("the sound of {}", "{}"),
        limits=Limits(max_rejected=0),
        split="train",
    )
    found = read(folder)
    parts = {
        name: (example["text"], example["text_generated"], example["caption_kind"])
        for name, example in found.items()
    }
    assert parts == {
        "0.wav": (("a dog",), ("a hound",), ""),
        "1.wav": (("a cat",), (), "generated"),
        "2.wav": (("the sound of car horn and rain", "car horn and rain"), (), "labels"),
        "3.wav": (("rain",), (), ""),
    }
    with pytest.raises(UserError, match=r"no column 'gpt' \(--generated-caption-column\)"):
        build(tmp_path / "in", tmp_path / "no", generated_columns=("gpt",))


def test_captions_in_another_language(
    sounds: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """French captions have the letters of English ones; short English names must not be lost."""
    captions = [
        "A grey fox.",
        "Un chien aboie pendant que la pluie tombe sur le toit",
        "12",
        "koala",
    ]
    lines = ["file,caption,also"]
    for number, caption in enumerate(captions):
        write_sound(tmp_path / f"in/{number}.wav", sounds[number])
        lines.append(f"{number}.wav,{caption},Ein Hund bellt und der Wind heult")
    write_text(tmp_path / "in/t.csv", "\n".join(lines))
    base = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--max-rejected=1"]
    base += ["--split=train", "--workers=0", "--caption-column=caption", "--caption-column=also"]
    assert cli.run(prepare_verb.main, [*base, "--language=eng"]) == 2
    assert "--language=eng: not the code of a language, such as en" in capsys.readouterr().err
    assert cli.run(prepare_verb.main, [*base, "--language=en"]) == 0
    folder = tmp_path / "out/1.0.0"
    assert rejected(folder) == {"1.wav": "other_language"}
    assert [e["text"] for e in open_source(folder, "train")] == [
        ("A grey fox.",),
        ("12",),
        ("koala",),
    ]
