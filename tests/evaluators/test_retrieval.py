"""Retrieval numbers against a naive ranking loop, and what must not move them."""

import tracemalloc

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics import ranking
from alm_jax.evaluators.metrics.ranking import Positives, rank_positives, unit_grid
from alm_jax.evaluators.metrics.retrieval import (
    distinct_captions,
    retrieval_metrics,
    select_clips,
)

METRICS = ("R@1", "R@5", "R@10", "mAP@10", "median_rank")


def naive(audio, text, right, tolerance=1e-6):
    """Metrics of one direction by sorting in Python: wrong items go first among ties.

    right: for each query row of `audio`, the set of right rows of `text`.
    """
    ranks, precisions = [], []
    for q, answers in enumerate(right):
        if not answers:
            continue
        cosine = [
            float(np.dot(audio[q], t) / np.linalg.norm(audio[q]) / np.linalg.norm(t)) for t in text
        ]
        first, gained = None, 0.0
        for t, item in enumerate(sorted(answers, key=lambda j: -cosine[j]), 1):
            limit = cosine[item] - tolerance
            wrong = [j for j in range(len(text)) if j not in answers and cosine[j] >= limit]
            rank = t + len(wrong)
            first = first or rank
            gained += t / rank if rank <= 10 else 0.0
        ranks.append(first)
        precisions.append(gained / len(answers))
    ranks = np.array(ranks)
    return [
        *(float(np.mean(ranks <= k)) for k in (1, 5, 10)),
        float(np.mean(precisions)),
        float(np.median(ranks)),
    ]


