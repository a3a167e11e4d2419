"""`alm eval --protocol=...` on small evaluation sets in their published layouts."""

from __future__ import annotations

import csv
import zlib
from ast import literal_eval
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alm_jax import cli
from alm_jax.errors import UserError
from alm_jax.evaluators.metrics import caption_java, compositional
from alm_jax.evaluators.metrics.compositional import read_groups
from alm_jax.evaluators.protocol_runs import run
from alm_jax.evaluators.protocols import (
    PROTOCOLS,
    Classification,
    Retrieval,
    default_protocols,
    find_protocols,
)
from alm_jax.evaluators.results import read_results
from alm_jax.evaluators.session import Session
from input_pipeline.cleaning import Limits
from input_pipeline.sources import open_source
from tests.evaluators import published
from tests.input_pipeline.own_data import prepare, write_sound, write_text
from tests.model_fixtures import clap_workdir, mae_workdir


class Oracle:
    """Hears what the captions or labels of its dataset say, except for some clips."""

    sample_rate, has_text, has_captions, embed_dim = 16000, True, False, 512

    def __init__(self, folder: Path, field: str, deaf: int = 0):
        self.told = {
            clip["audio"].tobytes(): () if number < deaf else clip[field]
            for number, clip in enumerate(open_source(folder, "test"))
        }

    def embed_audio(self, clips: Any, sample_rate: Any = None, *, batch_size: int = 1) -> Any:
        told = [self.told[clip.tobytes()] for clip in clips]
        return np.stack([self._direction(texts or ("unheard",)) for texts in told])

    def embed_text(self, strings: Sequence[str], *, batch_size: int = 1) -> np.ndarray:
        return np.stack([self._direction([text.split(" of ")[-1]]) for text in strings])

    def _direction(self, texts: Sequence[str]) -> np.ndarray:
        total = np.zeros(512, np.float32)
        for text in texts:
            name = text.replace("_", " ").removeprefix("This is a sound on ")
            total += np.random.default_rng(zlib.crc32(name.encode())).standard_normal(512)
        return total / np.linalg.norm(total)


@pytest.fixture(scope="module")
def sounds(tiny_dataset: Path) -> list[np.ndarray]:
    return published.six(tiny_dataset)


