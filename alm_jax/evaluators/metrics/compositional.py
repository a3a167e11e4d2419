"""Compositional understanding: which caption belongs to which of two clips with the same words.

A group is two clips and their two captions; a quarter of CompA-order's groups have a third of each.
With s(c, a) the cosine of caption c and clip a:

* text score: each clip is closer to its own caption than to the others, s(i, i) > s(j, i);
* audio score: each caption is closer to its own clip than to the others, s(i, i) > s(i, j);
* group score: both.

Random scores of two get 1/4, 1/4 and 1/6; of three 1/27, 1/27 and 1/60. Ties count against the
model.

Sources: Ghosh et al., CompA, ICLR 2024 (`evaluation/benchmark_eval.py`: f, g and h score, of the
first two of each group alone); Thrush et al., Winoground, CVPR 2022. That no published number
counts the third clip is not confirmed by the paper's text, so rows with it have names of their own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from alm_jax.errors import UserError
from alm_jax.evaluators.metrics.bootstrap import mean_interval
from alm_jax.evaluators.metrics.ranking import GRID, TIE_TOLERANCE, unit_grid
from alm_jax.evaluators.results import with_interval
from input_pipeline.formats.audio_lookup import AudioFiles
from input_pipeline.formats.tables import read_table

PROTOCOL = "compositional-v1: cosine, ties within {tolerance:g} lose"
# Clip and caption of each side, by the names that CompA's tables have.
_COLUMNS = ("pair_file", "pair_caption", "reversed_pair_file", "reversed_pair_caption")
_THIRD = ("triplet_file", "triplet_caption")
_NONE = ("", "-")  # what CompA-order has where a group has no third clip
# Chance of text, audio and group score of groups of two and of three.
_CHANCE = {2: (1 / 4, 1 / 4, 1 / 6), 3: (1 / 27, 1 / 27, 1 / 60)}
_SCORES = (
    ("text_score", "f: each clip closer to its own caption"),
    ("audio_score", "g: each caption closer to its own clip"),
    ("group_score", "h: both"),
)


@dataclasses.dataclass(frozen=True)
class Groups:
    """A table of groups.

    Attributes:
      files: paths [g][2 or 3].
      captions: [g][2 or 3], in the order of the files.
      fingerprint: hash of the captions and of the files' content.
    """

    files: list[tuple[Path, ...]]
    captions: list[tuple[str, ...]]
    fingerprint: str

    @property
    def sizes(self) -> list[int]:
        """Clips of each group."""
        return [len(group) for group in self.files]


def read_groups(path: Path) -> Groups:
    """Reads a table with CompA's columns; audio is looked for below the table's folder.

    CompA-attribute's `pair_file` are names of videos; where `pair_file.1` stands beside it, that is
    the name of the file.

    Raises:
      UserError: not a table, a column or a file is missing, a cell is empty, or fewer than two
        groups.
    """
    if not path.is_file():
        raise UserError(
            f"--data={path}: compositional protocols take a table (CSV, TSV or JSON) with the "
            f"columns {', '.join(_COLUMNS)}, and the audio below its folder"
        )
    table = read_table(path)
    if missing := [name for name in _COLUMNS if name not in table.columns]:
        raise UserError(
            f"{path} lacks the column {', '.join(missing)} (it has {', '.join(table.columns)}); "
            f"needed are {', '.join(_COLUMNS)}"
        )
    audio = AudioFiles(path.parent)
    files, captions = [], []
    digest = hashlib.sha256()
    for line, cells in table.rows:
        text = {name: str(value or "").strip() for name, value in cells.items()}
        names: tuple[str, ...] = _COLUMNS
        if any(text.get(name, "") not in _NONE for name in _THIRD):
            names += _THIRD
        if empty := [name for name in names if text.get(name, "") in _NONE]:
            raise UserError(f"{table.where(line)}: {empty[0]} is empty")
        group = []
        for name in names[::2]:
            wanted = text.get(f"{name}.1") or text[name]
            found = audio.find(wanted)
            if found is None:
                raise UserError(f"{table.where(line)}: {audio.why_missing(wanted)}")
            digest.update(hashlib.sha256(found.read_bytes()).digest())
            group.append(found)
        files.append(tuple(group))
        captions.append(tuple(text[name] for name in names[1::2]))
        digest.update(repr(captions[-1]).encode())
    if len(files) < 2:
        raise UserError(f"{path} has {len(files)} groups: two at least make a share")
    return Groups(files, captions, digest.hexdigest()[:16])


def compositional_metrics(
    audio: ArrayLike,
    text: ArrayLike,
    sizes: list[int],
    *,
    prefix: str,
    tie_tolerance: float = TIE_TOLERANCE,
) -> dict[str, dict[str, Any]]:
    """Text, audio and group score.

    Args:
      audio: embeddings of clips [n, D], those of a group after each other.
      text: embeddings of their captions [n, D].
      sizes: clips of each group, 2 or 3, n together.
      prefix: names start with it.
      tie_tolerance: cosine difference up to which two scores are tied.

    Returns:
      Rows `{prefix}/text_score`, `/audio_score`, `/group_score` of the first two of each group; and
      where there are groups of three, `/text_score[triplets]` and so on of all of each.
    """
    ends = np.cumsum(sizes)[:-1]
    clips = np.split(unit_grid(audio, "audio").astype(np.float64), ends)
    captions = np.split(unit_grid(text, "text").astype(np.float64), ends)
    margin = np.rint(tie_tolerance * GRID * GRID)
    protocol = PROTOCOL.format(tolerance=tie_tolerance)
    rows = {}
    forms = [("", [2] * len(sizes), "CompA's {}, as released: the first two of each group")]
    if max(sizes) > 2:
        what = "as CompA's {}, among all two or three of each group"
        forms.append(("[triplets]", sizes, what))
    for suffix, taken, convention in forms:
        right = np.asarray(
            [
                _right(own[:size] @ heard[:size].T, margin)
                for own, heard, size in zip(captions, clips, taken, strict=True)
            ]
        )
        chance = np.mean([_CHANCE[size] for size in taken], axis=0)
        for place, (name, meaning) in enumerate(_SCORES):
            rows[f"{prefix}/{name}{suffix}"] = {
                "value": float(right[:, place].mean()),
                "chance": float(chance[place]),
                "unit": "fraction",
                "n_clips": sum(taken),
                "n_captions": sum(taken),
                "n_queries": len(taken),
                "protocol": protocol,
                "convention": convention.format(meaning),
                **with_interval(mean_interval(right[:, place]), "groups"),
            }
    return rows


def _right(score: np.ndarray, margin: float) -> tuple[bool, bool, bool]:
    """Whether a group is right by text, by audio, and by both; score [captions, clips]."""
    own = np.diagonal(score)
    other = np.where(np.eye(len(score), dtype=bool), -np.inf, score)
    by_text = bool((own > other.max(axis=0) + margin).all())
    by_audio = bool((own > other.max(axis=1) + margin).all())
    return by_text, by_audio, by_text and by_audio
