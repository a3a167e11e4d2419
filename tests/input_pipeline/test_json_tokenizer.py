"""Tokenizers of imported models against transformers."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import tokenizers
import transformers

from alm_jax.errors import UserError
from input_pipeline.json_tokenizer import JsonTokenizer, find_tokenizer
from input_pipeline.text import Tokenizer

CAPTIONS = [
    "a dog barks twice in the distance",
    "a woman says the number seven",
    "heavy rain on a tin roof",
]
STRANGE = ["", " A Dog  barks éà!", "x" * 50, "звонок телефона 电话"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with vocab.json + merges.txt (RoBERTa) and vocab.txt (BERT)."""
    root = tmp_path_factory.mktemp("tokenizers")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = {
        "roberta": (tokenizers.ByteLevelBPETokenizer(), dict(special_tokens=special)),
        "bert": (tokenizers.BertWordPieceTokenizer(), {}),
    }
    for name, (trainer, fields) in made.items():
        (root / name).mkdir()
        trainer.train_from_iterator(CAPTIONS * 3, vocab_size=330, show_progress=False, **fields)
        trainer.save_model(str(root / name))
    return {name: root / name for name in made}


def official(name: str, folder: Path):
    kind = {"roberta": "RobertaTokenizerFast", "bert": "BertTokenizerFast"}[name]
    return getattr(transformers, kind).from_pretrained(folder)


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_ids_are_the_official_ones(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """The imported text tower would read other words than it was trained on."""
    theirs = official(name, folders[name])
    ours = find_tokenizer(str(folders[name]), Path("x"), len(theirs))
    assert ours is not None
    for text in CAPTIONS + STRANGE:
        want = theirs(text, max_length=24, padding="max_length", truncation=True)
        ids, mask = ours.encode(text, 24)
        assert ids.tolist() == want["input_ids"]
        assert mask.tolist() == [bool(x) for x in want["attention_mask"]]
    ids, mask = ours.encode_batch(CAPTIONS, 24)
    assert [ours.decode(row) for row in ids] == CAPTIONS
    # The tokenizer.json that transformers writes is the same tokenizer.
    theirs.save_pretrained(tmp_path)
    again = find_tokenizer(None, tmp_path, len(theirs))
    assert again is not None and again.encode_batch(CAPTIONS, 24)[0].tolist() == ids.tolist()


def test_saved_and_sent(folders: dict[str, Path], tmp_path: Path) -> None:
    """A workdir would lose its tokenizer, and loader processes could not have it."""
    rows = len(official("roberta", folders["roberta"]))
    ours = find_tokenizer(str(folders["roberta"]), Path("x"), rows)
    ours.save(tmp_path / "tokenizer.model")
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert isinstance(loaded, JsonTokenizer) and loaded == ours
    assert pickle.loads(pickle.dumps(ours)).encode("a dog", 9)[0].tolist() == [
        *ours.encode("a dog", 9)[0]
    ]


def test_what_is_no_tokenizer_for_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    """Ids beyond the embedding table read its last row, without any error."""
    with pytest.raises(UserError, match=r"but the checkpoint's embedding has 7 rows"):
        find_tokenizer(str(folders["bert"]), Path("x"), 7)
    with pytest.raises(UserError, match=r"there is no tokenizer\.json"):
        find_tokenizer(str(tmp_path), Path("x"), 7)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"is no tokenizer\.json"):
        find_tokenizer(str(tmp_path), Path("x"), 7)
    assert find_tokenizer(None, tmp_path / "Cacophony.ckpt", 7) is None
