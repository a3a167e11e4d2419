"""results.json and its table."""

import json
import multiprocessing

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.evaluators.results import flatten_results, format_table, read_results, write_results


def row(value=0.5, **more):
    return {"value": value, "chance": 0.1, "unit": "fraction", "protocol": "test-v1", **more}


def test_flatten_adds_common_fields_and_keeps_own():
    """Numbers would stand in the file without their circumstances."""
    flat = flatten_results({"a": row(np.float32(0.25))}, {"b": row(split="all")}, split="test")
    assert flat["a"]["value"] == 0.25 and type(flat["a"]["value"]) is float
    assert flat["a"]["split"] == "test" and flat["b"]["split"] == "all"
    json.dumps(flat)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([{"a": row()}, {"a": row()}], "a is reported twice"),
        ([{"a": {"value": 1.0}}], "a lacks chance, protocol"),
        ([{"a": row(float("nan"))}], "a: value is nan"),
        ([{"a": row(chance=np.inf)}], "a: chance is inf"),
        ([{"a": row("0.5")}], "a: value must be a number"),
    ],
)
def test_rows_that_say_too_little_are_refused(groups, message):
    """A NaN or a number without its chance would reach the report."""
    with pytest.raises(UserError, match=message):
        flatten_results(*groups)


def test_write_merges_and_leaves_nothing_else(tmp_path):
    """A second evaluation would wipe out the first, or leave temporary files."""
    path = tmp_path / "new" / "results.json"
    write_results(path, {"a": row(), "b": row()})
    write_results(path, {"b": row(0.75), "c": row(chance=None)}, split="test")
    content = read_results(path)
    assert list(content) == ["a", "b", "c"]
    assert content["b"]["value"] == 0.75 and content["c"]["split"] == "test"
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    with pytest.raises(UserError):
        write_results(path, {"a": row(np.nan)})
    assert read_results(path) == content


def test_a_file_that_is_not_results_is_named_and_kept(tmp_path):
    """Somebody's other file would be overwritten."""
    path = tmp_path / "results.json"
    for text in ("{", "[1]", '{"a": 1}', "\x00"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"results\.json"):
            write_results(path, {"a": row()})
        assert path.read_text() == text


def _write(path, name):
    for _ in range(20):
        write_results(path, {name: row()})


def test_writers_in_several_processes_lose_nothing(tmp_path):
    """Evaluations run side by side would drop each other's rows."""
    path = tmp_path / "results.json"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write, args=(path, name)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(read_results(path)) == ["a", "b", "c"]


def test_table_shows_chance_and_sizes_beside_every_number():
    """Numbers in the terminal would be read without what they are out of."""
    table = format_table(
        {
            "eval/r/R@1": row(0.531, n_clips=880, n_captions=820),
            "eval/r/median_rank": row(9.0, chance=410.5, unit="rank", n_clips=880, n_captions=820),
            "eval/z/accuracy": row(1, n_clips=7, n_classes=44, prompt="the sound of {a}"),
            "eval/c/CIDEr-D": row(0.1234, chance=None, unit="score"),
        }
    ).splitlines()
    assert table[0].split() == [
        "metric",
        "value",
        "chance",
        "clips",
        "captions",
        "classes",
        "prompt",
    ]
    assert table[2].split() == ["eval/r/R@1", "53.1%", "10.0%", "880", "820"]
    assert table[3].split() == ["eval/r/median_rank", "9.0", "410.5", "880", "820"]
    assert table[4].split()[1:5] == ["100.0%", "10.0%", "7", "44"]
    assert table[4].endswith("the sound of {a}")
    assert table[5].split() == ["eval/c/CIDEr-D", "0.123", "-"]
    assert table[6].strip() == "test-v1"
