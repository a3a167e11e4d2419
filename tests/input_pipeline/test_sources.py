"""Sources: what is read back is what was prepared, and a wrong folder or split says so."""

import json
import pickle
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from alm_jax.errors import UserError
from input_pipeline.sources import Source, open_source, resolve_version

Write = Callable[..., Path]
MakeExample = Callable[..., dict[str, Any]]


def audio_feature(encoding: str) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding=encoding)


@pytest.mark.parametrize("encoding", ["bytes", "none", "zlib"])
def test_examples_equal_tfds_own(
    encoding: str, write: Write, make_example: MakeExample, tmp_path: Path
) -> None:
    """Our parser is the fast way round TFDS's; a difference would train on other sounds or text."""
    noise = np.random.default_rng(0).integers(-32768, 32768, 500).astype(np.int16)
    examples = [
        make_example(0, 1),
        make_example(1, 0, audio=noise, text="Это зубр 这是 ביזון", lang="ru"),
        make_example(2, 0, audio=np.array([-32768, 32767, 0, -1], np.int16), text=""),
    ]
    directory = write(tmp_path, {"train": examples}, audio=audio_feature(encoding))
    source = open_source(directory, "train")
    reference = tfds.builder_from_directory(directory / "1.0.0").as_data_source("train")
    assert len(source) == len(reference) == 3
    for ours, theirs in zip(source, reference, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["audio"].dtype == np.int16
        np.testing.assert_array_equal(ours["audio"], theirs["audio"])
        for name in ours.keys() - {"audio"}:
            assert ours[name] == theirs[name].decode(), name


def test_views_agree(dataset: Path) -> None:
    """Evaluation joins captions, labels and lengths to batches by position."""
    source = open_source(dataset, "train")
    whole = list(source)
    assert list(source.captions()) == [example["text"] for example in whole]
    assert source.lengths.tolist() == [len(example["audio"]) for example in whole]
    without = [{k: v for k, v in example.items() if k != "audio"} for example in whole]
    assert list(source.metadata()) == without
    audio, captions = source.audio_and_captions(5)
    assert np.array_equal(audio, whole[5]["audio"]) and captions == (whole[5]["text"],)
    assert [example["id"] for example in source[3:6]] == [e["id"] for e in whole[3:6]]
    assert source.sample_rate == 1000


def test_lists_and_numbers(write: Write, make_example: MakeExample, tmp_path: Path) -> None:
    """Corpora with five captions a clip (Clotho's layout) must keep all five."""
    captions = [f"caption {number}" for number in range(5)]
    examples = [
        make_example(0, 10, text=captions, fold=3),
        make_example(1, 10, text=["only one"], fold=4),
    ]
    features = {"text": tfds.features.Sequence(tfds.features.Text()), "fold": np.int64}
    source = open_source(write(tmp_path, {"train": examples}, **features), "train")
    found = {example["id"]: example for example in source}
    assert found["clip-0"]["text"] == tuple(captions) and found["clip-0"]["fold"] == 3
    assert found["clip-1"]["text"] == ("only one",)
    assert sorted(source.captions()) == sorted([*captions, "only one"])


def test_index_out_of_range(dataset: Path) -> None:
    """Position -1 is the id of padding rows: it must never mean the last clip."""
    source = open_source(dataset, "train")
    for index in (-1, 37):
        with pytest.raises(IndexError, match=f"example {index} of .* 37"):
            source[index]


def test_pickle_is_small_and_threads_agree(dataset: Path) -> None:
    """Every worker process gets the pickle; a copy of the index would cost each its size."""
    source = open_source(dataset, "train")
    pickled = pickle.dumps(source)
    assert len(pickled) < 5000
    copy: Source = pickle.loads(pickled)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: copy[i % 37]["id"], range(370)))
    assert read == [source[i % 37]["id"] for i in range(370)]


def test_parts_of_splits(dataset: Path) -> None:
    """TFDS's slices let a user try a run on a tenth of the data without preparing it anew."""
    whole = [example["id"] for example in open_source(dataset, "train")]
    assert [e["id"] for e in open_source(dataset, "train[:10]")] == whole[:10]
    assert [e["id"] for e in open_source(dataset, "train[30:]+train[:2]")] == [
        *whole[30:],
        *whole[:2],
    ]
    assert len(open_source(dataset, "train+test")) == 48


def test_newest_version_is_taken(write: Write, make_example: MakeExample, tmp_path: Path) -> None:
    """1.10.0 is newer than 1.9.0; a name sort would silently train on the old data."""
    for number, version in enumerate(["1.9.0", "1.10.0", "1.2.0"]):
        directory = write(tmp_path, {"train": [make_example(number, 5)]}, version=version)
    assert resolve_version(directory) == str(directory / "1.10.0")
    assert open_source(directory, "train")[0]["id"] == "clip-1"
    assert open_source(directory / "1.9.0", "train")[0]["id"] == "clip-0"
    assert open_source(f"{directory}/1.9.0/", "train").directory == str(directory / "1.9.0")


