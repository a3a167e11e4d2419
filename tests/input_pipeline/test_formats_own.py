"""Own data: tables, tars and parquet files as people have them, and everything odd in them."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from alm_jax.errors import UserError
from input_pipeline.cleaning import Limits
from input_pipeline.formats import FormatError
from tests.input_pipeline.own_data import (
    RATE,
    prepare,
    read,
    rejected,
    stored,
    write_sound,
    write_text,
)

Sounds = list[np.ndarray]
LENIENT = Limits(max_rejected=1.0)


def _folder(root: Path, sounds: Sounds, count: int = 4) -> list[str]:
    names = [f"sound {number}.wav" for number in range(count)]
    for name, pcm in zip(names, sounds, strict=False):
        write_sound(root / "audio" / name, pcm)
    return names


def _equal(example: dict[str, Any], pcm: np.ndarray) -> bool:
    return np.array_equal(example["audio"], stored(pcm))


# Tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tsv", "jsonl", "json", "utf-16"])
def test_columns_are_found(kind: str, sounds: Sounds, tmp_path: Path) -> None:
    """Whoever has a table in one of the usual forms must not have to write it anew."""
    names = _folder(tmp_path / "in", sounds, 3)
    captions = ["a dog, barking", "дверь скрипит", 'the "bell" rings']
    tags = ["dog;bark", "door", "bell"]
    if kind in ("jsonl", "json"):
        rows = [
            {"audio_filepath": f"audio/{n}", "text": c, "tags": t.split(";"), "License": "CC0"}
            for n, c, t in zip(names, captions, tags, strict=True)
        ]
        lines = "\n".join(json.dumps(row) for row in rows)
        write_text(tmp_path / f"in/m.{kind}", lines if kind == "jsonl" else json.dumps(rows))
    else:
        mark = {"csv": ",", "semicolons": ";", "tsv": "\t", "utf-16": "\t"}[kind]
        quoted = [
            [f'"{c.replace(chr(34), chr(34) * 2)}"' for c in row]
            for row in zip(names, captions, tags, strict=True)
        ]
        lines = [["File Name", "Caption", "tags"], *quoted]
        text = "\n".join(
            mark.join([*line, "CC0" if i else "License"]) for i, line in enumerate(lines)
        )
        suffix = "tsv" if kind in ("tsv", "utf-16") else "csv"
        write_text(tmp_path / f"in/m.{suffix}", text, "utf-16" if kind == "utf-16" else "utf-8-sig")
    folder = prepare(tmp_path / "in", tmp_path / "out")
    found = sorted(read(folder).values(), key=lambda example: example["id"])
    assert len(found) == 3
    for example, pcm, caption, tag in zip(found, sounds, captions, tags, strict=False):
        assert example["text"] == (caption,) and _equal(example, pcm)
        assert example["labels"] == tuple(tag.split(";")) and example["licence"] == "CC0"


def test_several_captions(sounds: Sounds, tmp_path: Path) -> None:
    """Captions in several columns, in several rows and as a list are all captions of one clip."""
    names = _folder(tmp_path, sounds, 3)
    write_text(tmp_path / "a.csv", f"fname,caption_2,caption_1\n{names[0]},second,first\n")
    write_text(tmp_path / "b.csv", f"path,sentence\n{names[1]},one\n{names[1]},two\n")
    line = {"file": names[2], "captions": ["x1", " ", "x2 \n x3"]}
    write_text(tmp_path / "c.jsonl", json.dumps(line))
    found = read(prepare(tmp_path, tmp_path / "out"))
    assert found[names[0]]["text"] == ("first", "second")
    assert found[names[1]]["text"] == ("one", "two")
    assert found[names[2]]["text"] == ("x1", "x2 x3")


def test_spans(sounds: Sounds, tmp_path: Path) -> None:
    """Several clips of one recording are cut where the table says, and stay on one side."""
    whole = np.concatenate(sounds[:6])[: 5 * RATE]
    write_sound(tmp_path / "long.flac", whole)
    rows = [(0.0, 1.0), (1.5, 2.25), (3.0, "")]
    lines = [f"long.flac,{start},{end},from {start}" for start, end in rows]
    write_text(tmp_path / "t.csv", "\n".join(["file,start,end,text", *lines]))
    found = read(prepare(tmp_path, tmp_path / "out"))
    assert set(found) == {"long.flac#0-1", "long.flac#1.5-2.25", "long.flac#3-"}
    assert _equal(found["long.flac#0-1"], whole[:RATE])
    assert _equal(found["long.flac#1.5-2.25"], whole[24000:36000])
    assert _equal(found["long.flac#3-"], whole[3 * RATE :])
    assert len({example["split"] for example in found.values()}) == 1
    # As in NeMo's manifests.
    manifest = {"audio_filepath": "long.flac", "offset": 1, "duration": 0.5, "text": "x"}
    write_text(tmp_path / "n" / "m.jsonl", json.dumps(manifest))
    options = {"audio_dir": tmp_path}
    (example,) = read(prepare(tmp_path / "n", tmp_path / "out2", **options)).values()
    assert _equal(example, whole[RATE : RATE * 3 // 2])


def test_splits(sounds: Sounds, tmp_path: Path) -> None:
    """A column or the table's name gives the split; else a hash that never changes."""
    names = _folder(tmp_path, sounds, 12)
    for table, rows in (("train", names[:2]), ("my_valid", names[2:4])):
        lines = [f"{name},x {name}" for name in rows]
        write_text(tmp_path / f"{table}.csv", "\n".join(["file,caption", *lines]))
    lines = [f"{name},y,{split}" for name, split in zip(names[4:], ["eval", "TRAIN"], strict=False)]
    write_text(tmp_path / "more.csv", "\n".join(["file,caption,subset", *lines]))
    found = read(prepare(tmp_path, tmp_path / "out"))
    by_split = {name: found[name]["split"] for name in names[:6]}
    assert list(by_split.values()) == ["train"] * 2 + ["validation"] * 2 + ["test", "train"]
    for path in tmp_path.glob("*.csv"):
        path.unlink()
    write_text(tmp_path / "c.csv", "\n".join(["file,caption", *(f"{n},{n}" for n in names)]))
    shares = {"validation": 0.25, "test": 0.25}
    first = read(prepare(tmp_path, tmp_path / "hashed", **shares))
    assert {example["split"] for example in first.values()} == {"train", "validation", "test"}
    write_text(tmp_path / "c.csv", "\n".join(["file,caption", *(f"{n},{n}" for n in names[3:])]))
    second = read(prepare(tmp_path, tmp_path / "again", **shares))
    assert {n: e["split"] for n, e in second.items()} == {n: first[n]["split"] for n in names[3:]}


