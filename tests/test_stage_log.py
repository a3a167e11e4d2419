"""Stages that are numbered, timed and not done twice."""

import json
from pathlib import Path

import pytest

from alm_jax.stage_log import StageLog, fingerprint, peak_memory_gb


def _run(folder: Path, key: str, *outputs: Path, fail: bool = False, always: bool = False) -> bool:
    with StageLog(folder, 3).stage("train", "Training", key, *outputs, always=always) as due:
        if fail:
            raise RuntimeError("stopped")
        for output in outputs:
            output.touch()
    return due


def test_a_finished_stage_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second `make quickstart` would train everything again."""
    output = tmp_path / "model"
    assert _run(tmp_path, "k", output)
    first = capsys.readouterr().out
    assert "[1/3] Training ..." in first and "done after" in first
    assert not _run(tmp_path, "k", output)
    assert "done before" in capsys.readouterr().out


def test_what_has_changed_is_done_again(tmp_path: Path) -> None:
    """The numbers of another config or a deleted model would stand in the report."""
    output = tmp_path / "model"
    _run(tmp_path, "k", output)
    assert _run(tmp_path, "other", output)
    assert not _run(tmp_path, "other", output)
    output.unlink()
    assert _run(tmp_path, "other", output)


def test_a_stopped_stage_goes_on_and_its_time_adds_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed once would report only the time of its second half."""
    clock = iter([0.0, 10.0, 100.0, 105.0, 200.0, 200.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    output = tmp_path / "model"
    with pytest.raises(RuntimeError):
        _run(tmp_path, "k", output, fail=True)
    assert _run(tmp_path, "k", output)
    assert StageLog(tmp_path, 3).seconds == {"train": 15.0}
    # A stage that runs in any case keeps the time of its real work.
    assert _run(tmp_path, "k", output, always=True)
    assert StageLog(tmp_path, 3).seconds == {"train": 15.0}


def test_the_record_is_json(tmp_path: Path) -> None:
    """stages.json would be of no use to a person who asks what was done."""
    _run(tmp_path, "k")
    record = json.loads((tmp_path / "stages.json").read_text())
    assert record["train"]["finished"] is True and record["train"]["key"] == "k"


def test_fingerprint_sees_every_part() -> None:
    """A changed learning rate would not be noticed."""
    base = fingerprint("1.0", {"optim": {"lr": 1e-3}, "shape": (1, 2)})
    assert base == fingerprint("1.0", {"shape": (1, 2), "optim": {"lr": 1e-3}})
    assert base != fingerprint("1.0", {"optim": {"lr": 2e-3}, "shape": (1, 2)})
    assert base != fingerprint("1.1", {"optim": {"lr": 1e-3}, "shape": (1, 2)})


def test_peak_memory_is_in_gigabytes() -> None:
    """The report would show kilobytes as gigabytes."""
    assert 0.05 < peak_memory_gb() < 64
