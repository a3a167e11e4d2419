"""Which side of the split a recording is on.

A recording's own key is the English stamp text (tuxpaint), the concept (ktuberling) or its PCM hash
(all others). Recordings with equal PCM, and pairs listed as near-duplicates, are merged into one
group over ALL packages, so the side never depends on the tier; a group's key is the smallest of its
members' keys. With h = crc32("v1|" + key) % 1000 a group is test if h < 100, validation if h < 200,
else train.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Hashable, Iterable

from input_pipeline.opensounds import index

SPLITS = ("train", "validation", "test")


def own_key(row: index.Row) -> str:
    """The group key of a row before merging."""
    if row.package == "tuxpaint-stamps-default":
        return row.label
    if row.package == "ktuberling-data":
        return row.text
    return row.recording


class _Groups:
    """Union-find whose representative is the smallest member."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, key: str) -> str:
        root = key
        while (parent := self._parent.setdefault(root, root)) != root:
            root = parent
        while self._parent[key] != root:
            self._parent[key], key = root, self._parent[key]
        return root

    def union(self, a: str, b: str) -> None:
        small, large = sorted((self.find(a), self.find(b)))
        self._parent[large] = small


def merged_keys(
    rows: Iterable[index.Row],
    near_duplicates: Iterable[tuple[tuple[str, str], tuple[str, str]]],
) -> dict[str, str]:
    """Maps every own key to its group's key (the smallest one merged with it)."""
    groups = _Groups()
    by_recording: dict[Hashable, str] = {}
    by_path: dict[tuple[str, str], str] = {}
    keys = []
    for row in rows:
        key = own_key(row)
        keys.append(key)
        groups.union(key, by_recording.setdefault(row.recording, key))
        groups.union(key, by_path.setdefault((row.package, row.path), key))
    for a, b in near_duplicates:
        if a in by_path and b in by_path:
            groups.union(by_path[a], by_path[b])
    return {key: groups.find(key) for key in keys}


@functools.cache
def _index_keys() -> dict[str, str]:
    return merged_keys(index.rows(), index.near_duplicates())


def group_key(row: index.Row) -> str:
    """The key of the group an index row belongs to; equal keys never lie on two sides."""
    return _index_keys()[own_key(row)]


def split_of(key: str) -> str:
    """``train``, ``validation`` or ``test`` for a group key."""
    bucket = zlib.crc32(f"v1|{key}".encode()) % 1000
    return "test" if bucket < 100 else "validation" if bucket < 200 else "train"
