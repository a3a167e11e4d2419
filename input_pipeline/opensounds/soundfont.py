"""Reads SoundFont 2 files: samples, and the zones of presets and instruments.

Source: SoundFont Technical Specification 2.04, chapters 5 (RIFF), 7 (layout) and 8.5 (how zones
combine).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import struct
from pathlib import Path

import numpy as np

from input_pipeline.opensounds import archives

# Generator numbers this file needs (8.1.2); the rest stands in notes.py.
INSTRUMENT, KEY_RANGE, VEL_RANGE, SAMPLE = 41, 43, 44, 53

# Generator number -> amount.
Zone = dict[int, int]


class SoundFontError(RuntimeError):
    """A soundfont that cannot be read, or that lacks what was asked of it."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One recording: places in the pool, rate in Hz, MIDI key it holds, correction in cents."""

    start: int
    end: int
    loop_start: int
    loop_end: int
    rate: int
    root: int
    correction: int


@dataclasses.dataclass(frozen=True)
class SoundFont:
    """A parsed soundfont: int16 [S] pool of samples, zones of presets and instruments."""

    pool: np.ndarray
    samples: tuple[Sample, ...]
    presets: dict[tuple[int, int], list[Zone]]
    instruments: tuple[list[Zone], ...]


def _chunks(data: memoryview) -> dict[bytes, memoryview]:
    """All leaf chunks of a RIFF file by name."""
    found: dict[bytes, memoryview] = {}
    position = 0
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        body = data[position + 8 : position + 8 + size]
        if name in (b"RIFF", b"LIST"):
            found |= _chunks(body[4:])
        else:
            found[name] = body
        position += 8 + size + size % 2
    return found


def _zones(
    bags: memoryview, generators: memoryview, first: int, last: int, terminal: int
) -> list[Zone]:
    """Zones ``first`` to ``last``, the global one (first, without ``terminal``) merged in."""
    zones: list[Zone] = []
    common: Zone = {}
    for bag in range(first, last):
        begin, end = struct.unpack_from("<H2xH", bags, bag * 4)
        # Ranges and indices are unsigned; everything else is signed.
        zone = {}
        for number, value in struct.iter_unpack("<Hh", generators[begin * 4 : end * 4]):
            zone[number] = (
                value & 0xFFFF if number in (KEY_RANGE, VEL_RANGE, INSTRUMENT, SAMPLE) else value
            )
        if terminal in zone:
            zones.append(common | zone)
        elif bag == first:
            common = zone
    return zones


def parse(data: bytes) -> SoundFont:
    """Parses a SoundFont 2 file.

    Raises:
      SoundFontError: the data is not one, or it is damaged.
    """
    try:
        chunk = _chunks(memoryview(data))
        presets = {}
        heads = list(struct.iter_unpack("<20sHHH12x", chunk[b"phdr"]))
        for (_, program, bank, first), (_, _, _, last) in itertools.pairwise(heads):
            presets[bank, program] = _zones(chunk[b"pbag"], chunk[b"pgen"], first, last, INSTRUMENT)
        names = list(struct.iter_unpack("<20sH", chunk[b"inst"]))
        instruments = tuple(
            _zones(chunk[b"ibag"], chunk[b"igen"], first, last, SAMPLE)
            for (_, first), (_, last) in itertools.pairwise(names)
        )
        samples = tuple(
            Sample(*fields) for fields in struct.iter_unpack("<20x5IBb4x", chunk[b"shdr"])
        )
        return SoundFont(np.frombuffer(chunk[b"smpl"], "<i2"), samples, presets, instruments)
    except (KeyError, struct.error, ValueError) as error:
        raise SoundFontError(f"not a SoundFont 2 file, or a damaged one ({error!r})") from error


@functools.lru_cache(maxsize=1)
def load(archive: Path, member: str) -> SoundFont:
    """Parses the soundfont ``member`` of a package archive (kept for the next call).

    Raises:
      SoundFontError: it is not there or damaged.
      ArchiveError: the archive is damaged.
    """
    for _, data in archives.read_members(archive, [member]):
        return parse(data)
    raise SoundFontError(f"{archive}: has no {member}")
