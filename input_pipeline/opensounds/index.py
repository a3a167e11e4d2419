"""The OpenSounds index: which recordings lie in which package, and what they are.

``index.tsv.xz`` was measured once on Debian 12 (libsndfile 1.2.2) by decoding every audio file of
the packages below and pairing it with the text that ships beside it; captions were checked by
reading and by statistics, not by ear. One row is one recording with one text.
``near_duplicates.tsv.xz`` lists pairs of recordings with nearly equal log-mel spectra. Neither
holds audio. Folder names that carry a version (a source archive's first folder) are left out, so
that other versions of a package match; a path that is gone in another version is skipped and
counted. Five malformed files of lmms-common are listed too, so that every build shows how
undecodable files are counted; their ``recording`` begins with ``undecoded``.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import lzma
from importlib import resources
from typing import Literal

# Of the dataset; a change of index, split, captions or decoding is a new version.
VERSION = "1.0.0"

Manager = Literal["apt", "pip", "npm"]


@dataclasses.dataclass(frozen=True)
class Package:
    """A package that holds sounds.

    Attributes:
      name: its name in the package manager.
      manager: the client that fetches it by name.
      megabytes: size of its archive.
      licence: what is known of the sounds' licence beyond what the archive itself says.
    """

    name: str
    manager: Manager
    megabytes: float
    licence: str = ""


PACKAGES = {
    package.name: package
    for package in (
        Package("minetest-data", "apt", 3.6),
        Package("simutrans-pak64", "apt", 3.0),
        Package("lmms-common", "apt", 8.3),
        Package("sound-theme-freedesktop", "apt", 0.4),
        Package("pretty_midi", "pip", 5.6, "GPL-2 (TimGM6mb.sf2 by Tim Brechbill)"),
        Package("tuxpaint-stamps-default", "apt", 160.9),
        Package("ktuberling-data", "apt", 46.7),
        Package("foxdot", "pip", 37.6),
        Package("sonic-pi-samples", "apt", 21.9),
        Package("ufoai-sound", "apt", 18.7),
        Package("asterisk-core-sounds-en-wav", "apt", 18.3),
        Package("hydrogen-drumkits", "apt", 143),
        Package("wesnoth-1.16-data", "apt", 146),
        Package("hedgewars-data", "apt", 145),
        Package("warmux-data", "apt", 98),
        Package("supertux-data", "apt", 162),
        Package("supersonic-scsynth-samples", "npm", 34),
    )
}

_DEFAULT = (
    "tuxpaint-stamps-default",
    "ktuberling-data",
    "foxdot",
    "sonic-pi-samples",
    "ufoai-sound",
    "asterisk-core-sounds-en-wav",
    "lmms-common",
    "pretty_midi",
    "minetest-data",
    "simutrans-pak64",
)
TIERS: dict[str, tuple[str, ...]] = {
    "tiny": (
        "minetest-data",
        "simutrans-pak64",
        "lmms-common",
        "sound-theme-freedesktop",
        "pretty_midi",
    ),
    "default": _DEFAULT,
    "plus": (
        *_DEFAULT,
        "hydrogen-drumkits",
        "wesnoth-1.16-data",
        "hedgewars-data",
        "warmux-data",
        "supertux-data",
    ),
    "portable": ("foxdot", "pretty_midi", "supersonic-scsynth-samples"),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One recording with one text.

    Attributes:
      package: source package.
      path: path inside the package; ``archive#member`` where the audio sits in another file,
        ``font.sf2#bank=..`` for a note of a soundfont.
      text: what the sound is (effects, music) or what is said (speech; see ``captions``).
      kind: ``speech``, ``effect`` or ``music``.
      lang: language of the speech, as the package spells it ('' if none).
      recording: hash of the decoded PCM; equal means the same recording.
      label: the package's own name for it: the English text of a stamp, a concept, a normalised
        file name.
      zeroshot_label: one of 44 effect classes, or the General MIDI instrument of a note ('' if
        none).
    """

    package: str
    path: str
    text: str
    kind: str
    lang: str
    recording: str
    label: str
    zeroshot_label: str

    @property
    def is_note(self) -> bool:
        """True for a note to be rendered from a soundfont."""
        return ".sf2#" in self.path


def _read_table(name: str) -> list[dict[str, str]]:
    data = lzma.decompress((resources.files(__package__) / name).read_bytes()).decode()
    return list(
        csv.DictReader(io.StringIO(data, newline="\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
    )


@functools.cache
def rows() -> tuple[Row, ...]:
    """All recordings of all packages, sorted by package and path."""
    return tuple(Row(**row) for row in _read_table("index.tsv.xz"))


@functools.cache
def near_duplicates() -> tuple[tuple[tuple[str, str], tuple[str, str]], ...]:
    """Pairs of (package, path) that sound nearly the same."""
    return tuple(
        ((row["package_a"], row["path_a"]), (row["package_b"], row["path_b"]))
        for row in _read_table("near_duplicates.tsv.xz")
    )


def tier_packages(tier: str) -> tuple[Package, ...]:
    """The packages of a tier.

    Raises:
      ValueError: there is no such tier.
    """
    if tier not in TIERS:
        raise ValueError(f"tier={tier!r}: must be one of {', '.join(TIERS)}")
    return tuple(PACKAGES[name] for name in TIERS[tier])
