"""Which upload a clip comes from, as far as its id says: corpora share YouTube and Freesound.

AudioCaps, AudioSet, VGGSound, MusicCaps and a part of WavCaps are clips of YouTube videos; FSD50K,
ESC-50, UrbanSound8K and another part of WavCaps are uploads to Freesound. Clotho is too, but names
its clips by title.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from input_pipeline.formats.youtube import parse_id

_VIDEO = re.compile(r"[\w-]{11}", re.ASCII)
_YOUTUBE = frozenset(
    (
        *("AudioCaps", "AudioSet", "AudioSetCaps", "AudioSet_SL", "Auto-ACD", "MusicCaps"),
        *("VGGSound", "YouTube-8M"),
    )
)
# Where the number of the upload stands in an id, by what the adapters give as source.
_FREESOUND = {
    "FreeSound": re.compile(r"FreeSound/(\d+)"),
    "FSD50K": re.compile(r"(\d+)"),
    "ESC-50": re.compile(r"\d-(\d+)-[A-Z]-\d+"),
    "UrbanSound8K": re.compile(r"(\d+)-\d+-\d+-\d+"),
}

Origin = tuple[str, str, float | None]


def origin(example: Mapping[str, Any]) -> Origin | None:
    """Site, upload and second in it at which the clip begins (None: unknown, or all of it).

    Args:
      example: its `id`, `source` and `group`, as a prepared dataset has them; None where the id
        says nothing beyond its own dataset.
    """
    clip_id, source = str(example.get("id", "")), str(example.get("source", ""))
    if pattern := _FREESOUND.get(source):
        match = pattern.fullmatch(clip_id)
        return ("freesound", match[1], None) if match else None
    video, start, _ = parse_id(clip_id.rsplit("/", 1)[-1])
    if source in _YOUTUBE and _VIDEO.fullmatch(video):
        return "youtube", video, start
    # Ids of one and the same corpus that was prepared twice.
    return (f"corpus {source}", clip_id, None) if source and clip_id else None


class Origins:
    """Finds clips by origin."""

    def __init__(self, origins: Iterable[Origin | None]) -> None:
        """Takes the origin of every clip; `find` gives positions in this order."""
        self._places: dict[tuple[str, str], list[tuple[int, float | None]]] = {}
        for position, found in enumerate(origins):
            if found is not None:
                self._places.setdefault(found[:2], []).append((position, found[2]))

    def find(self, wanted: Origin | None) -> list[int]:
        """The clips of this origin, in order; clips of a video meet if they begin alike."""
        if wanted is None:
            return []
        start = wanted[2]
        return [
            position
            for position, other in self._places.get(wanted[:2], ())
            if start is None or other is None or abs(start - other) < 1
        ]
