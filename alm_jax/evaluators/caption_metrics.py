"""BLEU, ROUGE-L and CIDEr-D of generated captions, equal to coco-caption's scorers.

pycocoevalcap, the usual implementation, is a 104 MB wheel because it carries Java programs for its
tokeniser and for METEOR. The three scorers here are small, need no Java, and give its numbers on
the same tokens (tests/evaluators/test_caption_metrics.py holds values computed with it).

The tokens differ: coco-caption runs the Penn Treebank tokeniser, made for English. Here a text is
put in Unicode NFC form and lower case, a word is a run of letters, marks and digits (with
apostrophes inside: "don't" is one word), every Chinese or Japanese character is a word of its own,
and everything else only separates. So numbers are comparable between models scored here, and close
to, but not to be mixed with, published ones.

Sources: Papineni et al., ACL 2002 (BLEU); Lin, ACL workshop 2004 (ROUGE-L); Vedantam et al., CVPR
2015 (CIDEr-D).
"""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from alm_jax.errors import UserError
from alm_jax.evaluators.results import Row

PROTOCOL = (
    "captions-v1: coco-caption's BLEU (closest length), ROUGE-L (beta 1.2), CIDEr-D (sigma 6, x10) "
    "on lower-case Unicode words; chance = the same captions given to shuffled clips"
)
MAX_N = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0
CHANCE_SHUFFLES = 5

Words = tuple[str, ...]
Ngrams = Counter[Words]

# Scripts written without spaces of which every character is taken as a word.
_CHARACTER_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA")
_APOSTROPHES = "'\u2019"


def tokenise(text: str) -> Words:
    """Splits a caption into lower-case words (rules in the module's docstring).

    Args:
      text: any Unicode string.

    Returns:
      The words; empty if there are no letters, digits or marks.
    """
    words: list[str] = []
    current = ""
    for char in unicodedata.normalize("NFC", text).lower() + " ":
        kind = _kind(char)
        if kind == "letter" or (kind == "apostrophe" and current):
            current += "'" if kind == "apostrophe" else char
            continue
        if current.strip("'"):
            words.append(current.strip("'"))
        current = ""
        if kind == "character":
            words.append(char)
    return tuple(words)


def bleu(
    candidates: Sequence[Words], references: Sequence[Sequence[Words]], max_n: int = MAX_N
) -> list[float]:
    """Corpus BLEU-1 to BLEU-`max_n`.

    The reference length of a clip is that of the reference closest in length to the candidate, the
    shorter of two equally close ones. Like coco-caption, the counts carry a trace (1e-15 on
    matches, 1e-9 on guesses) that keeps the logarithm finite: without any 4-gram match BLEU-4 is
    about 1e-4 on a small corpus rather than 0.

    Args:
      candidates: words of one candidate a clip.
      references: words of one or more references a clip.
      max_n: longest n-gram.

    Returns:
      max_n values in [0, 1].
    """
    matches, guesses = [0] * max_n, [0] * max_n
    length = reference_length = 0
    for candidate, refs in zip(candidates, references, strict=True):
        length += len(candidate)
        reference_length += min(
            (len(ref) for ref in refs), key=lambda n: (abs(n - len(candidate)), n)
        )
        allowed: Ngrams = Counter()
        for ref in refs:
            allowed |= _ngrams(ref, max_n)
        for gram, count in _ngrams(candidate, max_n).items():
            matches[len(gram) - 1] += min(count, allowed[gram])
        for n in range(max_n):
            guesses[n] += max(0, len(candidate) - n)
    ratio = (length + 1e-15) / (reference_length + 1e-9)
    brevity = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    values, product = [], 1.0
    for n in range(max_n):
        product *= (matches[n] + 1e-15) / (guesses[n] + 1e-9)
        values.append(brevity * product ** (1 / (n + 1)))
    return values


