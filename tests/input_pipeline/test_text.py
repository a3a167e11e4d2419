"""Tokenizer: what training, search and export rely on when text becomes ids."""

import io
import pickle
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sentencepiece

from alm_jax.errors import UserError
from input_pipeline.text import BOS_ID, EOS_ID, PAD_ID, UNK_ID, Tokenizer

ENGLISH = [
    f"a {word} sounds {how} in the {place}"
    for word in ("dog", "cat", "violin", "door", "bell", "engine")
    for how in ("loud", "soft", "far away", "twice")
    for place in ("room", "park", "street", "forest")
]
SCRIPTS = {
    "Cyrillic": "Это зубр.",
    "Greek": "Αυτός είναι ένας βίσωνας.",
    "CJK": "这是一头野牛。これはバイソンです",
    "Hebrew": "זה ביזון.",
    "emoji": "🐶 barks",
}


@pytest.fixture(scope="module")
def english() -> Tokenizer:
    return Tokenizer.train(ENGLISH, 330)


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_scripts_unseen_in_training_survive(text: str, model_type: str) -> None:
    """Without byte fallback, a caption or query in another script turns into unknowns."""
    tokenizer = Tokenizer.train(ENGLISH, 300, model_type=model_type)  # type: ignore[arg-type]
    ids, mask = tokenizer.encode(text, 128)
    assert UNK_ID not in ids
    assert tokenizer.decode(ids) == unicodedata.normalize("NFKC", text)
    assert mask.sum() > 2


def test_without_byte_fallback_other_scripts_are_unknown() -> None:
    """The option must do what it says, or a model trained without it is not reproduced."""
    tokenizer = Tokenizer.train(ENGLISH, 80, byte_fallback=False)
    assert UNK_ID in tokenizer.encode("зубр", 16)[0]


def test_layout_of_ids(english: Tokenizer) -> None:
    """Pooling at eos and the captioning loss read bos, eos and padding by position and id."""
    ids, mask = english.encode("a dog sounds loud in the park", 32)
    assert ids.dtype == np.int32 and ids.shape == (32,)
    assert mask.dtype == np.bool_ and mask.shape == (32,)
    length = int(mask.sum())
    assert mask[:length].all() and (ids[length:] == PAD_ID).all()
    assert ids[0] == BOS_ID and ids[length - 1] == EOS_ID
    reference = sentencepiece.SentencePieceProcessor()
    reference.LoadFromSerializedProto(english.model_proto)
    assert ids[1 : length - 1].tolist() == reference.EncodeAsIds("a dog sounds loud in the park")
    assert english.vocab_size == reference.GetPieceSize()


@pytest.mark.parametrize("caption", ["", "   ", "\n\t"])
def test_empty_caption(english: Tokenizer, caption: str) -> None:
    """A clip with no caption must still give the text tower a token to look at."""
    ids, mask = english.encode(caption, 5)
    assert ids.tolist() == [BOS_ID, EOS_ID, 0, 0, 0]
    assert mask.tolist() == [True, True, False, False, False]
    assert english.decode(ids) == ""


def test_caption_of_5000_words_keeps_eos(english: Tokenizer) -> None:
    """A text tower that pools at eos has nothing to pool if truncation drops it."""
    text = " ".join(["a dog sounds loud"] * 1250)
    ids, mask = english.encode(text, 64)
    assert mask.all() and ids[-1] == EOS_ID and ids[0] == BOS_ID
    assert np.array_equal(ids[:-1], english.encode(text, 200)[0][:63])
    assert text.startswith(english.decode(ids))


@pytest.mark.parametrize("text", ["x\x00y", "a\ud800b", "<s> </s> <pad> <unk>", "▁ a", "\ufeffdog"])
def test_odd_text_is_encoded(english: Tokenizer, text: str) -> None:
    """Captions from JSON and file names bring such text; one of them must not stop an epoch."""
    ids, mask = english.encode(text, 40)
    inner = ids[1 : mask.sum() - 1]
    assert not np.isin(inner, [PAD_ID, BOS_ID, EOS_ID, UNK_ID]).any()
    english.decode(ids)