@pytest.fixture(scope="module")
def sets(sounds: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Layout -> prepared dataset."""
    root = tmp_path_factory.mktemp("published")
    return {name: published.build(name, root / name, sounds) for name in published.LAYOUTS}


def measure(name: str, folder: Path, field: str, deaf: int = 0) -> dict[str, Any]:
    (protocol,) = find_protocols(name)
    rows = run(protocol, Session(Oracle(folder, field, deaf), folder), None)
    prefix = f"eval/{protocol.name}/"
    return {key.removeprefix(prefix): row for key, row in rows.items()}


@pytest.mark.parametrize("name", ["clotho-retrieval", "audiocaps-retrieval"])
def test_retrieval(name: str, sets: dict[str, Path]) -> None:
    """Clips or captions would be mixed up between dataset and ranking."""
    rows = measure(name, sets[name.removesuffix("-retrieval")], "text")
    first = rows["text_to_audio/R@1"]
    assert (first["n_queries"], first["n_gallery"], first["n_clips"]) == (30, 6, 6)
    assert rows["audio_to_text/R@1"]["value"] == 1.0
    # Two clips of Clotho share a caption; only one of them can be the nearest.
    assert first["value"] == (pytest.approx(29 / 30) if name[0] == "c" else 1.0)
    assert first["protocol"].startswith(f"{name}-v1: ")
    assert first["gallery"] == "the split's 6 clips" and len(first["dataset_fingerprint"]) == 16
    assert f"6 clips, not {PROTOCOLS[name].clips:,}" in first["note"]
    assert {"chance", "prompt", "ci_low", "ci_high", "ci", "convention", "split"} <= first.keys()
    assert {f"audio_to_text/mAP@10{form}" for form in ("", "[laion]", "[found]")} <= rows.keys()


@pytest.mark.parametrize("name", ["esc50", "urbansound8k", "vggsound", "tut2017", "any-labels"])
def test_classification(name: str, sets: dict[str, Path]) -> None:
    """Published zero-shot numbers could not be repeated: other labels, folds or averages."""
    layout = "esc50" if name == "any-labels" else name
    rows = measure(name, sets[layout], "labels", deaf=1)
    accuracy = rows["accuracy"]
    assert accuracy["value"] == pytest.approx(5 / 6) and accuracy["n_classes"] == 3
    assert accuracy["chance"] == pytest.approx(1 / 3)
    assert accuracy["prompt"] == (
        "This is a sound on {}" if name == "tut2017" else "This is a sound of {}"
    )
    if name == "urbansound8k":
        # Fold 1 is the clip that is not heard.
        assert rows["accuracy/fold_1"]["value"] == 0 and rows["accuracy/fold_2"]["value"] == 1
        assert rows["accuracy_mean_of_folds"]["value"] == pytest.approx(1 / 2)
    if name == "esc50":
        assert "3 classes, not 50; 2 folds, not 5; 6 clips, not 2,000" in accuracy["note"]
        assert rows["accuracy_mean_of_folds"]["value"] == pytest.approx(5 / 6)
    if name == "any-labels":
        assert "note" not in accuracy and not any("fold" in key for key in rows)


@pytest.mark.parametrize("name", ["fsd50k", "audioset", "any-tags"])
def test_tagging(name: str, sets: dict[str, Path]) -> None:
    """A class that no clip has would count, or not, without a word."""
    rows = measure(name, sets["fsd50k" if name == "any-tags" else name], "labels")
    assert rows["mAP"]["value"] == 1.0
    if name == "audioset":
        assert rows["mAP[absent=0]"]["value"] == 1.0 and rows["mAP"]["n_classes"] == 3
    else:
        # Of four classes, "frog" is in the development set alone.
        assert rows["mAP[absent=0]"]["value"] == pytest.approx(3 / 4)
        assert "left out (1 of 4 here)" in rows["mAP"]["convention"]


def test_prompts_are_a_choice(sets: dict[str, Path]) -> None:
    """The prompt decides the number: it must be the one that is named."""
    rows = measure("esc50:ensemble", sets["esc50"], "labels")
    assert rows["accuracy"]["prompt"].count("|") == 3
    with pytest.raises(UserError, match=r"no prompts of that name.*did you mean 'ensemble'"):
        find_protocols("esc50:ensembel")
    with pytest.raises(UserError, match="takes no argument"):
        find_protocols("clotho-retrieval:x")


def test_compositional(sounds: list[np.ndarray], tmp_path: Path) -> None:
    """The three scores would be swapped, or a clip compared with another group's caption."""
    path = published.compa(tmp_path, sounds + sounds[:1])

    class Half(Oracle):
        """Group 0 is right as a pair alone, group 1 for the clips alone, group 2 not at all."""

        def __init__(self) -> None:
            self.sample_rate = 16000

        def embed_audio(self, clips: Any, sample_rate: Any = None, *, batch_size: int = 1) -> Any:
            assert [Path(clip).name for clip in clips] == [f"{n}.wav" for n in range(7)]
            return self.at([0, 90, 130, 0, 50, 0, 0])

        def embed_text(self, strings: Sequence[str], *, batch_size: int = 1) -> np.ndarray:
            assert strings[3:5] == ["door_knock first", "door_knock last"]
            assert strings[2].endswith(" between")
            return self.at([10, 80, 100, 30, 60, 0, 90])

        def at(self, degrees: list[float]) -> np.ndarray:
            return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1)

    rows = run(PROTOCOLS["compa-order"], Session(Half(), path), None)
    found = {name.rsplit("/", 1)[1]: row for name, row in rows.items()}
    third = pytest.approx(1 / 3)
    assert [found[name]["value"] for name in ("audio_score", "group_score")] == [third] * 2
    assert found["text_score"]["value"] == pytest.approx(2 / 3)
    # The third caption is nearest to the second clip.
    assert found["text_score[triplets]"]["value"] == third
    assert found["audio_score[triplets]"]["value"] == found["group_score[triplets]"]["value"] == 0
    row = found["group_score"]
    assert row["chance"] == pytest.approx(1 / 6) and (row["n_queries"], row["n_clips"]) == (3, 6)
    assert row["ci"].startswith("95% bootstrap over groups")
    assert row["note"] == "not the published set: 3 groups, not 400"
    row = found["group_score[triplets]"]
    assert row["chance"] == pytest.approx((1 / 60 + 2 / 6) / 3) and row["n_clips"] == 7
    with pytest.raises(UserError, match="take a table"):
        run(PROTOCOLS["compa-order"], Session(Half(), tmp_path), None)
    with pytest.raises(UserError, match="is a file: this protocol takes the folder"):
        run(PROTOCOLS["esc50"], Session(Half(), path), None)


