"""Caption scores against coco-caption's own numbers and against textbook cases."""

import json
from pathlib import Path

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.caption_metrics import caption_metrics
from alm_jax.evaluators.metrics.caption_scores import bleu, cider_d, rouge_l
from alm_jax.evaluators.metrics.caption_words import tokenise

GOLDEN = json.loads(
    Path(__file__).with_name("coco_caption_golden.json").read_text(encoding="utf-8")
)


def value(results, name):
    return results[f"eval/captions/{name}"]["value"]


def test_numbers_equal_coco_caption():
    """BLEU, ROUGE-L or CIDEr-D would not mean what everybody else means by them."""
    said = [clip["candidate"] for clip in GOLDEN["clips"]]
    references = [clip["references"] for clip in GOLDEN["clips"]]
    results = caption_metrics(said, references)
    for name, expected in GOLDEN["corpus"].items():
        assert value(results, name) == pytest.approx(expected, abs=1e-12), name
    words = [tokenise(text) for text in said]
    several = [[tokenise(text) for text in texts] for texts in references]
    assert rouge_l(words, several) == pytest.approx([c["rouge_l"] for c in GOLDEN["clips"]])
    assert cider_d(words, several) == pytest.approx(
        [c["cider_d"] for c in GOLDEN["clips"]], abs=1e-12
    )


def test_bleu_by_hand():
    """Papineni's example: repeated words may match only as often as a reference has them."""
    candidate = [tokenise("the the the the the the the")]
    references = [[tokenise("The cat is on the mat."), tokenise("There is a cat on the mat.")]]
    assert bleu(candidate, references)[0] == pytest.approx(2 / 7)
    # 3 of 3 words match, closest reference has 6 (not 7): brevity exp(1 - 6/3)
    assert bleu([tokenise("the cat is")], references)[0] == pytest.approx(np.exp(-1))
    # of 5 and 7 words, equally close to 6, the shorter counts: no brevity penalty
    two = [[tokenise("a b c d e"), tokenise("a b c d e f g")]]
    assert bleu([tokenise("a b c d e f")], two)[0] == pytest.approx(1)


def test_rouge_by_hand():
    """Lin's example: LCS of 2 in sentences of 4 (police the gunman), precision = recall = 1/2."""
    reference = [[tokenise("police killed the gunman")]]
    assert rouge_l([tokenise("the gunman kill police")], reference) == pytest.approx([0.5])
    precision, recall = 1.0, 0.5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l([tokenise("police killed")], reference) == pytest.approx([expected])


def test_perfect_and_empty_captions():
    """A caption of nothing must score nothing and not stop the evaluation."""
    texts = [f"sound number {i} of a {animal} outside" for i, animal in enumerate("abcdefgh")]
    best = caption_metrics(texts, texts)
    assert value(best, "BLEU-4") == pytest.approx(1)
    assert value(best, "ROUGE-L") == pytest.approx(1)
    assert value(best, "CIDEr-D") == pytest.approx(10)
    nothing = caption_metrics([""] * 8, texts)
    assert all(row["value"] == 0 for row in nothing.values())
    wordless = caption_metrics(["a dog", "..."], ["?!", "rain"])
    assert all(np.isfinite(row["value"]) for row in wordless.values())


def test_order_of_clips_changes_no_bit():
    """Another file order would give other numbers, or another chance."""
    said = [clip["candidate"] for clip in GOLDEN["clips"]]
    references = [clip["references"] for clip in GOLDEN["clips"]]
    expected = caption_metrics(said, references)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(said))
        again = caption_metrics([said[i] for i in order], [references[i][::-1] for i in order])
        assert again == expected


def test_chance_tells_style_from_listening():
    """A model that says the same for every clip must be seen to be at chance."""
    references = [clip["references"] for clip in GOLDEN["clips"]]
    constant = caption_metrics(["a person says in French"] * len(references), references)
    for row in constant.values():
        assert row["chance"] == pytest.approx(row["value"])
    truth = caption_metrics([refs[0] for refs in references], references)
    assert value(truth, "CIDEr-D") > 5 * truth["eval/captions/CIDEr-D"]["chance"]
    row = truth["eval/captions/BLEU-4"]
    assert row["n_clips"] == 64
    assert row["n_captions"] == sum(len(refs) for refs in references)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't STOP, l’écran 'quoted'", ["don't", "stop", "l'écran", "quoted"]),
        ("foot_steps on-wood (C#4)", ["foot", "steps", "on", "wood", "c", "4"]),
        ("Часы. ΣΟΜΠΡΈΡΟ", ["часы", "σομπρέρο"]),
        ("一只熊。トマト", ["一", "只", "熊", "ト", "マ", "ト"]),
        ("हिन्दी में एक भालू", ["हिन्दी", "में", "एक", "भालू"]),
        ("곰 한 마리", ["곰", "한", "마리"]),
        ("cafe\u0301", ["café"]),
        (" ... '' ", []),
        ("", []),
    ],
)
def test_words_of_many_scripts(text, words):
    """Captions in half the languages would be one word, or none, and score 0 or 1."""
    assert list(tokenise(text)) == words


def test_long_captions_are_handled():
    """A 5,000-word caption would hang or overflow the evaluation."""
    results = caption_metrics(["word " * 60, "rain"], ["word and " * 2500, "rain"])
    assert 0 < value(results, "ROUGE-L") < 1


def test_wrong_input_is_explained():
    """A mismatch must not become a number."""
    with pytest.raises(UserError, match="2 candidates and 1 clips"):
        caption_metrics(["a", "b"], ["a"])
    with pytest.raises(UserError, match="first clip 1"):
        caption_metrics(["a", "b"], [["a"], []])
    with pytest.raises(UserError, match="0 candidates"):
        caption_metrics([], [])