def rouge_l(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """ROUGE-L of every clip.

    As in coco-caption, the best precision and the best recall over the references are combined
    (they may come from different references) with beta = 1.2, which favours recall.

    Args:
      candidates: words of one candidate a clip.
      references: words of one or more references a clip.

    Returns:
      One value in [0, 1] a clip; 0 for an empty candidate.
    """
    values = []
    for candidate, refs in zip(candidates, references, strict=True):
        common = [_common_length(candidate, ref) for ref in refs]
        precision = max(common) / max(len(candidate), 1)
        recall = max(n / max(len(ref), 1) for n, ref in zip(common, refs, strict=True))
        weight = ROUGE_BETA**2
        bottom = recall + weight * precision
        values.append((1 + weight) * precision * recall / bottom if bottom else 0.0)
    return values


def cider_d(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> list[float]:
    """CIDEr-D of every clip, times 10.

    Document frequencies are those of the references (a document is all references of a clip), so
    the value depends on the test set; on a single clip every idf, and the value, is 0. Lengths in
    the Gaussian penalty are counted in bigrams, as coco-caption's code does.

    Args:
      candidates: words of one candidate a clip.
      references: words of one or more references a clip.

    Returns:
      One value in [0, 10] a clip.
    """
    documents: Ngrams = Counter()
    for refs in references:
        documents.update(set().union(*(_ngrams(ref, MAX_N) for ref in refs)))
    log_total = math.log(len(references)) if references else 0.0
    idf = {gram: log_total - math.log(count) for gram, count in documents.items()}
    vectors: dict[Words, _Vector] = {}

    def vector(words: Words) -> _Vector:
        if words not in vectors:
            vectors[words] = _Vector(words, idf, log_total)
        return vectors[words]

    return [
        10.0 * math.fsum(vector(candidate).similarity(vector(ref)) for ref in refs) / len(refs)
        for candidate, refs in zip(candidates, references, strict=True)
    ]


def caption_metrics(
    candidates: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    prefix: str = "eval/captions",
) -> dict[str, Row]:
    """BLEU-1..4, ROUGE-L and CIDEr-D of generated captions.

    The chance beside each is what these very captions score when they are handed to the clips in
    random order (mean of five seeded shuffles): the part that comes from the style of the captions
    and not from listening.

    Args:
      candidates: one generated caption a clip; may be empty, and then scores 0.
      references: the true caption, or list of true captions, of each clip.
      prefix: names start with it: `{prefix}/CIDEr-D`.

    Returns:
      Name -> row; BLEU and ROUGE-L in [0, 1], CIDEr-D in [0, 10].

    Raises:
      UserError: numbers of candidates and references differ, or a clip without reference.
    """
    if not candidates or len(candidates) != len(references):
        raise UserError(
            f"need one candidate for each clip's references, got {len(candidates)} candidates "
            f"and {len(references)} clips"
        )
    texts = [(ref,) if isinstance(ref, str) else tuple(ref) for ref in references]
    missing = [clip for clip, refs in enumerate(texts) if not refs]
    if missing:
        raise UserError(f"{len(missing)} clips have no reference caption, first clip {missing[0]}")
    # Shuffles start from a sorted list, so that the order of the clips changes no number.
    words = [sorted(map(tokenise, several)) for several in texts]
    clips = sorted(zip(map(tokenise, candidates), words, strict=True))
    said, refs = [list(column) for column in zip(*clips, strict=True)]
    values = _all_metrics(said, refs)
    generator = np.random.default_rng(0)
    shuffled = []
    for _ in range(CHANCE_SHUFFLES):
        shuffled.append(_all_metrics([said[i] for i in generator.permutation(len(said))], refs))
    return {
        f"{prefix}/{name}": {
            "value": value,
            "chance": sum(one[name] for one in shuffled) / len(shuffled),
            "unit": "score",
            "n_clips": len(said),
            "n_captions": sum(len(several) for several in refs),
            "protocol": PROTOCOL,
        }
        for name, value in values.items()
    }


def _all_metrics(said: list[Words], refs: list[list[Words]]) -> dict[str, float]:
    values = {f"BLEU-{n}": value for n, value in enumerate(bleu(said, refs), start=1)}
    values["ROUGE-L"] = math.fsum(rouge_l(said, refs)) / len(said)
    values["CIDEr-D"] = math.fsum(cider_d(said, refs)) / len(said)
    return values


class _Vector:
    """TF-IDF weights of a caption's n-grams, by n, with their norms."""

    def __init__(self, words: Words, idf: dict[Words, float], unseen_idf: float):
        self.bigrams = max(len(words) - 1, 0)
        self.weights: list[dict[Words, float]] = [{} for _ in range(MAX_N)]
        for gram, count in _ngrams(words, MAX_N).items():
            self.weights[len(gram) - 1][gram] = count * idf.get(gram, unseen_idf)
        self.norms = [math.sqrt(math.fsum(w * w for w in n.values())) for n in self.weights]

    def similarity(self, reference: "_Vector") -> float:
        """Mean over n of the clipped cosine with a reference, damped by difference in length."""
        total = 0.0
        pairs = zip(self.weights, reference.weights, self.norms, reference.norms, strict=True)
        for mine, theirs, norm, their_norm in pairs:
            if norm and their_norm:
                shared = mine.keys() & theirs.keys()
                dot = math.fsum(min(mine[gram], theirs[gram]) * theirs[gram] for gram in shared)
                total += dot / (norm * their_norm)
        difference = self.bigrams - reference.bigrams
        return total / MAX_N * math.exp(-(difference**2) / (2 * CIDER_SIGMA**2))


@lru_cache(maxsize=1 << 16)
def _ngrams(words: Words, max_n: int) -> Ngrams:
    """Counts of all n-grams up to max_n; callers must not change the (cached) result."""
    return Counter(
        words[start : start + n] for n in range(1, max_n + 1) for start in range(len(words) - n + 1)
    )


@lru_cache(maxsize=1 << 16)
def _common_length(a: Words, b: Words) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for place, other in enumerate(b, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]


@lru_cache(maxsize=1 << 16)
def _kind(char: str) -> str:
    """'letter', 'apostrophe', 'character' (a word by itself) or 'separator'."""
    if char in _APOSTROPHES:
        return "apostrophe"
    if unicodedata.category(char)[0] not in "LMN":
        return "separator"
    name = unicodedata.name(char, "")
    whole_word = name.startswith(_CHARACTER_SCRIPTS) and unicodedata.category(char) == "Lo"
    return "character" if whole_word else "letter"