def test_compositional_table(sounds: list[np.ndarray], tmp_path: Path) -> None:
    """A published table would be refused, or a damaged one scored on less than it names."""
    path = published.compa(tmp_path, sounds + sounds[:1])
    text = path.read_text()
    assert read_groups(path).sizes == [3, 2, 2]
    for old, new, told in (
        ("0.wav", "none.wav", r"compa\.csv line 2: no audio file 'none\.wav'"),
        ("pair_file", "clip", "lacks the column pair_file, reversed_pair_file"),
        (",2.wav", ",-", r"line 2: triplet_file is empty"),
        (",3.wav", ",", r"line 3: pair_file is empty"),
    ):
        changed = tmp_path / "compa.csv"
        changed.write_text(text.replace(old, new))
        with pytest.raises(UserError, match=told):
            read_groups(changed)
    # CompA-attribute: names of videos, and of files beside them.
    changed.write_text(
        "pair_caption,reversed_pair_caption,pair_file,reversed_pair_file,pair_file.1,"
        "reversed_pair_file.1\n" + "an old man and a young dog,a young man and an old dog,"
        "-4gqARaEJE,XlhTEwRhKqc,0.wav,1.wav\n" * 2
    )
    assert [path.name for path in read_groups(changed).files[1]] == ["0.wav", "1.wav"]


def test_compositional_chance() -> None:
    """Chance printed beside a score would not be what random embeddings get."""
    score = np.random.default_rng(0).standard_normal((4_000, 3, 3))
    for size, told in ((2, (1 / 4, 1 / 4, 1 / 6)), (3, (1 / 27, 1 / 27, 1 / 60))):
        right = np.asarray([compositional._right(s[:size, :size], 0.0) for s in score])
        assert compositional._CHANCE[size] == told
        np.testing.assert_allclose(right.mean(axis=0), told, atol=0.015)