def test_named_columns(sounds: Sounds, tmp_path: Path) -> None:
    """Columns of any name can be named; a wrong name shows the right one."""
    names = _folder(tmp_path, sounds, 2)
    lines = [f"{n},k{i},what {n},other" for i, n in enumerate(names)]
    write_text(tmp_path / "t.csv", "\n".join(["Datei,Nr,Beschreibung,text", *lines]))
    with pytest.raises(FormatError, match=r"which column names the audio file\? .*'Datei', 'Nr'"):
        prepare(tmp_path, tmp_path / "out")
    with pytest.raises(FormatError, match=r"no column 'Beschreibun' .*mean 'Beschreibung'\?"):
        prepare(tmp_path, tmp_path / "out", audio_column="Datei", caption_columns=("Beschreibun",))
    named = {"audio_column": "Datei", "caption_columns": ("Beschreibung",), "id_column": "Nr"}
    found = read(prepare(tmp_path, tmp_path / "out", **named))
    assert {clip_id: example["text"] for clip_id, example in found.items()} == {
        f"k{i}": (f"what {n}",) for i, n in enumerate(names)
    }
    write_text(tmp_path / "t.csv", f"file,note\n{names[0]},x\n")
    with pytest.raises(FormatError, match=r"which column holds the captions\? It has 'file', 'n"):
        prepare(tmp_path, tmp_path / "out2")


