"""The OpenSounds index, its captions and its splits: facts about every row, no audio needed."""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from input_pipeline.opensounds import captions, index, splits


def _tier_rows(tier: str, notes: bool = False) -> list[index.Row]:
    names = index.TIERS[tier]
    return [row for row in index.rows() if row.package in names and (notes or not row.is_note)]


def _find(package: str, end: str) -> index.Row:
    (row,) = [row for row in index.rows() if row.package == package and row.path.endswith(end)]
    return row


@pytest.mark.parametrize(
    ("tier", "packages", "recorded"),
    # Clips of the tier, without twelve rows that the measured index listed twice.
    [
        ("tiny", 5, 304 + 27),
        ("default", 10, 9653),
        ("plus", 15, 9653 + 1196 + 839),
        ("portable", 3, 498),
    ],
)
def test_tiers_hold_what_they_promise(tier: str, packages: int, recorded: int) -> None:
    """A tier that silently lost a package would still train, on less."""
    assert len(index.tier_packages(tier)) == packages
    rows = [row for row in _tier_rows(tier) if not row.recording.startswith("undecoded")]
    assert len(rows) == recorded
    assert len(_tier_rows(tier, notes=True)) - len(_tier_rows(tier)) == 1659
    assert {row.package for row in _tier_rows(tier, notes=True)} == set(index.TIERS[tier])


def test_every_row_is_usable() -> None:
    """A row without text, or two examples of one id, would break training or evaluation later."""
    rows = index.rows()
    assert {row.package for row in rows} == set(index.PACKAGES)
    assert {row.kind for row in rows} == {"speech", "effect", "music"}
    for row in rows:
        assert captions.caption(row).strip() == captions.caption(row) != ""
        assert row.recording and row.path and not row.path.startswith(("/", "./"))
    ids = [example_id for example_id, _ in captions.with_ids(rows)]
    assert len(set(ids)) == len(ids)
    # The id of a recording must not depend on the tier it is built in.
    assert set(dict(captions.with_ids(_tier_rows("tiny")))) <= set(ids)


def test_captions() -> None:
    """The text a model learns and is searched by."""
    stamp = _find("tuxpaint-stamps-default", "clock_desc_be.ogg")
    assert captions.caption(stamp) == "a person says in Belarusian: Часы."
    effect = _find("tuxpaint-stamps-default", "birds/crow.ogg")
    assert captions.caption(effect) == "the sound of a crow"
    ball = _find("ktuberling-data", "ca/patata_pilota.ogg")
    assert captions.caption(ball) == "a person says in Catalan the word for: ball"
    assert (
        captions.caption(_find("ktuberling-data", "/en/ball.ogg"))
        == "a person says in English: ball"
    )
    added = _find("asterisk-core-sounds-en-wav", "/added.wav")
    assert captions.caption(added) == "a person says in English: Added."
    steps = _find("minetest-data", "default_grass_footstep.3.ogg")
    assert captions.caption(steps) == "footsteps on grass, sandbox game sound"
    note = next(row for row in index.rows() if row.path.endswith("program=40,note=60,velocity=60"))
    assert captions.caption(note) == "a violin playing the note C4"
    recorded = {captions.caption(row) for row in _tier_rows("default")}
    assert abs(len(recorded) - 8815) < 10
    with pytest.raises(ValueError, match="lang='xx'"):
        captions.caption(index.Row("p", "x.ogg", "t", "speech", "xx", "0", "", ""))


def test_zero_shot_labels() -> None:
    """Zero-shot accuracy is over these classes; a missing one would change its chance level."""
    effects = {row.zeroshot_label for row in index.rows() if row.zeroshot_label and not row.is_note}
    notes = Counter(row.zeroshot_label for row in index.rows() if row.is_note)
    assert len(effects) == 44 and {"hi-hat", "footsteps", "wolf"} <= effects
    assert len(notes) == 128 and min(notes.values()) >= 8
    assert all(row.kind != "speech" for row in index.rows() if row.zeroshot_label)


def test_rule_of_the_split() -> None:
    """Another hash or bucket would leak yesterday's test clips into tomorrow's training."""
    for key in ("A camera.", "ball", "d99828ad1bf2f3b2"):
        bucket = zlib.crc32(b"v1|" + key.encode()) % 1000
        expected = "test" if bucket < 100 else "validation" if bucket < 200 else "train"
        assert splits.split_of(key) == expected
    shares = Counter(splits.split_of(f"key {number}") for number in range(20000))
    assert shares["test"] / 20000 == pytest.approx(0.1, abs=0.01)
    assert shares["validation"] / 20000 == pytest.approx(0.1, abs=0.01)


def test_groups_equal_connected_components() -> None:
    """A group that misses a near-duplicate leaks it; checked against SciPy's graph code."""
    rows = index.rows()
    nodes: dict[str, int] = {}
    edges = []
    first: dict[object, int] = {}
    for row in rows:
        node = nodes.setdefault(splits.own_key(row), len(nodes))
        for link in (row.recording, (row.package, row.path)):
            edges.append((node, first.setdefault(link, node)))
    edges += [(first[a], first[b]) for a, b in index.near_duplicates()]
    one, two = np.array(edges).T
    graph = coo_array((np.ones(len(edges)), (one, two)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph, directed=False)
    members = defaultdict(list)
    for key, node in nodes.items():
        members[component[node]].append(key)
    for row in rows:
        assert splits.group_key(row) == min(members[component[nodes[splits.own_key(row)]]])


def test_nothing_lies_on_two_sides() -> None:
    """A recording, stamp or near-duplicate in both train and test makes every score a lie."""
    side = {row: splits.split_of(splits.group_key(row)) for row in index.rows()}
    sides = defaultdict(set)
    for row, split in side.items():
        sides["recording", row.recording].add(split)
        if row.package == "tuxpaint-stamps-default":
            sides["stamp", row.label].add(split)
        if row.package == "ktuberling-data":
            sides["concept", row.text].add(split)
    assert [key for key, found in sides.items() if len(found) > 1] == []
    of_path = {(row.package, row.path): split for row, split in side.items()}
    assert [pair for pair in index.near_duplicates() if of_path[pair[0]] != of_path[pair[1]]] == []
    # The overlap that would leak most: sonic-pi-samples lies almost whole inside supersonic.
    sonic = {row.recording for row in index.rows() if row.package == "sonic-pi-samples"}
    npm = {row.recording for row in index.rows() if row.package == "supersonic-scsynth-samples"}
    assert len(sonic & npm) > 150
    assert len(index.near_duplicates()) > 380


def test_size_of_the_default_test() -> None:
    """Published retrieval numbers hold for about 840 clips with about 820 captions."""
    rows = [
        row
        for row in _tier_rows("default")
        if splits.split_of(splits.group_key(row)) == "test"
        and not row.recording.startswith("undecoded")
    ]
    assert len(rows) == pytest.approx(840, rel=0.05)
    assert len({captions.caption(row) for row in rows}) == pytest.approx(820, rel=0.05)


def test_unknown_tier() -> None:
    """A mistyped tier must name the ones there are."""
    with pytest.raises(ValueError, match=r"tier='huge'.*tiny, default, plus, portable"):
        index.tier_packages("huge")
