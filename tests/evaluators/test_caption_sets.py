"""Retrieval with several captions a clip, against the libraries whose forms are claimed."""

from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
import torch
from torchmetrics.retrieval import RetrievalMAP, RetrievalRecall

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.caption_sets import caption_set_metrics
from alm_jax.evaluators.metrics.retrieval import distinct_captions

CLIPS, CAPTIONS, WIDTH = 40, 5, 16


def problem(noise: float = 1.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of clips and of their five captions, which are all different."""
    rng = np.random.default_rng(0)
    audio = rng.normal(size=(CLIPS, WIDTH))
    text = np.repeat(audio, CAPTIONS, axis=0) + noise * rng.normal(size=(CLIPS * CAPTIONS, WIDTH))
    return audio, text, np.arange(CLIPS * CAPTIONS).reshape(CLIPS, CAPTIONS)


def cosines(audio: np.ndarray, text: np.ndarray) -> np.ndarray:
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (audio, text)]
    return unit[0] @ unit[1].T


def value(rows: dict, name: str) -> float:
    return rows[f"eval/x/{name}"]["value"]


@pytest.fixture(scope="module")
def rows() -> dict:
    return caption_set_metrics(*problem(), prefix="eval/x")


@pytest.fixture(scope="module")
def score() -> np.ndarray:
    return cosines(*problem()[:2])


def trec(score: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """trec_eval's means of `score` [queries, gallery] with bool `right`."""
    qrel = {f"q{q}": {f"d{d}": 1 for d in np.flatnonzero(row)} for q, row in enumerate(right)}
    ran = {f"q{q}": {f"d{d}": float(s) for d, s in enumerate(row)} for q, row in enumerate(score)}
    wanted = {"map_cut.10", "recall.1,5,10", "success.1,5,10"}
    found = pytrec_eval.RelevanceEvaluator(qrel, wanted).evaluate(ran)
    return {name: np.mean([one[name] for one in found.values()]) for name in found["q0"]}


RIGHT = np.repeat(np.eye(CLIPS, dtype=bool), CAPTIONS, axis=1)


def test_primary_numbers_equal_trec_eval(rows: dict, score: np.ndarray) -> None:
    """The headline mAP@10 and R@k would not be those of WavCaps' and trec_eval's users."""
    found = trec(score, RIGHT)
    assert value(rows, "audio_to_text/mAP@10") == pytest.approx(found["map_cut_10"], abs=1e-12)
    for k in (1, 5, 10):
        assert value(rows, f"audio_to_text/R@{k}") == pytest.approx(found[f"success_{k}"])
        assert value(rows, f"audio_to_text/R@{k}[trec]") == pytest.approx(found[f"recall_{k}"])
    found = trec(score.T, RIGHT.T)
    assert value(rows, "text_to_audio/mAP@10") == pytest.approx(found["map_cut_10"], abs=1e-12)
    for k in (1, 5, 10):
        assert value(rows, f"text_to_audio/R@{k}") == pytest.approx(found[f"recall_{k}"])
    assert rows["eval/x/text_to_audio/R@1"]["n_queries"] == CLIPS * CAPTIONS
    assert rows["eval/x/audio_to_text/R@1"]["n_gallery"] == CLIPS * CAPTIONS


def test_divided_by_found_equals_torchmetrics(rows: dict, score: np.ndarray) -> None:
    """The number beside Cacophony's would be another one than theirs."""
    flat = torch.tensor(score).flatten()
    owner = torch.arange(CLIPS).repeat_interleave(CLIPS * CAPTIONS)
    target = torch.tensor(RIGHT).flatten()
    found = RetrievalMAP(top_k=10)(flat, target, indexes=owner).item()
    assert value(rows, "audio_to_text/mAP@10[found]") == pytest.approx(found, abs=1e-6)  # float32
    recall = RetrievalRecall(top_k=5)(flat, target, indexes=owner).item()
    assert value(rows, "audio_to_text/R@5[trec]") == pytest.approx(recall, abs=1e-6)


def test_unsorted_ranks_equal_a_plain_loop(rows: dict, score: np.ndarray) -> None:
    """The number beside LAION-CLAP's would not be what their released code computes."""
    total = []
    for clip, row in enumerate(score):
        rank_of = np.argsort(np.argsort(-row))  # from 0, in the order of the file
        kept = [rank for rank in rank_of[5 * clip : 5 * clip + 5] if rank < 10]
        total.append(sum((j + 1) / (rank + 1) for j, rank in enumerate(kept)) / 5)
    assert value(rows, "audio_to_text/mAP@10[laion]") == pytest.approx(np.mean(total), abs=1e-12)
    assert value(rows, "audio_to_text/mAP@10[laion]") > value(rows, "audio_to_text/mAP@10")


def test_a_caption_that_two_clips_share() -> None:
    """It must not be won for free, and is right for both where strings are compared."""
    audio = np.eye(3)
    captions = [["a", "shared"], ["shared", "b"], ["c", "c"]]
    strings, table = distinct_captions(captions)
    assert strings == ["a", "shared", "b", "c"]
    text = np.array([[0, 0, 1.0], [1, 1, 0], [0, 0, 1.0], [0, 0, 1.0]])
    rows = caption_set_metrics(audio, text, table, prefix="eval/x")
    # Clips 0 and 1 are nearest to "shared", which stands in the gallery twice: its own copy is tied
    # with the other clip's.
    assert value(rows, "audio_to_text/R@1") == pytest.approx(0)  # "c" is tied with "a" and "b"
    assert value(rows, "audio_to_text/R@1[strings]") == pytest.approx(2 / 3)
    # Queries a, shared, shared, b, c, c: of "shared" both clips are as near, so rank 2.
    assert value(rows, "text_to_audio/R@1") == pytest.approx(2 / 6)
    assert rows["eval/x/text_to_audio/R@1"]["n_queries"] == 6


def test_ties_and_order() -> None:
    """A collapsed model would score, or another order of the files give another number."""
    audio, text, table = problem()
    collapsed = caption_set_metrics(np.ones_like(audio), np.ones_like(text), table, prefix="eval/x")
    for name, row in collapsed.items():
        worst = name.endswith("median_rank") or row["value"] == 0
        assert worst, name
    expected = caption_set_metrics(audio, text, table, prefix="eval/x")
    order = np.random.default_rng(3).permutation(CLIPS)
    assert caption_set_metrics(audio[order], text, table[order], prefix="eval/x") == expected


def test_clips_with_other_numbers_of_captions() -> None:
    """MACS has two to five a clip: means would be over padding."""
    audio, text, table = problem()
    ragged = table.copy()
    ragged[::2, 2:] = -1
    rows = caption_set_metrics(audio, text, ragged, prefix="eval/x")
    used = ragged[ragged >= 0]
    right = np.zeros((CLIPS, len(used)), bool)
    right[np.repeat(np.arange(CLIPS), (ragged >= 0).sum(1)), np.arange(len(used))] = True
    found = trec(cosines(audio, text[used]), right)
    assert value(rows, "audio_to_text/mAP@10") == pytest.approx(found["map_cut_10"], abs=1e-12)
    assert rows["eval/x/text_to_audio/R@1"]["n_queries"] == len(used)


def test_chance_is_what_random_embeddings_score() -> None:
    """A chance of another gallery would stand beside the numbers."""
    rng = np.random.default_rng(0)
    table = problem()[2]
    runs = [
        caption_set_metrics(
            rng.normal(size=(CLIPS, 8)),
            rng.normal(size=(CLIPS * 5, 8)),
            table,
            prefix="eval/x",
            intervals=False,
        )
        for _ in range(60)
    ]
    for name, row in runs[0].items():
        if row["chance"] is not None and not name.endswith("median_rank"):
            seen = np.array([run[name]["value"] for run in runs])
            assert abs(seen.mean() - row["chance"]) < 4 * seen.std() / np.sqrt(60) + 1e-12, name


def test_one_clip_is_refused() -> None:
    """One clip is always found: 100 % would be reported."""
    with pytest.raises(UserError, match="at least two clips"):
        caption_set_metrics(np.ones((1, 4)), np.ones((5, 4)), np.arange(5)[None], prefix="x")
    with pytest.raises(UserError, match="1 clips have no caption, first clip 1"):
        caption_set_metrics(np.ones((2, 4)), np.ones((2, 4)), [[0, 1], [-1, -1]], prefix="x")
