"""Compositional understanding: which caption belongs to which of two clips with the same words.

A group is two clips and two captions. With s(c, a) the cosine of caption c and clip a:

* text score: each clip is closer to its own caption, s(0,0) > s(1,0) and s(1,1) > s(0,1);
* audio score: each caption is closer to its own clip, s(0,0) > s(0,1) and s(1,1) > s(1,0);
* group score: both.

Random scores get 1/4, 1/4 and 1/6. Ties count against the model.

Sources: Ghosh et al., CompA, ICLR 2024 (`evaluation/benchmark_eval.py`: f, g and h score); Thrush
et al., Winoground, CVPR 2022.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from alm_jax.errors import UserError
from alm_jax.evaluators.bootstrap import mean_interval
from alm_jax.evaluators.ranking import GRID, TIE_TOLERANCE, unit_grid
from alm_jax.evaluators.results import with_interval
from input_pipeline.formats.audio_lookup import AudioFiles
from input_pipeline.formats.tables import read_table

PROTOCOL = "compositional-v1: cosine, ties within {tolerance:g} lose"
# Clip and caption of both sides, by the names that CompA's tables have.
_COLUMNS = ("pair_file", "pair_caption", "reversed_pair_file", "reversed_pair_caption")


@dataclasses.dataclass(frozen=True)
class Pairs:
    """A table of groups.

    Attributes:
      files: paths [g][2].
      captions: [g][2], in the order of the files.
      fingerprint: hash of the captions and of the files' content.
    """

    files: list[tuple[Path, Path]]
    captions: list[tuple[str, str]]
    fingerprint: str


def read_pairs(path: Path) -> Pairs:
    """Reads a table with CompA's columns; audio is looked for below the table's folder.

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
        values = [str(cells[name] or "").strip() for name in _COLUMNS]
        if "" in values:
            raise UserError(f"{table.where(line)}: {_COLUMNS[values.index('')]} is empty")
        pair = []
        for name in values[::2]:
            found = audio.find(name)
            if found is None:
                raise UserError(f"{table.where(line)}: {audio.why_missing(name)}")
            digest.update(hashlib.sha256(found.read_bytes()).digest())
            pair.append(found)
        files.append((pair[0], pair[1]))
        captions.append((values[1], values[3]))
        digest.update(repr(captions[-1]).encode())
    if len(files) < 2:
        raise UserError(f"{path} has {len(files)} groups: two at least make a share")
    return Pairs(files, captions, digest.hexdigest()[:16])


def compositional_metrics(
    audio: ArrayLike, text: ArrayLike, *, prefix: str, tie_tolerance: float = TIE_TOLERANCE
) -> dict[str, dict[str, Any]]:
    """Text, audio and group score.

    Args:
      audio: embeddings of clips [2 g, D], the two of a group after each other.
      text: embeddings of their captions [2 g, D].
      prefix: names start with it.
      tie_tolerance: cosine difference up to which two scores are tied.

    Returns:
      Rows `{prefix}/text_score`, `/audio_score`, `/group_score`.
    """
    clips, captions = unit_grid(audio, "audio"), unit_grid(text, "text")
    groups = len(clips) // 2
    by_group = [x.reshape(groups, 2, -1).astype(np.float64) for x in (captions, clips)]
    score = np.einsum("gcd,gad->gca", *by_group)
    margin = np.rint(tie_tolerance * GRID * GRID)
    own = score[:, [0, 1], [0, 1]]
    by_clip, by_caption = score[:, [1, 0], [0, 1]], score[:, [0, 1], [1, 0]]
    right_text = (own > by_clip + margin).all(axis=1)
    right_audio = (own > by_caption + margin).all(axis=1)
    return {
        f"{prefix}/{name}": {
            "value": float(right.mean()),
            "chance": chance,
            "unit": "fraction",
            "n_clips": 2 * groups,
            "n_captions": 2 * groups,
            "n_queries": groups,
            "protocol": PROTOCOL.format(tolerance=tie_tolerance),
            "convention": convention,
            **with_interval(mean_interval(right), "groups"),
        }
        for name, right, chance, convention in (
            ("text_score", right_text, 1 / 4, "CompA's f: each clip closer to its own caption"),
            ("audio_score", right_audio, 1 / 4, "CompA's g: each caption closer to its own clip"),
            ("group_score", right_text & right_audio, 1 / 6, "CompA's h: both"),
        )
    }
