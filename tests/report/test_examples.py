"""Which clips a report shows, and what it says was found for a text."""

import numpy as np
import pytest

from alm_jax.evaluators.clips import Clips, ZeroShotTask
from alm_jax.evaluators.metrics.retrieval import distinct_captions
from alm_jax.evaluators.suite import Evaluation, ZeroShotAnswers
from alm_jax.report.examples import HITS, class_table, search_captions, search_free, spread


def _clips(rows: list[tuple[str, str, str]]) -> Clips:
    """Clips of (kind, lang, caption)."""
    examples = tuple(
        {"id": f"package/{i}.wav", "kind": kind, "lang": lang, "text": text}
        for i, (kind, lang, text) in enumerate(rows)
    )
    captions, of_clip = distinct_captions([e["text"] for e in examples])
    return Clips("nowhere", "test", "0", 16000, examples, captions, of_clip)


@pytest.fixture
def clips() -> Clips:
    speech = [("speech", ["en", "fr", "el"][i % 3], f"a person says {i}") for i in range(90)]
    effects = [("effect", "", f"thunder {i // 2}") for i in range(8)]
    return _clips(speech + effects + [("music", "", "a piano")])


def test_rare_kinds_are_shown(clips: Clips) -> None:
    """Of a test split that is mostly speech the report would show nothing else."""
    drawn = spread(clips, 12)
    kinds = [clips.examples[row]["kind"] for row in drawn]
    assert len(drawn) == 12
    assert kinds.count("music") == 1 and kinds.count("effect") >= 4
    languages = {clips.examples[row]["lang"] for row in drawn} - {""}
    assert languages == {"en", "fr", "el"}
    texts = [clips.examples[row]["text"] for row in drawn]
    assert len(set(texts)) == len(texts)


def test_the_draw_does_not_depend_on_the_order(clips: Clips) -> None:
    """The examples would change with every build of the data, or be open to picking."""
    order = np.random.default_rng(0).permutation(len(clips))
    rows = [clips.examples[i] for i in order]
    captions, of_clip = distinct_captions([e["text"] for e in rows])
    shuffled = Clips("nowhere", "test", "0", 16000, tuple(rows), captions, of_clip)
    first = {clips.examples[row]["text"] for row in spread(clips, 10)}
    assert {shuffled.examples[row]["text"] for row in spread(shuffled, 10)} == first


def test_few_clips() -> None:
    """A test split of two clips would crash the report."""
    assert len(spread(_clips([("effect", "", "rain"), ("", "", "wind")]), 12)) == 2


def _evaluation(clips: Clips, seed: int = 0) -> Evaluation:
    rng = np.random.default_rng(seed)
    audio = rng.standard_normal((len(clips), 6)).astype(np.float32)
    text = rng.standard_normal((len(clips.captions), 6)).astype(np.float32)
    return Evaluation({}, clips, audio, text, None, [])


def test_hits_and_ranks_equal_brute_force(clips: Clips) -> None:
    """A sound would be marked right that is not, or the best ones not be the best."""
    evaluation = _evaluation(clips)
    for query in search_captions(evaluation, 12):
        t = evaluation.text[clips.captions.index(query.text)].astype(np.float64)
        a = evaluation.audio.astype(np.float64)
        cosine = a @ t / np.linalg.norm(a, axis=1) / np.linalg.norm(t)
        order = np.argsort(-cosine)
        right = [e["text"] == query.text for e in clips.examples]
        assert [hit.clip for hit in query.hits] == order[:HITS].tolist()
        assert [hit.right for hit in query.hits] == [right[i] for i in order[:HITS]]
        assert query.hits[0].score == pytest.approx(cosine.max(), abs=1e-6)
        assert query.rank == 1 + min(np.flatnonzero(np.asarray(right)[order]))
        assert query.wanted == sum(right)


def test_free_text_marks_nothing_right(clips: Clips) -> None:
    """Words that are nobody's caption have no right answer."""

    class Embedder:
        sample_rate = 16000

        def embed_audio(self, clips, sample_rate=None, *, batch_size=16):
            raise AssertionError

        def embed_text(self, strings, *, batch_size=64):
            return np.eye(6, dtype=np.float32)[: len(strings)]

    (query,) = search_free(_evaluation(clips), Embedder(), ["a dog"])
    assert query.rank is None and len(query.hits) == HITS
    assert not any(hit.right for hit in query.hits)


def test_class_table_counts() -> None:
    """The table of confusions would not add up to the accuracy."""
    labels = ("dog", "dog", "cat", "dog", "cow")
    answers = ("dog", "cat", "cat", "cat", "owl")
    task = ZeroShotTask("effects", "", np.arange(5), labels, ("cat", "cow", "dog", "owl"), ("{}",))
    rows = class_table(ZeroShotAnswers(task, answers))
    assert [(row.name, row.clips, row.right) for row in rows] == [
        ("dog", 3, 1),
        ("cat", 1, 1),
        ("cow", 1, 0),
    ]
    assert rows[0].mistaken == [("cat", 2)] and rows[2].mistaken == [("owl", 1)]
