"""metrics.jsonl: one JSON object a line, each step once, whatever killed the run."""

import json
import resource

import numpy as np
import pytest

from alm_jax.errors import UserError
from alm_jax.metrics import MetricWriter, read_metrics


@pytest.fixture
def path(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (1, 2, 3, 4):
        writer.write(step, {"train/loss": np.float32(0.5) * step, "train/scale": step})
    writer.close()
    return tmp_path / "metrics.jsonl"


def test_one_object_a_line(path):
    """A notebook that reads the file line by line would fail."""
    lines = path.read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": step, "train/loss": 0.5 * step, "train/scale": step} for step in (1, 2, 3, 4)
    ]
    assert list((path.parent / "tensorboard").iterdir())


def test_numbers_that_json_lacks_are_null(tmp_path):
    """NaN is no JSON: the file of a diverged run, where it matters most, would not be read."""
    writer = MetricWriter(tmp_path)
    writer.write(1, {"train/loss": float("nan"), "train/grad_norm": np.inf, "train/ok": 1})
    writer.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    want = {"step": 1, "train/loss": None, "train/grad_norm": None, "train/ok": 1}
    assert json.loads(text, parse_constant=pytest.fail) == want


def test_resuming_removes_what_is_repeated(path):
    """Curves would go back and forth: the steps after the last checkpoint are taken twice."""
    before = path.read_text().splitlines()
    writer = MetricWriter(path.parent, first_step=2)
    writer.write(3, {"train/loss": 9})
    writer.close()
    assert path.read_text().splitlines() == [*before[:2], '{"step": 3, "train/loss": 9.0}']


def test_a_line_cut_short_by_a_kill_is_left_out(path):
    """A killed run could neither be resumed nor be plotted."""
    with path.open("a") as file:
        file.write('{"step": 5, "train/lo')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4]
    writer = MetricWriter(path.parent, first_step=4)
    writer.write(5, {"train/loss": 1})
    writer.close()
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3, 4, 5]


def test_only_the_first_process_writes(tmp_path):
    """Two hosts would mix their lines in one file."""
    writer = MetricWriter(tmp_path / "run", enabled=False)
    writer.write(1, {"train/loss": 1})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_full_disk_ends_the_run_with_a_message(tmp_path):
    """TensorBoard's thread dies of a full disk, after which a run would wait for ever."""
    writer = MetricWriter(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: File too large"):
            for step in range(1, 1000):
                writer.write(step, {f"train/{name}": step / 7 for name in "abcdefgh"})
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    kept = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in kept] == list(range(1, len(kept) + 1))
    # With room again, the run goes on.
    writer = MetricWriter(tmp_path, first_step=kept[-1]["step"])
    writer.write(kept[-1]["step"] + 1, {"train/loss": 1.0})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["train/loss"] == 1.0