def test_fingerprint(
    dataset: Path, write: Write, make_example: MakeExample, lengths: list[int], tmp_path: Path
) -> None:
    """A checkpoint records it: a moved dataset must match, a rebuilt one with other sound not."""
    original = open_source(dataset, "train").fingerprint
    moved = tmp_path / "moved"
    shutil.copytree(dataset, moved)
    assert open_source(moved, "train").fingerprint == original
    assert open_source(dataset, "test").fingerprint != original
    examples = [make_example(index, samples) for index, samples in enumerate(lengths)]
    held_out = [make_example(100 + index, 130 * (index + 1)) for index in range(11)]
    same = write(tmp_path / "same", {"train": examples, "test": held_out})
    assert open_source(same, "train").fingerprint == original
    for example in examples:
        example["audio"] = example["audio"] + np.int16(1)
    louder = write(tmp_path / "louder", {"train": examples, "test": held_out})
    assert open_source(louder, "train").fingerprint != original


def test_wrong_folder(dataset: Path, tmp_path: Path) -> None:
    """The commonest mistake of a first run; the message must hold the way out."""
    with pytest.raises(
        UserError, match=r"no dataset folder .*nowhere; build it with `alm prepare`"
    ):
        open_source(tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match=r"is a folder of datasets; give one of them: .*tiny"):
        open_source(dataset.parent, "train")
    with pytest.raises(UserError, match=r"holds no finished TFDS dataset .*build it with"):
        open_source(tmp_path, "train")
    (tmp_path / "incomplete.ABC_1.0.0").mkdir()
    with pytest.raises(UserError, match="a build there was interrupted"):
        open_source(tmp_path, "train")
    file = tmp_path / "file.wav"
    file.touch()
    with pytest.raises(UserError, match=r"file\.wav holds no finished TFDS dataset"):
        open_source(file, "train")


@pytest.mark.parametrize("split", ["tets", "tets[:3]", "train+tets"])
def test_wrong_split(dataset: Path, split: str) -> None:
    """A misspelt split must list the splits there are and the one that was meant."""
    with pytest.raises(UserError, match=r"no split 'tets'; it has .*train \(37\).*mean 'test'\?"):
        open_source(dataset, split)


def test_split_notation_and_empty_split(dataset: Path) -> None:
    """An empty split would otherwise fail much later, inside grain."""
    with pytest.raises(UserError, match=r"split 'train\[:x%\]' is not in TFDS's notation"):
        open_source(dataset, "train[:x%]")
    with pytest.raises(UserError, match=r"split 'train\[:0\]' has no examples"):
        open_source(dataset, "train[:0]")


def test_other_features_are_refused(
    write: Write, make_example: MakeExample, tmp_path: Path
) -> None:
    """Float audio read as int16 would be noise, without an error."""
    example = make_example(0, 4)
    floats = {**example, "audio": np.zeros(4, np.float32)}
    feature = tfds.features.Tensor(shape=(None,), dtype=np.float32)
    directory = write(tmp_path / "float", {"train": [floats]}, audio=feature)
    with pytest.raises(UserError, match=r"feature 'audio' is .*float32.*needed is mono PCM"):
        open_source(directory, "train")
    directory = write(tmp_path / "textless", {"train": [example]}, text=None)
    with pytest.raises(UserError, match=r"has no feature 'text' \(it has audio, group"):
        open_source(directory, "train")


def test_other_file_format_is_refused(dataset: Path, tmp_path: Path) -> None:
    """TFDS's default, tfrecord, has no random access: say so instead of failing in a worker."""
    copied = tmp_path / "tfrecord"
    shutil.copytree(dataset / "1.0.0", copied)
    info = json.loads((copied / "dataset_info.json").read_text())
    (copied / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"stored as tfrecord: no random access.*array_record"):
        open_source(copied, "train")


def test_damaged_record_is_named(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk error in one record of millions must name the dataset and the record."""
    source = open_source(dataset, "train")
    monkeypatch.setattr(source, "_records", [b"\xff\xff\xff"] * 37)
    with pytest.raises(UserError, match=r"example 7 of split 'train' is damaged .*alm prepare"):
        source.audio_and_captions(7)


def test_reading_is_fast(write: Write, make_example: MakeExample, tmp_path: Path) -> None:
    """Below about 1,000 clips a second the reader, not the model, sets the pace of training."""
    rng = np.random.default_rng(0)
    steps = rng.integers(-300, 300, (100, 25600))
    clips = np.clip(np.cumsum(steps, 1), -32768, 32767).astype(np.int16)
    examples = [make_example(i, 0, audio=clip) for i, clip in enumerate(clips)]
    source = open_source(write(tmp_path, {"train": examples}), "train")
    start = time.process_time()
    for index in range(100):
        source.audio_and_captions(index)
    # Processor time, so that a busy machine does not fail it; measured: 0.008 to 0.02.
    assert time.process_time() - start < 0.1


def test_more_shards_than_files_may_be_open(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million clips are two thousand files; most systems let a process open 1,024."""
    from input_pipeline import sources

    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(sources, "_opened", [2000])
    monkeypatch.setattr(sources.resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(sources.resource, "setrlimit", lambda kind, limit: asked.append(limit))
    open_source(dataset, "train")
    ((soft, hard),) = asked
    assert 2512 < soft < 2600 and hard == 4096
