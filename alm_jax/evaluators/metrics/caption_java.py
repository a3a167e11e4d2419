"""What published caption scores need Java for: the Penn Treebank tokeniser and METEOR.

Both are programs inside the package pycocoevalcap (`pip install 'alm_jax[captions]'`, 104 MB); Java
8 or newer runs them. With either missing, `unavailable` says what to install, and captions are
scored without.

Sources: Manning et al., ACL demo 2014 (tokeniser); Denkowski and Lavie, WMT 2014 (METEOR 1.5).
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from typing import Any

from alm_jax.evaluators.metrics.caption_metrics import caption_metrics
from alm_jax.evaluators.metrics.caption_words import Words

PROTOCOL = (
    "captions-v1[ptb]: coco-caption's scores on Penn Treebank words, as published; chance = the "
    "same captions given to shuffled clips"
)
METEOR = "captions-v1[ptb]: METEOR 1.5 (pycocoevalcap) on Penn Treebank words"


def unavailable() -> str:
    """Why these scores cannot be computed here, with the remedy; "" if they can."""
    missing = []
    if importlib.util.find_spec("pycocoevalcap") is None:
        missing.append("the package pycocoevalcap (pip install 'alm_jax[captions]')")
    if shutil.which("java") is None:
        missing.append("Java on the PATH (such as Debian's default-jre-headless)")
    if not missing:
        return ""
    return (
        "left out METEOR and the scores on Penn Treebank words, which published numbers are about: "
        f"they need {' and '.join(missing)}. predictions.csv holds what aac-metrics needs for them"
    )


def treebank_words(texts: Sequence[str]) -> list[Words]:
    """Words of texts, lower case and without punctuation, by one run of the Java tokeniser."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # A text of nothing would shift the lines; a full stop is dropped as punctuation.
    asked = {row: [{"caption": text.strip() or "."}] for row, text in enumerate(texts)}
    found = PTBTokenizer().tokenize(asked)
    return [tuple(found[row][0].split()) for row in range(len(texts))]


def meteor(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> float:
    """Corpus METEOR 1.5 in [0, 1] of words, several references a clip."""
    from pycocoevalcap.meteor.meteor import Meteor

    said = {row: [" ".join(words)] for row, words in enumerate(candidates)}
    true = {row: [" ".join(words) for words in own] for row, own in enumerate(references)}
    score, _ = Meteor().compute_score(true, said)
    return float(score)


def metrics(
    candidates: Sequence[str], references: Sequence[Sequence[str]], prefix: str
) -> dict[str, dict[str, Any]]:
    """The rows of `caption_metrics` on Treebank words, `{prefix}/CIDEr-D[ptb]`, and METEOR.

    Args:
      candidates: one generated caption a clip.
      references: the true captions of each clip.
      prefix: names start with it.
    """
    flat = treebank_words([*candidates, *(text for own in references for text in own)])
    rows = caption_metrics(
        candidates,
        references,
        prefix=prefix,
        suffix="[ptb]",
        words_of=lambda _: flat,  # it asks for the same texts in the same order
        protocol=PROTOCOL,
    )
    words = iter(flat[len(candidates) :])
    true = [[next(words) for _ in own] for own in references]
    rows[f"{prefix}/METEOR"] = {
        "value": meteor(flat[: len(candidates)], true),
        "chance": None,
        "unit": "score",
        "n_clips": len(candidates),
        "n_captions": sum(map(len, references)),
        "protocol": METEOR,
    }
    return rows