def test_row_without_its_file(sounds: Sounds, tmp_path: Path) -> None:
    """The row is named, with the file that was probably meant; a few such rows do not stop it."""
    names = _folder(tmp_path, sounds, 3)
    lines = [f"{n},x" for n in [*names, "sound 1x.wav"]]
    write_text(tmp_path / "t.csv", "\n".join(["file,caption", *lines]))
    with pytest.raises(UserError) as error:
        prepare(tmp_path, tmp_path / "out")
    said = str(error.value)
    assert "1 of 4 rows (25%) were rejected, more than --max-rejected=0.1: 1 missing" in said
    assert "t.csv line 5: no audio file 'sound 1x.wav' below" in said
    assert "did you mean 'sound 1.wav'?" in said
    folder = prepare(tmp_path, tmp_path / "out", limits=LENIENT)
    assert rejected(folder) == {"sound 1x.wav": "missing"} and len(read(folder)) == 3


def test_tables_that_cannot_be_read(sounds: Sounds, tmp_path: Path) -> None:
    """Each of these is met in the first hour with own data; the message is the way out."""
    names = _folder(tmp_path, sounds, 2)
    table = tmp_path / "t.csv"
    for text, message in (
        ("", r"t\.csv: it is empty"),
        ("file,caption\n", r"t\.csv: it has a header but no rows"),
        (f"file,caption\n{names[0]},a dog, barking\n", r"line 2 has 3 cells, the header 2"),
        (f'file,caption\n{names[0]},"a dog\n', r"line \d cannot be read: unexpected end of data"),
        ("file,caption,caption\nx,y,z\n", r"two columns are called 'caption'"),
        (f"{names[0]},a dog\n{names[1]},a cat\n", r"which column names .*needs a header"),
        (f"file,caption,start\n{names[0]},x,soon\n", r"line 2: start='soon' is no number of sec"),
    ):
        write_text(table, text)
        with pytest.raises(FormatError, match=message):
            prepare(tmp_path, tmp_path / "out")
    write_text(table, f"file,caption\n{names[0]},un café\n", "cp1252")
    with pytest.raises(
        FormatError, match=r"not UTF-8: line 2 has the byte 0xe9, .*'.*un café'.*--enc"
    ):
        prepare(tmp_path, tmp_path / "out")
    (example,) = read(prepare(tmp_path, tmp_path / "out", encoding="cp1252")).values()
    assert example["text"] == ("un café",)
    table.unlink()
    for text, message in (
        ('{"file": "x", "caption": "y"}\n{"file": "x"', r"j\.jsonl: line 2 is not JSON"),
        ('"x"\n', r"line 1 holds no object with named fields"),
    ):
        write_text(tmp_path / "j.jsonl", text)
        with pytest.raises(FormatError, match=message):
            prepare(tmp_path, tmp_path / "out3")


def test_two_rows_with_one_id(sounds: Sounds, tmp_path: Path) -> None:
    """Keeping either would be a guess; both lines are named."""
    names = _folder(tmp_path, sounds, 2)
    write_text(tmp_path / "t.csv", f"id,file,caption\n7,{names[0]},a\n7,{names[1]},b\n")
    with pytest.raises(FormatError, match=r"two rows have the id '7' .*line 2: .*line 3: .*--id-c"):
        prepare(tmp_path, tmp_path / "out")
    write_text(tmp_path / "t.csv", f"split,file,caption\ntrain,{names[0]},a\ntest,{names[0]},b\n")
    with pytest.raises(FormatError, match=r"is in two splits \(t\.csv line 2: 'train'; t\.csv l"):
        prepare(tmp_path, tmp_path / "out")


def test_ambiguous_file_name(sounds: Sounds, tmp_path: Path) -> None:
    """Taking the first of two files of one name would pair sounds with foreign captions."""
    write_sound(tmp_path / "a" / "x.wav", sounds[0])
    write_sound(tmp_path / "b" / "x.wav", sounds[1])
    write_text(tmp_path / "t.csv", "file,caption\nx.wav,a dog\n")
    with pytest.raises(FormatError, match=r"t\.csv line 2: 'x\.wav' is the name of 2 files"):
        prepare(tmp_path, tmp_path / "out")
    write_text(tmp_path / "t.csv", "file,caption\nb/x.flac,a dog\nelsewhere/x.wav,a cat\n")
    folder = prepare(tmp_path, tmp_path / "out", limits=LENIENT)
    (example,) = read(folder).values()
    assert _equal(example, sounds[1]) and rejected(folder) == {"elsewhere/x.wav": "missing"}