def test_verb_on_a_real_model(sets: dict[str, Path], tmp_path: Path, capsys, monkeypatch) -> None:
    """`alm eval` would fail, also where there is no Java, or leave out what a number is of."""
    monkeypatch.setattr(caption_java.shutil, "which", lambda _: None)
    out = tmp_path / "out"
    command = [f"--model={clap_workdir()}", f"--data={sets['clotho']}", f"--output={out}"]
    assert cli.main(["eval", *command]) == 0
    shown = capsys.readouterr().out
    rows = read_results(out / "results.json")
    assert {name.split("/")[1] for name in rows} == {"clotho-retrieval", "clotho-captions"}
    assert not any("METEOR" in name for name in rows)
    assert (out / "table.txt").read_text() in shown + "\n"
    card = (out / "card.md").read_text()
    for row in rows.values():
        assert row["dataset_fingerprint"] in card and row["protocol"] in card
    assert "| text_to_audio/R@1 |" in card and "6 clips, not 1,045" in card
    with (out / "clotho-captions" / "predictions.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6 and lines[0].keys() == {"file_name", "caption_predicted", "captions"}
    # aac-metrics reads a list of references in Python's notation.
    assert all(len(literal_eval(line["captions"])) == 5 for line in lines)
    with np.load(out / "clotho-retrieval" / "embeddings.npz") as arrays:
        assert arrays["audio"].shape == (6, 24) and arrays["caption_of_clip"].shape == (6, 5)
    # Another evaluation into the same folder replaces the numbers.
    command[1] = f"--data={sets['esc50']}"
    assert cli.main(["eval", *command, "--protocol=esc50:name"]) == 0
    assert {name.split("/")[1] for name in read_results(out / "results.json")} == {"esc50"}
    answers = (out / "esc50" / "predictions.csv").read_text().splitlines()
    assert answers[0] == "id,label,answer,right" and len(answers) == 7


def test_default_protocol_is_that_of_the_dataset(sets: dict[str, Path], tiny_dataset: Path) -> None:
    """Without --protocol, a published set would be scored in a way that nobody else does."""

    class Model:
        has_text = True

    for layout, folder in sets.items():
        assert Session(Model(), folder).layout == layout
        names = [protocol.name for protocol in default_protocols(layout, has_captions=False)]
        assert names == [f"{layout}-retrieval"] if layout in ("clotho", "audiocaps") else [layout]
    assert [p.name for p in default_protocols(Session(Model(), tiny_dataset).layout, True)] == [
        "heldout"
    ]


def test_every_protocol_is_shown(capsys) -> None:
    """Nobody would find a protocol, or know what it is by its version."""
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    assert cli.main(["eval", "--list"]) == 0
    shown = capsys.readouterr().out
    for protocol in PROTOCOLS.values():
        assert f"{protocol.tag} " in shown and f"`{protocol.name}`" in page
        published_set = isinstance(protocol, Classification | Retrieval) and protocol.layout
        assert not published_set or (protocol.papers and protocol.clips)


def test_bad_input_is_explained(
    sets: dict[str, Path], sounds: list[np.ndarray], tmp_path: Path, capsys
) -> None:
    """A wrong set would end in a traceback, or in a number."""
    with pytest.raises(UserError, match=r"--protocol=esc5: .* did you mean 'esc50'"):
        find_protocols("esc5")
    for number, sound in enumerate(sounds[:2]):
        write_sound(tmp_path / "own" / f"{number}.wav", sound)
    lines = "file,caption\n0.wav,a dog\n1.wav,rain\n"
    write_text(tmp_path / "own" / "captions.csv", lines)
    own = prepare(tmp_path / "own", tmp_path / "plain", split="test")
    with pytest.raises(UserError, match="esc50 needs labels, but none of the 2 clips"):
        measure("esc50", own, "text")
    write_text(
        tmp_path / "own" / "captions.csv",
        "file,caption,labels\n0.wav,a dog,dog\n1.wav,another dog,dog\n",
    )
    same = prepare(tmp_path / "own", tmp_path / "same", split="test")
    with pytest.raises(UserError, match=r"all clips of .* have the label 'dog'"):
        measure("any-labels", same, "labels")
    write_text(
        tmp_path / "own" / "captions.csv",
        "file,caption,labels\n0.wav,a dog,dog\n1.wav,rain,rain\n",
    )
    other = prepare(tmp_path / "own", tmp_path / "labelled", split="test")
    with pytest.raises(UserError, match="does not say which clip is in which"):
        measure("esc50", other, "labels")
    rows = measure("vggsound", other, "labels")
    assert "prepared from format 'table', not 'vggsound'" in rows["accuracy"]["note"]
    with pytest.raises(UserError, match=r"needs one label a clip, but clip 0 has 2"):
        measure("any-labels", sets["fsd50k"], "labels")
    write_sound(tmp_path / "own" / "2.wav", sounds[2])
    write_text(
        tmp_path / "own" / "captions.csv",
        "file,caption,labels\n0.wav,a dog,dog\n1.wav,rain,rain\n2.wav,,\n",
    )
    limits = Limits(needs_caption=False)
    bare = prepare(tmp_path / "own", tmp_path / "bare", split="test", limits=limits)
    # What has no caption is no hindrance to labels.
    rows = measure("any-labels", bare, "labels")
    assert rows["accuracy"]["n_clips"] == 2
    assert "1 clips without label left out" in rows["accuracy"]["note"]
    for name in ("any-retrieval", "any-captions", "heldout"):
        with pytest.raises(UserError, match=r"1 of the 3 clips .* have no caption \(the first is"):
            measure(name, bare, "labels")
    (tmp_path / "own" / "2.wav").unlink()
    (tmp_path / "own" / "1.wav").unlink()
    write_text(tmp_path / "own" / "captions.csv", "file,caption\n0.wav,a dog\n")
    alone = prepare(tmp_path / "own", tmp_path / "alone", split="test")
    for name in ("any-retrieval", "any-labels", "any-captions", "heldout"):
        with pytest.raises(UserError, match="has one clip: a share of one clip"):
            measure(name, alone, "text")
    with pytest.raises(UserError, match="trained without text"):
        cli_error(["eval", f"--model={mae_workdir()}", f"--data={own}"], capsys)
    with pytest.raises(UserError, match="writes captions"):
        measure("any-captions", own, "text")


def cli_error(command: list[str], capsys) -> None:
    """Runs a verb that must end with status 2, and raises what it says."""
    assert cli.main(command) == 2
    raise UserError(capsys.readouterr().err)


def test_what_to_install_for_meteor(monkeypatch) -> None:
    """Whoever lacks Java or the package would not know what METEOR needs."""
    monkeypatch.setattr(caption_java.shutil, "which", lambda _: None)
    monkeypatch.setattr(caption_java.importlib.util, "find_spec", lambda _: None)
    reason = caption_java.unavailable()
    assert "pip install 'alm_jax[captions]'" in reason and "Java on the PATH" in reason
    assert "predictions.csv" in reason


@pytest.mark.skipif(bool(caption_java.unavailable()), reason="needs Java and pycocoevalcap")
def test_scores_on_treebank_words_equal_pycocoevalcap() -> None:
    """Numbers beside published ones would be of other words or another METEOR."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = ["A dog barks, twice!", "rain falls on a tin roof", ""]
    true = [["a dog is barking", "Dogs bark."], ["rain on the roof"], ["nothing to hear"]]
    rows = caption_java.metrics(said, true, "x")
    words = PTBTokenizer().tokenize
    gold = words({n: [{"caption": text} for text in own] for n, own in enumerate(true)})
    found = words({n: [{"caption": text or "."}] for n, text in enumerate(said)})
    for name, scorer in (("METEOR", Meteor()), ("CIDEr-D[ptb]", Cider())):
        assert rows[f"x/{name}"]["value"] == pytest.approx(scorer.compute_score(gold, found)[0])
    bleu = Bleu(4).compute_score(gold, found, verbose=0)[0]
    assert [rows[f"x/BLEU-{n}[ptb]"]["value"] for n in (1, 2, 3, 4)] == pytest.approx(bleu)
