"""The linear baseline against its formulas, and what it must and must not be able to learn."""

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.evaluators.linear.ridge import TfIdf, fit_linear_baseline, linear_baseline
from alm_jax.evaluators.metrics.retrieval import distinct_captions, retrieval_metrics

WORDS = (
    *("rain", "wind", "dog", "horn", "bell", "drum", "door", "water"),
    *("fire", "step", "glass", "wood", "bird", "train", "clock", "voice"),
)


def corpus(n, seed, noise=0.3):
    """Captions of two words out of 16; the statistics are a noisy mixture of both, and a length."""
    rng = np.random.default_rng(seed)
    chosen = np.stack([rng.permutation(16)[:2] for _ in range(n)])
    mixing = np.random.default_rng(99).normal(size=(16, 30))
    statistics = mixing[chosen].sum(axis=1) + noise * rng.normal(size=(n, 30))
    return statistics, [f"the sound of a {WORDS[a]} and a {WORDS[b]}" for a, b in chosen]


def fitted(whiten, **kwargs):
    return fit_linear_baseline(*corpus(300, 0), *corpus(60, 1), whiten=whiten, **kwargs)


def cosines(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


def test_tfidf_by_hand():
    """Captions would be compared by something else than their n-grams."""
    tfidf = TfIdf.fit(["ab", "ab", "b"])
    # n-grams in two or more texts: of ' ab ' and ' b '
    counts = {"w ab": 2, "c a": 2, "c  a": 2, "c ab": 2, "c  ab": 2, "c ab ": 2}
    counts |= {"c b": 3, "c  ": 3, "c b ": 3}
    assert set(tfidf.index) == set(counts)
    idf = {gram: np.log(4 / (1 + count)) + 1 for gram, count in counts.items()}
    for gram, column in tfidf.index.items():
        assert tfidf.idf[column] == pytest.approx(idf[gram])
    row = tfidf.transform(["b", "ab"]).toarray()
    weights = {"c b": idf["c b"], "c  ": (1 + np.log(2)) * idf["c  "], "c b ": idf["c b "]}
    length = np.sqrt(sum(w * w for w in weights.values()))
    for gram, column in tfidf.index.items():
        assert row[0, column] == pytest.approx(weights.get(gram, 0) / length)
    assert np.linalg.norm(row[1]) == pytest.approx(1)
    assert not tfidf.transform(["xyz?"]).toarray()[0, tfidf.index["c b"]]


@pytest.mark.parametrize("whiten", [False, True])
def test_scores_equal_the_textbook_formulas(whiten):
    """The baseline in the report would not be the regression it is said to be."""
    statistics, texts = corpus(300, 0)
    model = fitted(whiten, ridge_strengths=[50.0], whitening_strengths=[0.7])
    x = np.clip((statistics - statistics.mean(0)) / statistics.std(0), -5, 5)
    y = model.tfidf.transform(texts).toarray()
    y = y - y.mean(axis=0)
    root = np.eye(y.shape[1])
    if whiten:
        value, vector = np.linalg.eigh(y.T @ y + 0.7 * np.eye(y.shape[1]))
        root = (vector / np.sqrt(value)) @ vector.T
    # Ridge regression as least squares with penalty rows.
    rows = np.concatenate([x, np.sqrt(50.0) * np.eye(30)])
    weights = np.linalg.lstsq(rows, np.concatenate([y @ root, np.zeros((30, y.shape[1]))]))[0]
    test, test_texts = corpus(40, 2)
    predicted = np.clip((test - statistics.mean(0)) / statistics.std(0), -5, 5) @ weights
    true = model.tfidf.transform(test_texts).toarray()
    true = (true - model.tfidf.transform(texts).toarray().mean(axis=0)) @ root
    expected = cosines(predicted, true)
    measured = cosines(model.embed_audio(test), model.embed_text(test_texts))
    np.testing.assert_allclose(measured, expected, atol=2e-3 if whiten else 1e-9)
    assert (model.ridge, model.whitening) == (50.0, 0.7 if whiten else None)


@pytest.mark.parametrize("whiten", [False, True])
def test_it_learns_what_is_there_and_nothing_else(whiten):
    """A baseline that cannot learn is no hurdle; one that beats chance on noise leaks."""
    train, validation, test = corpus(300, 0), corpus(60, 1), corpus(80, 2)
    rest = {"validation_statistics": validation[0], "validation_texts": validation[1]}
    rows = linear_baseline(*train, *test, whiten=whiten, prefix="b", **rest)
    assert rows["b/audio_to_text/R@10"]["value"] > 0.8
    assert rows["b/audio_to_text/R@10"]["n_clips"] == 80
    assert "chosen on validation" in rows["b/audio_to_text/R@1"]["protocol"]
    shuffled = np.random.default_rng(0).permutation(300)
    wrong = [train[1][i] for i in shuffled]
    rows = linear_baseline(train[0], wrong, *test, whiten=whiten, prefix="b", **rest)
    row = rows["b/audio_to_text/R@10"]
    assert row["value"] < row["chance"] + 0.15


def test_strengths_are_the_best_on_validation():
    """Tuned on anything else (the test split!) the baseline would be unfair."""
    statistics, texts = corpus(60, 1)
    captions, index = distinct_captions(texts)

    def score(model):
        rows = retrieval_metrics(
            model.embed_audio(statistics), model.embed_text(captions), index, prefix=""
        )
        return sum(rows[f"/{way}/mAP@10"]["value"] for way in ("audio_to_text", "text_to_audio"))

    grid = {"ridge_strengths": [10.0, 1e5], "whitening_strengths": [0.01, 100.0]}
    chosen = fitted(True, **grid)
    scores = {
        (r, g): score(fitted(True, ridge_strengths=[r], whitening_strengths=[g]))
        for r in grid["ridge_strengths"]
        for g in grid["whitening_strengths"]
    }
    assert scores[chosen.ridge, chosen.whitening] == max(scores.values()) > min(scores.values())


def test_constant_statistics_and_odd_clips_do_no_harm():
    """A silent band, or one deafening clip, would break the whole regression."""
    statistics, texts = corpus(300, 0)
    odd = np.concatenate([statistics, np.ones((300, 1))], axis=1)
    odd[7] *= 1e6
    held_out, held_out_texts = corpus(60, 1)
    held_out = np.concatenate([held_out, np.full((60, 1), 5.0)], axis=1)
    rows = linear_baseline(
        odd, texts, held_out, held_out_texts, validation_statistics=held_out,
        validation_texts=held_out_texts, prefix="b",
    )  # fmt: skip
    assert np.isfinite(rows["b/audio_to_text/mAP@10"]["value"])


def test_wrong_input_is_explained():
    """Shifted rows between sounds and captions would silently give chance."""
    train, validation = corpus(300, 0), corpus(60, 1)
    with pytest.raises(UserError, match="training: 300 clips but 299 captions"):
        fit_linear_baseline(train[0], train[1][:-1], *validation)
    with pytest.raises(UserError, match=r"validation.*NaN.*rows 3\)"):
        fit_linear_baseline(
            *train, np.where(np.arange(60)[:, None] == 3, np.nan, validation[0]), validation[1]
        )
    with pytest.raises(UserError, match="no word or character n-gram"):
        fit_linear_baseline(train[0][:2], ["?", "!"], *validation)