def test_normalisation_unites_spellings(english: Tokenizer) -> None:
    """A query typed with decomposed accents (macOS) or tabs must meet the same caption."""
    for one, other in [
        ("café", "cafe\u0301"),
        ("a\tdog\n barks", "a dog barks"),
        ("ｄｏｇ", "dog"),
    ]:
        assert np.array_equal(english.encode(one, 32)[0], english.encode(other, 32)[0])
    identity = Tokenizer.train(ENGLISH, 300, normalization="identity")
    assert not np.array_equal(identity.encode("ｄｏｇ", 32)[0], identity.encode("dog", 32)[0])


def test_lower_case() -> None:
    """With lower_case on, a query's capitals must not change its ids."""
    folded = Tokenizer.train(ENGLISH, 300, lower_case=True)
    assert np.array_equal(folded.encode("A DOG", 16)[0], folded.encode("a dog", 16)[0])
    assert folded.decode(folded.encode("A DOG", 16)[0]) == "a dog"
    kept = Tokenizer.train(ENGLISH, 300)
    assert kept.decode(kept.encode("A DOG", 16)[0]) == "A DOG"


def test_training_is_repeatable() -> None:
    """Two runs of one config must have the same tokenizer, or their checkpoints cannot be mixed."""
    first, second = (Tokenizer.train(iter(ENGLISH), 310) for _ in range(2))
    assert first == second and first.fingerprint == second.fingerprint
    assert first != Tokenizer.train(ENGLISH[::2], 310)


def test_training_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    """Hundreds of lines from sentencepiece would bury quickstart's own lines."""
    Tokenizer.train(ENGLISH, 310)
    assert capfd.readouterr() == ("", "")


def test_long_training_caption_is_used() -> None:
    """Sentencepiece drops captions beyond 4,192 bytes by itself; long ones hold the rare words."""
    tokenizer = Tokenizer.train(["zebra zebu " * 1000], 400)
    assert tokenizer.encode("zebra zebu", 32)[1].sum() < 8


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_vocabulary_shrinks_to_the_corpus(
    model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A small folder of sounds must train with the default config's vocabulary, and say so."""
    with caplog.at_level("WARNING"):
        tokenizer = Tokenizer.train(ENGLISH, 8000, model_type=model_type)  # type: ignore[arg-type]
    assert 260 < tokenizer.vocab_size < 8000
    assert "not the 8000 asked for" in caplog.text
    assert f"vocabulary of {tokenizer.vocab_size}" in caplog.text


def test_train_errors() -> None:
    """Each of these must name what to change, not show a line of sentencepiece's source."""
    with pytest.raises(UserError, match=r"vocab_size=100 is too small.*need \d+; raise it"):
        Tokenizer.train(ENGLISH, 100)
    with pytest.raises(UserError, match="no caption to train the tokenizer on"):
        Tokenizer.train(["", "  "], 1000)
    with pytest.raises(UserError, match=r"model_type='word'.*'unigram' or 'bpe'"):
        Tokenizer.train(ENGLISH, 400, model_type="word")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"normalization='identity' with lower_case=True"):
        Tokenizer.train(ENGLISH, 400, normalization="identity", lower_case=True)


def test_save_and_load(english: Tokenizer, tmp_path) -> None:
    """The copy beside the checkpoint must be the tokenizer the model was trained with."""
    path = tmp_path / "new folder" / "Ж.model"
    english.save(path)
    loaded = Tokenizer.load(path)
    assert loaded == english and repr(loaded) == repr(english)
    assert [file.name for file in path.parent.iterdir()] == ["Ж.model"]
    assert pickle.loads(pickle.dumps(english)) == english


