"""Published corpora: a small folder in exactly the layout of each, made of real recordings."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from input_pipeline.cleaning import Limits
from input_pipeline.formats import FormatError, choose_format
from tests.input_pipeline.own_data import prepare, read, rejected, stored, write_sound, write_text

Sounds = list[np.ndarray]


@dataclasses.dataclass
class Expected:
    """What a clip of the corpus must become."""

    pcm: np.ndarray
    split: str
    captions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    fold: int = 0
    licence: str = ""
    caption_kind: str = "human"


def _csv(path: Path, rows: Iterable[Iterable[Any]], **options: Any) -> None:
    text = io.StringIO()
    csv.writer(text, **options).writerows(rows)
    write_text(path, text.getvalue())


def clotho(root: Path, sounds: Sounds) -> dict[str, Expected]:
    found = {}
    header = ["file_name", *(f"caption_{n}" for n in range(1, 6))]
    about = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
    for subset, split, first in (
        ("development", "train", 0),
        ("validation", "validation", 2),
        ("evaluation", "test", 4),
    ):
        # One name holds a colon in the table and an underscore on disk.
        names = [f"Rain {subset}.wav", "Wet : Metro Pass.wav"]
        rows = [[n, *(f"{split}, caption {k} of {n[:3]}" for k in range(5))] for n in names]
        _csv(root / f"clotho_captions_{subset}.csv", [header, *rows])
        licence = "http://creativecommons.org/licenses/by/3.0/"
        lines = [f'{n},rain;d\xe9cor,1,http://x,"[1, 2]",someone,{licence}' for n in names]
        write_text(root / f"clotho_metadata_{subset}.csv", "\n".join([about, *lines]), "iso-8859-1")
        for row, number in zip(rows, range(first, first + 2), strict=True):
            disk = row[0].replace(" : ", "_")
            write_sound(root / "clotho_audio_files" / subset / disk, sounds[number])
            found[f"{subset}/{row[0]}"] = Expected(
                sounds[number], split, tuple(row[1:]), ("rain", "décor"), licence=licence
            )
    return found


def audiocaps(root: Path, sounds: Sounds) -> dict[str, Expected]:
    header = ["audiocap_id", "youtube_id", "start_time", "caption"]
    train = [[1, "--0w1YA1Hm4", 30, "A man speaks, then a dog barks"]]
    val = [[n, "rqfQRErjfk8", 170, f"A large crowd cheers {n}"] for n in range(2, 7)]
    test = [[n, "6BJ455B1aAs", 0, f"A rocket flies by {n}"] for n in range(7, 12)]
    for name, rows in (("train", train), ("val", val), ("test", test)):
        _csv(root / f"{name}.csv", [header, *rows])
    # Three of the ways in which people name the files.
    write_sound(root / "train" / "--0w1YA1Hm4_30.flac", sounds[0])
    write_sound(root / "val" / "YrqfQRErjfk8.wav", sounds[1])
    write_sound(root / "test" / "6BJ455B1aAs_0.wav", sounds[2])
    return {
        "--0w1YA1Hm4_30": Expected(sounds[0], "train", (train[0][3],)),
        "rqfQRErjfk8_170": Expected(sounds[1], "validation", tuple(row[3] for row in val)),
        "6BJ455B1aAs_0": Expected(sounds[2], "test", tuple(row[3] for row in test)),
    }


def audioset(root: Path, sounds: Sounds) -> dict[str, Expected]:
    names = [["index", "mid", "display_name"], [0, "/m/09x0r", "Speech"]]
    names += [[1, "/m/0dgw9r", "Vehicle horn, car horn, honking"]]
    _csv(root / "class_labels_indices.csv", names)
    found = {}
    for number, (name, split) in enumerate(
        (
            ("balanced_train_segments", "train"),
            ("unbalanced_train_segments", "train"),
            ("eval_segments", "test"),
        )
    ):
        video = f"--{number}PQM4-hqg"
        write_text(
            root / f"{name}.csv",
            "# Segments csv created Sun Mar  5 10:54:31 2017\n"
            "# num_ytids=1, num_segs=1, num_unique_labels=2, num_positive_labels=2\n"
            "# YTID, start_seconds, end_seconds, positive_labels\n"
            f'{video}, 30.000, 40.000, "/m/09x0r,/m/0dgw9r"\n',
        )
        write_sound(root / "audio" / name / f"Y{video}.wav", sounds[number])
        found[f"{video}_30"] = Expected(
            sounds[number],
            split,
            ("the sound of speech and vehicle horn, car horn, honking",),
            ("Speech", "Vehicle horn, car horn, honking"),
            caption_kind="labels",
        )
    return found


def audioset_with_captions(root: Path, sounds: Sounds) -> dict[str, Expected]:
    found = audioset(root, sounds)
    rows = [["id", "caption"], ["Y--0PQM4-hqg", "A man talks while cars honk."]]
    _csv(root / "AudioSetCaps_caption.csv", rows)
    found["--0PQM4-hqg_30"].captions = ("A man talks while cars honk.",)
    found["--0PQM4-hqg_30"].caption_kind = "generated"
    return found


def wavcaps(root: Path, sounds: Sounds) -> dict[str, Expected]:
    found = {}
    # FreeSound and SoundBible have a clip of one number: the folder tells them apart.
    for number, (source, name, clip) in enumerate(
        (
            ("AudioSet_SL", "as_final", "Yb0RFKhbpFJA.wav"),
            ("BBC_Sound_Effects", "bbc_final", "07042022"),
            ("FreeSound", "fsd_final", "2219"),
            ("SoundBible", "sb_final", "2219"),
        )
    ):
        entry = {"id": clip, "caption": f"Caption from {source}.", "duration": 1.0, "audio": "x"}
        content = {"num_captions_per_audio": 1, "data": [entry]}
        write_text(root / "json_files" / source / f"{name}.json", json.dumps(content))
        stem = clip.removesuffix(".wav")
        write_sound(root / "Zip_files" / source / f"{stem}.flac", sounds[number])
        found[f"{source}/{stem}"] = Expected(
            sounds[number], "train", (entry["caption"],), caption_kind="generated"
        )
    return found


def fsd50k(root: Path, sounds: Sounds) -> dict[str, Expected]:
    truth, licence = (
        root / "FSD50K.ground_truth",
        "http://creativecommons.org/publicdomain/zero/1.0/",
    )
    dev = [["fname", "labels", "mids", "split"]]
    dev += [[64760, "Electric_guitar,Guitar", "/m/02sgy,/m/0342h", "train"]]
    dev += [[16399, "Car_passing_by", "/t/dd00134", "val"]]
    _csv(truth / "dev.csv", dev)
    _csv(truth / "eval.csv", [["fname", "labels", "mids"], [37199, "Wind", "/m/03m9d0z"]])
    for subset, names in (("dev", (64760, 16399)), ("eval", (37199,))):
        info = {
            str(n): {"title": "t", "tags": [], "license": licence, "uploader": "u"} for n in names
        }
        write_text(root / "FSD50K.metadata" / f"{subset}_clips_info_FSD50K.json", json.dumps(info))
    for number, (subset, name) in enumerate((("dev", 64760), ("dev", 16399), ("eval", 37199))):
        write_sound(root / f"FSD50K.{subset}_audio" / f"{name}.wav", sounds[number])
    made = {"caption_kind": "labels", "licence": licence}
    return {
        "64760": Expected(
            sounds[0],
            "train",
            ("the sound of electric guitar and guitar",),
            ("Electric_guitar", "Guitar"),
            **made,
        ),
        "16399": Expected(
            sounds[1], "validation", ("the sound of car passing by",), ("Car_passing_by",), **made
        ),
        "37199": Expected(sounds[2], "test", ("the sound of wind",), ("Wind",), **made),
    }


def esc50(root: Path, sounds: Sounds) -> dict[str, Expected]:
    rows = [["filename", "fold", "target", "category", "esc10", "src_file", "take"]]
    rows += [["1-100032-A-0.wav", 1, 0, "dog", True, 100032, "A"]]
    rows += [["5-9032-A-0.wav", 5, 34, "can_opening", False, 9032, "A"]]
    _csv(root / "meta" / "esc50.csv", rows)
    found = {}
    for number, (name, fold, _, label, esc10, *_) in enumerate(rows[1:]):
        write_sound(root / "audio" / name, sounds[number])
        found[name.removesuffix(".wav")] = Expected(
            sounds[number],
            "test",
            (f"the sound of {label.replace('_', ' ')}",),
            (label,),
            fold,
            "CC BY" if esc10 else "CC BY-NC",
            "labels",
        )
    return found


def urbansound8k(root: Path, sounds: Sounds) -> dict[str, Expected]:
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    rows = ["100032-3-0-0.wav,100032,0.0,0.317551,1,5,3,dog_bark"]
    rows += ["7061-6-0-0.wav,7061,58.5,62.5,2,10,6,gun_shot"]
    write_text(root / "metadata" / "UrbanSound8K.csv", "\n".join([header, *rows]) + "\n")
    found = {}
    for number, line in enumerate(rows):
        name, *_, fold, _, label = line.split(",")
        write_sound(root / "audio" / f"fold{fold}" / name, sounds[number])
        found[name.removesuffix(".wav")] = Expected(
            sounds[number],
            "test",
            (f"the sound of {label.replace('_', ' ')}",),
            (label,),
            int(fold),
            "CC BY-NC 3.0",
            "labels",
        )
    return found


def vggsound(root: Path, sounds: Sounds) -> dict[str, Expected]:
    rows = [["---g-f_I2yQ", 1, "people marching", "test"]]
    rows += [["--0PQM4-hqg", 30, "waterfall burbling", "train"]]
    _csv(root / "vggsound.csv", rows)
    found = {}
    for number, (video, start, label, split) in enumerate(rows):
        write_sound(root / "audio" / f"{video}_{start:06d}.wav", sounds[number])
        found[f"{video}_{start}"] = Expected(
            sounds[number], split, (f"the sound of {label}",), (label,), caption_kind="labels"
        )
    return found


def tut2017(root: Path, sounds: Sounds) -> dict[str, Expected]:
    found = {}
    for number, (subset, split, line) in enumerate(
        (
            ("development", "train", "audio/b020_90_100.wav\tbeach\tb020"),
            ("evaluation", "test", "audio/1245.wav\tcafe/restaurant"),
        )
    ):
        folder = root / f"TUT-acoustic-scenes-2017-{subset}"
        write_text(folder / "meta.txt", f"{line}\n")
        name, scene = line.split("\t")[:2]
        write_sound(folder / name, sounds[number])
        found[f"{subset}/{Path(name).stem}"] = Expected(
            sounds[number], split, (f"the sound of {scene}",), (scene,), caption_kind="labels"
        )
    return found


def macs(root: Path, sounds: Sounds) -> dict[str, Expected]:
    write_text(
        root / "MACS.yaml",
        "files:\n"
        "- filename: airport-barcelona-0-0-a.wav\n"
        "  annotations:\n"
        "  - annotator_id: 41\n"
        "    sentence: people talking and walking\n"
        "    tags:\n    - adults talking\n    - footsteps\n"
        "  - annotator_id: 51\n"
        '    sentence: "some noise: a suitcase rolls"\n'
        "    tags:\n    - adults talking\n",
    )
    write_text(root / "MACS_competence.csv", "annotator_id\tcompetence\n41\t0.9\n51\t0.8\n")
    audio = root / "TAU-urban-acoustic-scenes-2019-development" / "audio"
    write_sound(audio / "airport-barcelona-0-0-a.wav", sounds[0])
    write_sound(audio / "bus-vienna-0-1-a.wav", sounds[1])  # TAU has more files than MACS
    captions = ("people talking and walking", "some noise: a suitcase rolls")
    labels = ("adults talking", "footsteps")
    return {"airport-barcelona-0-0-a": Expected(sounds[0], "train", captions, labels)}


def musiccaps(root: Path, sounds: Sounds) -> dict[str, Expected]:
    header = ["ytid", "start_s", "end_s", "audioset_positive_labels", "aspect_list", "caption"]
    header += ["author_id", "is_balanced_subset", "is_audioset_eval"]
    rows = [["-0Gj8-vB1q4", 30, 40, "/m/0140xf", "['low quality', \"male's voice\"]"]]
    rows[0] += ['The low quality recording features a ballad, "sung" softly.', 4, False, True]
    rows += [["-0SdAVK79lg", 30, 40, "/m/01glhc", "['guitar song']", "This song is fast.", 0]]
    rows[1] += [False, False]
    _csv(root / "musiccaps-public.csv", [header, *rows])
    write_sound(root / "wav" / "-0Gj8-vB1q4.wav", sounds[0])
    write_sound(root / "wav" / "-0SdAVK79lg_30_40.wav", sounds[1])
    return {
        "-0Gj8-vB1q4_30": Expected(
            sounds[0], "test", (rows[0][5],), ("low quality", "male's voice")
        ),
        "-0SdAVK79lg_30": Expected(sounds[1], "train", (rows[1][5],), ("guitar song",)),
    }


def auto_acd(root: Path, sounds: Sounds) -> dict[str, Expected]:
    header = ["youtube_id", "caption"]
    _csv(root / "train.csv", [header, ["---1_cCGK4M_000000", "Idle cars in a garage."]])
    _csv(root / "test.csv", [header, ["-0Gj8-vB1q4_000030", "A ballad, indoors."]])
    write_sound(root / "audio" / "Y---1_cCGK4M_0_10.wav", sounds[0])
    write_sound(root / "audio" / "-0Gj8-vB1q4_000030.flac", sounds[1])
    made = {"caption_kind": "generated"}
    return {
        "---1_cCGK4M_0": Expected(sounds[0], "train", ("Idle cars in a garage.",), **made),
        "-0Gj8-vB1q4_30": Expected(sounds[1], "test", ("A ballad, indoors.",), **made),
    }


def audiosetcaps(root: Path, sounds: Sounds) -> dict[str, Expected]:
    made = {"caption_kind": "generated"}
    found = {}
    for number, (table, clip, clip_id, file) in enumerate(
        (
            ("AudioSetCaps_caption", "Y---1_cCGK4M", "---1_cCGK4M", "Y---1_cCGK4M_0_10000.wav"),
            (
                "VGGSound_AudioSetCaps_caption",
                "OxPnZzn1_L8_000883",
                "OxPnZzn1_L8_883",
                "OxPnZzn1_L8_000883.wav",
            ),
            (
                "YouTube-8M_AudioSetCaps_caption",
                "9eUrEyAR3xk_84_10",
                "9eUrEyAR3xk_84",
                "9eUrEyAR3xk_84_10.flac",
            ),
        )
    ):
        _csv(root / "Dataset" / f"{table}.csv", [["id", "caption"], [clip, f"Caption, of {clip}"]])
        write_sound(root / "audio" / file, sounds[number])
        found[clip_id] = Expected(sounds[number], "train", (f"Caption, of {clip}",), **made)
    return found


LAYOUTS: dict[str, tuple[str, Callable[[Path, Sounds], dict[str, Expected]]]] = {
    make.__name__: (make.__name__, make)
    for make in (
        *(clotho, audiocaps, audioset, wavcaps, fsd50k, esc50, urbansound8k, vggsound, macs),
        *(musiccaps, auto_acd, audiosetcaps, tut2017),
    )
}
LAYOUTS["audioset with captions"] = ("audioset", audioset_with_captions)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str, sounds: Sounds, tmp_path: Path, capsys) -> None:
    """Users have these corpora as published: a wrong caption, split or clip spoils every number."""
    name, make = LAYOUTS[layout]
    expected = make(tmp_path / "corpus", sounds)
    folder = prepare(tmp_path / "corpus", tmp_path / "out")
    assert f"format {name} " in capsys.readouterr().out
    found = read(folder)
    assert set(found) == set(expected)
    for clip_id, wanted in expected.items():
        clip = found[clip_id]
        np.testing.assert_array_equal(clip["audio"], stored(wanted.pcm))
        assert (clip["split"], clip["text"]) == (wanted.split, wanted.captions)
        assert tuple(clip["labels"]) == wanted.labels
        assert clip["fold"] == wanted.fold
        assert clip["licence"] == wanted.licence
        assert clip["caption_kind"] == wanted.caption_kind
    assert rejected(folder) == {}


def test_videos_that_are_gone(sounds: Sounds, tmp_path: Path) -> None:
    """A tenth of AudioCaps cannot be downloaded any more: that must not stop the build."""
    root = tmp_path / "corpus"
    expected = audiocaps(root, sounds)
    (root / "val" / "YrqfQRErjfk8.wav").unlink()
    folder = prepare(root, tmp_path / "out")
    assert set(read(folder)) == set(expected) - {"rqfQRErjfk8_170"}
    assert rejected(folder) == {"rqfQRErjfk8_170": "missing"}
    report = json.loads((folder / "prepare_report.json").read_text())
    assert report["rejected_by_reason"] == {"missing": 1} and report["rows"] == 3
    for path in root.glob("*/*.*"):
        path.unlink()
    with pytest.raises(FormatError, match=r"of 3 rows not one has its audio:[\s\S]*--audio-dir"):
        prepare(root, tmp_path / "none")


def test_published_evaluation_stays_whole(sounds: Sounds, tmp_path: Path) -> None:
    """One clip less in the test split, and a score is of another benchmark."""
    root = tmp_path / "corpus"
    clotho(root, sounds)
    folder = root / "clotho_audio_files"
    write_sound(folder / "evaluation" / "Rain evaluation.wav", np.zeros(800, np.int16))
    write_sound(folder / "development" / "Rain development.wav", sounds[5])  # as in evaluation
    out = prepare(root, tmp_path / "out", limits=Limits(max_rejected=0.5))
    assert rejected(out) == {"development/Rain development.wav": "duplicate"}
    silent = read(out)["evaluation/Rain evaluation.wav"]
    assert len(silent["audio"]) == 800 and not silent["audio"].any()


def test_audioset_needs_the_names_of_its_labels(sounds: Sounds, tmp_path: Path) -> None:
    """Without them every caption would be `/m/09x0r`; the message says what to fetch."""
    audioset(tmp_path, sounds)
    (tmp_path / "class_labels_indices.csv").unlink()
    with pytest.raises(FormatError, match=r"class_labels_indices\.csv is missing"):
        prepare(tmp_path, tmp_path / "out")


def test_format_that_does_not_exist(tmp_path: Path) -> None:
    """A typing error names the layout that was meant; an empty folder says what is needed."""
    with pytest.raises(FormatError, match=r"--format=clotoh: .* did you mean 'clotho'\?"):
        choose_format(tmp_path, "clotoh")
    with pytest.raises(FormatError, match=r"found nothing known\. Needed is a CSV"):
        choose_format(tmp_path)
    with pytest.raises(FormatError, match=r"no such file or folder"):
        choose_format(tmp_path / "nowhere")


def test_table_of_another_version(sounds: Sounds, tmp_path: Path) -> None:
    """A column that is called otherwise than published must not end in a traceback."""
    vggsound(tmp_path / "v", sounds)
    with pytest.raises(FormatError, match=r"the tables of Clotho are not there .*docs/data\.md"):
        choose_format(tmp_path / "v", "clotho")
    esc50(tmp_path, sounds)
    table = tmp_path / "meta" / "esc50.csv"
    table.write_text(table.read_text().replace("category", "class"))
    with pytest.raises(FormatError, match=r"no column or field 'category', which ESC-50 has"):
        prepare(tmp_path, tmp_path / "out")