def test_audio_without_text(sounds: Sounds, tmp_path: Path) -> None:
    """Training on audio alone needs no captions; without being told it asks."""
    names = _folder(tmp_path, sounds, 3)
    with pytest.raises(FormatError, match=r"found 3 audio files but no table.*--format=audio"):
        prepare(tmp_path, tmp_path / "out")
    limits = Limits(needs_caption=False)
    found = read(prepare(tmp_path, tmp_path / "out", "audio", limits=limits))
    assert set(found) == {f"audio/{name}" for name in names}
    assert all(len(example["text"]) == 0 for example in found.values())


# Tars ---------------------------------------------------------------------------------------------


def _flac(pcm: np.ndarray) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, pcm, RATE, format="flac")
    return data.getvalue()


def _tar(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _laion(sounds: Sounds, first: int, count: int) -> list[tuple[str, bytes]]:
    members = []
    for number in range(count):
        about = {
            "text": [f"caption {first + number}", f"The sounds of {first + number}"],
            "tag": ["Music", "Harp"],
            "original_data": {"title": "Freesound", "license": "CC0"},
        }
        members.append((f"{number + 1}.flac", _flac(sounds[first + number])))
        members.append((f"{number + 1}.json", json.dumps(about).encode()))
    return members


def test_webdataset(sounds: Sounds, tmp_path: Path) -> None:
    """LAION-Audio's tars, whose keys begin at 1 in every tar."""
    _tar(tmp_path / "in/train/0.tar", [("sizes.txt.md", b"x"), *_laion(sounds, 0, 3)])
    _tar(tmp_path / "in/train/1.tar.gz", _laion(sounds, 3, 2), "w:gz")
    _tar(tmp_path / "in/valid/0.tar", [("./x/9.flac", _flac(sounds[5])), ("./x/9.txt", b"a dog\n")])
    write_text(tmp_path / "in/train/sizes.json", '{"0.tar": 3}')
    found = read(prepare(tmp_path / "in", tmp_path / "out"))
    expected = {f"train/0/{n + 1}": n for n in range(3)} | {
        f"train/1/{n + 1}": 3 + n for n in range(2)
    }
    assert set(found) == {*expected, "valid/0/x/9"}
    for clip_id, number in expected.items():
        example = found[clip_id]
        assert _equal(example, sounds[number]) and example["split"] == "train"
        assert example["text"] == (f"caption {number}", f"The sounds of {number}")
        assert example["labels"] == ("Music", "Harp") and example["licence"] == "CC0"
    assert found["valid/0/x/9"]["split"] == "validation"
    assert found["valid/0/x/9"]["text"] == ("a dog",)


def test_damaged_tars(sounds: Sounds, tmp_path: Path) -> None:
    """A half download reads like a whole one up to its end; training on it unknowingly is worse."""
    whole = _tar(tmp_path / "whole.tar", _laion(sounds, 0, 3))
    data = whole.read_bytes()
    whole.unlink()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.getmembers()[4]
    bad = tmp_path / "bad.tar"
    # In the middle of a file, and exactly between two.
    for size in (member.offset_data + member.size // 2, member.offset):
        bad.write_bytes(data[:size])
        with pytest.raises(FormatError, match=r"bad\.tar: the tar is cut off.*Download it again"):
            prepare(tmp_path, tmp_path / "out")
    bad.unlink()
    zipped = _tar(tmp_path / "bad.tar.gz", _laion(sounds, 0, 3), "w:gz")
    zipped.write_bytes(zipped.read_bytes()[: -zipped.stat().st_size // 3])
    with pytest.raises(FormatError, match=r"cut off or damaged after \d whole files, the last '"):
        prepare(tmp_path, tmp_path / "out")
    zipped.unlink()
    _tar(tmp_path / "twice.tar", _laion(sounds, 0, 2) + _laion(sounds, 2, 1))
    with pytest.raises(FormatError, match=r"twice\.tar: the key '1' comes twice"):
        prepare(tmp_path, tmp_path / "out")
    _tar(tmp_path / "twice.tar", [("1.flac", _flac(sounds[0])), ("1.json", b'{"text": ')])
    with pytest.raises(FormatError, match=r"twice\.tar: twice/1\.json is not JSON"):
        prepare(tmp_path, tmp_path / "out")


def test_tar_without_audio_of_a_clip(sounds: Sounds, tmp_path: Path) -> None:
    """JSON whose audio is missing is counted, not passed over."""
    _tar(tmp_path / "0.tar", [*_laion(sounds, 0, 2), ("8.json", b'{"text": "lonely"}')])
    folder = prepare(tmp_path, tmp_path / "out", limits=LENIENT)
    assert rejected(folder) == {"0/8": "missing"} and len(read(folder)) == 2


# Parquet ------------------------------------------------------------------------------------------

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _hf_table(sounds: Sounds, first: int, count: int, features: bool = True) -> pa.Table:
    numbers = range(first, first + count)
    audio = [{"bytes": _flac(sounds[n]), "path": f"{n}.flac"} for n in numbers]
    columns = {
        "audio": pa.array(audio, AUDIO),
        "caption": pa.array([[f"caption {n}", f"again {n}"] for n in numbers]),
        "label": pa.array([n % 2 for n in numbers]),
        "start_time": pa.array([30] * count),
    }
    table = pa.table(columns)
    if not features:
        return table
    about = {"info": {"features": {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(about)})


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_huggingface(kind: str, sounds: Sounds, tmp_path: Path) -> None:
    """Datasets from the hub lie as parquet, those saved to disk as Arrow streams."""
    root = tmp_path / "in"
    if kind == "parquet":
        (root / "data").mkdir(parents=True)
        pq.write_table(_hf_table(sounds, 0, 3), root / "data/train-00000-of-00002.parquet")
        pq.write_table(_hf_table(sounds, 3, 2), root / "data/train-00001-of-00002.parquet")
        pq.write_table(_hf_table(sounds, 5, 1), root / "data/test-00000-of-00001.parquet")
    else:
        for split, first, count in (("train", 0, 5), ("test", 5, 1)):
            (root / split).mkdir(parents=True)
            table = _hf_table(sounds, first, count)
            name = str(root / split / "data-00000-of-00001.arrow")
            with pa.OSFile(name, "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
                out.write_table(table)
            write_text(root / split / "dataset_info.json", "{}")
    found = read(prepare(root, tmp_path / "out"))
    assert len(found) == 6
    for number, example in enumerate(sorted(found.values(), key=lambda e: e["text"])):
        assert _equal(example, sounds[number])
        assert example["text"] == (f"caption {number}", f"again {number}")
        assert example["labels"] == (("dog", "cat")[number % 2],)
        assert example["split"] == ("test" if number == 5 else "train")


def test_damaged_parquet(sounds: Sounds, tmp_path: Path) -> None:
    """A half download and a table without audio are told apart."""
    path = tmp_path / "train.parquet"
    pq.write_table(_hf_table(sounds, 0, 2), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FormatError, match=r"train\.parquet: cannot be read .*Download it again"):
        prepare(tmp_path, tmp_path / "out")
    pq.write_table(pa.table({"sound": ["x.wav"], "caption": ["a dog"]}), path)
    with pytest.raises(FormatError, match=r"no column holds audio .*it has sound, caption"):
        prepare(tmp_path, tmp_path / "out")


def test_one_id_in_two_files(sounds: Sounds, tmp_path: Path) -> None:
    """Found at the end, over all files, because files are read apart from each other."""
    for number in range(2):
        table = _hf_table(sounds, number, 1, features=False).append_column("id", pa.array(["a"]))
        pq.write_table(table, tmp_path / f"{number}.parquet")
    with pytest.raises(FormatError, match=r"two clips have the id 'a'"):
        prepare(tmp_path, tmp_path / "out")


def test_options_reach_every_format() -> None:
    """A field that no flag sets would be dead."""
    from input_pipeline.formats import Options
    from input_pipeline.prepare import _parser

    flags = vars(_parser().parse_args([]))
    for field in dataclasses.fields(Options):
        assert field.name in flags or field.name in ("caption_columns", "generated_columns")