def problem(seed=0, n=83, m=60, width=16, noise=1.0):
    """Embeddings of clips around their caption's; some captions have several clips, some none."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(m, width)).astype(np.float32)
    caption = rng.integers(0, m - 5, n)
    audio = (text[caption] + noise * rng.normal(size=(n, width))).astype(np.float32)
    return audio, text, caption


def values(results, direction, prefix="eval/retrieval"):
    return [results[f"{prefix}/{direction}/{metric}"]["value"] for metric in METRICS]


@pytest.mark.parametrize("block", [7, 2048])
@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_both_directions_equal_the_naive_loop(monkeypatch, block, noise):
    """The headline numbers would be wrong, or depend on the block size."""
    monkeypatch.setattr(ranking, "_BLOCK", block)
    audio, text, caption = problem(noise=noise)
    results = retrieval_metrics(audio, text, caption)
    by_caption = [set(np.flatnonzero(caption == j)) for j in range(len(text))]
    expected = naive(audio.astype(float), text.astype(float), [{c} for c in caption])
    assert values(results, "audio_to_text") == pytest.approx(expected, abs=1e-12)
    expected = naive(text.astype(float), audio.astype(float), by_caption)
    assert values(results, "text_to_audio") == pytest.approx(expected, abs=1e-12)
    row = results["eval/retrieval/text_to_audio/R@1"]
    assert row["n_clips"] == 83 and row["n_captions"] == 60
    assert row["n_queries"] == sum(bool(c) for c in by_caption)


def test_several_captions_a_clip_equal_the_naive_loop():
    """Clotho-like sets (five captions a clip) would be scored wrongly."""
    rng = np.random.default_rng(3)
    audio, text = rng.normal(size=(12, 8)), rng.normal(size=(40, 8))
    table = np.stack([rng.permutation(40)[:5] for _ in range(12)])
    table[4, 3:] = -1
    right = [set(row[row >= 0].tolist()) for row in table]
    results = retrieval_metrics(audio, text, table)
    assert values(results, "audio_to_text") == pytest.approx(naive(audio, text, right), abs=1e-12)
    back = [{i for i in range(12) if j in right[i]} for j in range(40)]
    assert values(results, "text_to_audio") == pytest.approx(naive(text, audio, back), abs=1e-12)


def test_order_of_clips_and_captions_changes_no_bit():
    """The same model would get other numbers from another file order."""
    audio, text, caption = problem(n=400, m=150, width=48)
    audio[7] = audio[3]
    text[9] = text[2]
    expected = retrieval_metrics(audio, text, caption)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        clips, captions = rng.permutation(400), rng.permutation(150)
        where = np.argsort(captions)
        shuffled = retrieval_metrics(audio[clips], text[captions], where[caption[clips]])
        assert shuffled == expected


def test_block_size_changes_no_bit(monkeypatch):
    """A machine with another memory budget would report other numbers."""
    audio, text, caption = problem(n=90, m=70, width=33)
    expected = retrieval_metrics(audio, text, caption)
    for block in (1, 32, 89):
        monkeypatch.setattr(ranking, "_BLOCK", block)
        assert retrieval_metrics(audio, text, caption) == expected


def test_scores_are_exact_whatever_multiplies_them():
    """Ranks would depend on BLAS, threads or block size through rounding."""
    rng = np.random.default_rng(0)
    a, b = (unit_grid(rng.normal(size=(50, 1024)), "x") for _ in range(2))
    exact = a.astype(object) @ b.astype(object).T
    assert (a.astype(np.float64) @ b.astype(np.float64).T == exact.astype(np.float64)).all()
    assert max(abs(int(x)) for x in exact.ravel()) < 2**53


def test_length_and_scale_of_embeddings_do_not_matter():
    """Unnormalised outputs (or float16, or huge ones) must rank by cosine all the same."""
    audio, text, caption = problem()
    expected = retrieval_metrics(audio, text, caption)
    assert (
        retrieval_metrics(audio * 2.0**90, text.astype(np.float64) * 2.0**-500, caption) == expected
    )


def test_float32_noise_between_frameworks_gives_equal_numbers():
    """JAX and exported PyTorch embeddings differ by float32 noise; their numbers must not.

    Every clip and caption appears twice, so that without a tolerance noise would break the ties.
    """
    audio, text, caption = problem(n=200, m=100, width=64)
    audio, text = np.repeat(audio, 2, axis=0), np.repeat(text, 2, axis=0)
    caption = np.repeat(caption, 2) * 2 + np.tile([0, 1], 200)
    expected = retrieval_metrics(audio, text, caption)
    rng = np.random.default_rng(5)
    noisy = [x * (1 + 2e-7 * rng.normal(size=x.shape)) for x in (audio, text)]
    assert retrieval_metrics(*(x.astype(np.float32) for x in noisy), caption) == expected
    assert expected["eval/retrieval/audio_to_text/R@1"]["value"] == 0.0


@pytest.mark.parametrize("jitter", [0.0, 1e-8])
def test_a_collapsed_model_scores_at_its_worst(jitter):
    """With `>` instead of `>=` a model that always answers the same has R@1 = 1."""
    rng = np.random.default_rng(0)
    point = rng.normal(size=8)
    audio = point + jitter * rng.normal(size=(30, 8))
    text = point + jitter * rng.normal(size=(20, 8))
    caption = np.arange(30) % 20
    results = retrieval_metrics(audio, text, caption)
    assert values(results, "audio_to_text") == [0, 0, 0, 0, 20]
    assert values(results, "text_to_audio") == [0, 0, 0, 0, 29.5]  # 10 captions have two clips
    zeros = retrieval_metrics(np.zeros((30, 8)), np.zeros((20, 8)), caption)
    assert values(zeros, "audio_to_text") == [0, 0, 0, 0, 20]


def test_a_perfect_model_scores_at_its_best():
    """The right answers must be able to win."""
    caption = np.arange(30) % 20
    results = retrieval_metrics(np.eye(20)[caption], np.eye(20), caption)
    for direction in ("audio_to_text", "text_to_audio"):
        assert values(results, direction) == [1, 1, 1, 1, 1]


def test_random_embeddings_score_at_their_chance():
    """The chance printed beside a number must be what knowing nothing gives."""
    rng = np.random.default_rng(0)
    caption = rng.integers(0, 40, 100)
    runs = [
        retrieval_metrics(
            rng.normal(size=(100, 32)), rng.normal(size=(40, 32)), caption, intervals=False
        )
        for _ in range(60)
    ]
    for name, row in runs[0].items():
        seen = np.array([run[name]["value"] for run in runs])
        error = seen.std() / np.sqrt(len(seen))
        slack = 1.0 if row["unit"] == "rank" else 0.0  # a sample median is only nearly unbiased
        assert abs(seen.mean() - row["chance"]) < 4 * error + slack, name


def test_non_finite_embeddings_are_refused_by_row():
    """NaN compares false with everything: a broken model would silently get a number."""
    audio, text, caption = problem()
    audio[[4, 11], 3] = np.nan, np.inf
    with pytest.raises(UserError, match=r"audio.*2 of 83 rows.*4, 11"):
        retrieval_metrics(audio, text, caption)
    with pytest.raises(UserError, match=r"text.*rows 2\)"):
        retrieval_metrics(text, np.where(np.arange(60)[:, None] == 2, np.nan, text), np.arange(60))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, t, c: (a, t, c + 60), "outside 0..59"),
        (lambda a, t, c: (a, t, c - 1), "outside 0..59"),
        (lambda a, t, c: (a, t, c[:-1]), "83 audio embeddings"),
        (lambda a, t, c: (a[:, :4], t, c), "one width"),
        (lambda a, t, c: (a[:0], t, c[:0]), "at least one"),
        (lambda a, t, c: (a, t, c.astype(float)), "integers"),
        (lambda a, t, c: (a, t, np.where(np.arange(83) == 5, -1, c)[:, None]), "clip 5"),
    ],
)
def test_wrong_input_is_explained(change, message):
    """A mismatch must not become a number."""
    with pytest.raises(UserError, match=message):
        retrieval_metrics(*change(*problem()))


def test_distinct_captions():
    """Repeated captions would otherwise count as wrong answers to each other's clips."""
    captions, index = distinct_captions(["rain", "a dog", "rain", "Rain", "дождь"])
    assert captions == ["rain", "a dog", "Rain", "дождь"]
    assert index.tolist() == [0, 1, 0, 2, 3]
    captions, table = distinct_captions([["rain", "wet"], ["a dog"], ["wet", "wind"]])
    assert captions == ["rain", "wet", "a dog", "wind"]
    assert table.tolist() == [[0, 1], [2, -1], [1, 3]]
    _, table = distinct_captions([["rain"], []])
    with pytest.raises(UserError, match="1 clips have no caption, first clip 1"):
        retrieval_metrics(np.ones((2, 3)), np.ones((1, 3)), table)


def test_subset_is_scored_against_its_own_captions():
    """Numbers for a part of the test set (not speech) would use the whole gallery."""
    audio, text, caption = problem()
    keep = caption % 3 == 0
    part = retrieval_metrics(*select_clips(audio, text, caption, keep))
    names = sorted(set(caption[keep].tolist()))
    again = [names.index(c) for c in caption[keep]]
    assert part == retrieval_metrics(audio[keep], text[names], again)
    assert part["eval/retrieval/audio_to_text/R@1"]["n_captions"] == len(names)


def test_memory_stays_far_below_the_score_matrix(monkeypatch):
    """100k x 100k scores are 80 GB: the evaluation would be killed at the end of a run."""
    monkeypatch.setattr(ranking, "_BLOCK", 256)
    rng = np.random.default_rng(0)
    a, b = (unit_grid(rng.normal(size=(6000, 4)), "x") for _ in range(2))
    right = Positives(items=np.arange(6000), counts=np.ones(6000, np.int64))
    tracemalloc.start()
    rank_positives(a, b, right)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000 * 6000 * 8 / 50