def test_load_errors(english: Tokenizer, tmp_path) -> None:
    """A wrong path or half a download must be told apart and say what to do."""
    with pytest.raises(UserError, match=r"no tokenizer at .*missing\.model: give the path"):
        Tokenizer.load(tmp_path / "missing.model")
    with pytest.raises(UserError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    broken = tmp_path / "broken.model"
    for content in (b"", b"not a model", english.model_proto[:-300]):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.model is not a readable sentencepiece model"):
            Tokenizer.load(broken)


def test_foreign_special_ids_are_refused(tmp_path) -> None:
    """A model with other special ids (T5's, say) would pad with words."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(ENGLISH), model_writer=model, vocab_size=35, minloglevel=2
    )
    (tmp_path / "t5.model").write_bytes(model.getvalue())
    with pytest.raises(
        UserError, match=r"t5\.model has the special ids .*'bos': 1.*needed are pad 0"
    ):
        Tokenizer.load(tmp_path / "t5.model")


def test_encode_batch_equals_encode(english: Tokenizer) -> None:
    """Embedding many strings at once must give the ids of embedding each."""
    captions = ["", "a dog", *SCRIPTS.values(), "a " * 100]
    ids, mask = english.encode_batch(captions, 24)
    singles = [english.encode(caption, 24) for caption in captions]
    assert ids.dtype == np.int32 and mask.dtype == np.bool_
    assert np.array_equal(ids, np.stack([single[0] for single in singles]))
    assert np.array_equal(mask, np.stack([single[1] for single in singles]))
    assert english.encode_batch([], 24)[0].shape == english.encode_batch([], 24)[1].shape == (0, 24)


def test_decode_generated_ids(english: Tokenizer) -> None:
    """Generated captions hold padding, text after eos and, with a padded table, ids too large."""
    ids, mask = english.encode("a dog in the park", 32)
    pieces = ids[1 : mask.sum() - 1]
    assert english.decode([*pieces, EOS_ID, *pieces, PAD_ID]) == "a dog in the park"
    assert english.decode(np.array([*pieces, PAD_ID, PAD_ID])) == "a dog in the park"
    assert english.decode([english.vocab_size + 5]).strip() == "⁇"
    assert english.decode([EOS_ID]) == english.decode([]) == ""


def test_max_length_must_hold_bos_and_eos(english: Tokenizer) -> None:
    """A max_text_length of 1 is a mistake to name, not to work around."""
    with pytest.raises(ValueError, match="max_length=1: bos and eos alone need 2"):
        english.encode("a", 1)


def test_subword_sampling(english: Tokenizer) -> None:
    """Resume and multi-host runs need draws that depend on the seed alone, on any thread."""
    text = "a violin sounds far away in the forest"

    def draw(seed: int) -> tuple[int, ...]:
        return tuple(english.encode(text, 64, sample_alpha=0.3, seed=seed)[0].tolist())

    serial = [draw(seed) for seed in range(60)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(60))) == serial
    assert 4 < len(set(serial)) <= 16
    assert {english.decode(ids) for ids in serial} == {text}
    best = tuple(english.encode(text, 64)[0].tolist())
    sharp = [english.encode(text, 64, sample_alpha=50.0, seed=seed)[0] for seed in range(20)]
    assert all(tuple(ids.tolist()) == best for ids in sharp)
    assert english.encode("", 4, sample_alpha=0.3, seed=1)[0].tolist() == [BOS_ID, EOS_ID, 0, 0]


def test_subword_sampling_frequencies(english: Tokenizer) -> None:
    """Draws that ignore the likelihoods would train on absurd segmentations."""
    reference = sentencepiece.SentencePieceProcessor()
    reference.LoadFromSerializedProto(english.model_proto)
    candidates = reference.NBestEncodeAsIds("a bell", nbest_size=16)
    scores = np.array([sum(reference.GetScore(i) for i in ids) for ids in candidates])
    expected = np.exp(0.5 * scores) / np.exp(0.5 * scores).sum()
    rng = np.random.default_rng(0)
    drawn = [english.encode("a bell", 32, sample_alpha=0.5, seed=rng) for _ in range(2000)]
    counts = np.zeros(len(candidates))
    for ids, mask in drawn:
        counts[candidates.index(ids[1 : mask.sum() - 1].tolist())] += 1
    # Four standard deviations of a binomial count.
    assert (abs(counts - 2000 * expected) < 4 * np.sqrt(2000 * expected) + 1).all()


def test_subword_sampling_errors(english: Tokenizer) -> None:
    """Sampling without a seed would break resume; with BPE it is not defined here."""
    with pytest.raises(ValueError, match="needs a seed"):
        english.encode("a dog", 16, sample_alpha=0.1)
    bpe = Tokenizer.train(ENGLISH, 300, model_type="bpe")
    with pytest.raises(UserError, match=r"sample_alpha=0\.1 needs a unigram tokenizer"):
        bpe.encode("a dog", 16, sample_alpha=0.1, seed=0)
