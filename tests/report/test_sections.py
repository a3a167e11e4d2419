"""Sections of the report that are read from files, and the commands that it prints."""

import ast
import json
import shlex
from pathlib import Path

import pytest

from alm_jax import caption, embed, search
from alm_jax import eval as evaluation
from alm_jax.report.sections import ablation_table, alm_command, commands, data_statistics, parity


def test_data_statistics_of_a_real_dataset(tiny_dataset: Path) -> None:
    """The report would say nothing of sources and licences, or crash after an hour of training."""
    data = data_statistics(tiny_dataset)
    assert data is not None
    assert {row["name"] for row in data["splits"]} == {"train", "validation", "test"}
    assert all(len(row["cells"]) == len(data["split_columns"]) for row in data["splits"])
    sources = {row["name"]: row for row in data["sources"]}
    assert "minetest-data" in sources and sources["minetest-data"]["licence"]
    assert data["skipped"] and all(entry["reason"] for entry in data["skipped"])
    assert "tiny" in data["trained_on"]


def test_another_dataset_has_no_report(tmp_path: Path) -> None:
    """A person's own dataset would crash the report."""
    assert data_statistics(tmp_path) is None


def test_ablation_without_a_number_that_a_variant_cannot_have(tmp_path: Path) -> None:
    """The variant without a caption decoder has no CIDEr-D."""
    row = {"value": 0.5, "chance": 0.01, "unit": "fraction", "n_clips": 9, "n_captions": 8}
    record = {
        "title": "full",
        "results": {"eval/retrieval/audio_to_text/R@10": row},
        "steps": 100,
        "seconds": 90.0,
        "command": "alm ablation",
        "date": "2026-01-01",
        "machine": "CPU",
        "data": "default",
    }
    path = tmp_path / "ablation.json"
    path.write_text(json.dumps({"full": record, "other": record | {"title": "without"}}))
    table = ablation_table(path)
    assert [line["title"] for line in table["rows"]] == ["full", "without"]
    assert table["rows"][0]["cells"][0] == "50.0%" and table["rows"][0]["cells"][-1] == "–"
    assert table["rows"][0]["minutes"] == "1.5"
    assert "2026-01-01" in table["provenance"] and table["command"] == "alm ablation"


def test_parity_says_what_differs() -> None:
    """The page would claim equal numbers whatever the export gives."""
    row = {"value": 0.5, "chance": 0.1, "unit": "fraction"}
    close = {"value": 1e-6, "chance": None, "unit": "relative", "n_clips": 3, "n_captions": 4}
    results = {
        "eval/retrieval/audio_to_text/R@1": row,
        "export/retrieval/audio_to_text/R@1": row,
        "export/parity/audio_embedding": close,
    }
    told = parity(results)
    assert told is not None and "all are equal" in told["sentence"]
    results["export/retrieval/audio_to_text/R@1"] = row | {"value": 0.4}
    told = parity(results)
    assert told is not None and "equal to" in told["sentence"] and "R@1" in told["sentence"]
    assert "all are equal" not in told["sentence"]
    assert parity({}) is None
    told = parity({}, "the embeddings have collapsed")
    assert told is not None and told["title"] == "No export" and "collapsed" in told["sentence"]


def test_printed_commands_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader would copy a command that does not exist."""

    class Parsed(Exception):
        pass

    def stop(self, *args, **kwargs):
        original(self, *args, **kwargs)
        raise Parsed

    from alm_jax.arguments import ArgumentParser

    original = ArgumentParser.parse_args
    monkeypatch.setattr(ArgumentParser, "parse_args", stop)
    verbs = {"search": search, "embed": embed, "caption": caption, "eval": evaluation}
    seen = set()
    for _, command in commands(Path("runs/quick start")):
        if command.startswith(alm_command()):
            verb, *arguments = shlex.split(command.removeprefix(alm_command()))
            seen.add(verb)
            if verb in verbs:
                with pytest.raises(Parsed):
                    verbs[verb].main(arguments)
        else:
            ast.parse(command)
    assert verbs.keys() <= seen
