"""A workdir in a bucket: what goes there, without a network (fsspec's file system in memory)."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem

from alm_jax.checkpoints import Checkpoints, latest_step
from alm_jax.config import read_config
from alm_jax.metrics import MetricWriter, names_at, read_metrics
from alm_jax.train import prepare_workdir, workdir_tokenizer
from input_pipeline.text import FILE_NAME
from tests.model_fixtures import tiny_tokenizer
from tests.small_configs import stage1

WORKDIR = "gs://bucket/runs/a"


class Bucket(MemoryFileSystem):
    """Files in memory under gs://, without renaming or appending, as in a bucket."""

    protocol = ("gs", "gcs")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/") if path.strip("/") else ""

    def open(self, path, mode="rb", **options):
        assert "a" not in mode, "a bucket cannot append"
        return super().open(path, mode, **options)


@pytest.fixture(autouse=True)
def bucket(monkeypatch):
    found = Bucket()
    found.store.clear()
    monkeypatch.setattr(fsspec, "filesystem", lambda name, **options: found)
    backend.fsspec_backend._get_filesystem.cache_clear()
    yield found
    backend.fsspec_backend._get_filesystem.cache_clear()


def test_config_and_tokenizer(bucket):
    """A run would write into a local folder named gs: instead, and be lost with the machine."""
    config = stage1(f"tokenizer.path={WORKDIR}/given.model")
    tiny_tokenizer().save(f"{WORKDIR}/given.model")
    prepare_workdir(config, WORKDIR)
    assert read_config(f"{WORKDIR}/config.json") == config
    prepare_workdir(config, WORKDIR)
    made = workdir_tokenizer(config, WORKDIR)
    assert made.fingerprint == tiny_tokenizer().fingerprint
    assert f"/bucket/runs/a/{FILE_NAME}" in bucket.store
    assert not os.path.exists("gs:")


def test_metrics_grow_and_continue(bucket):
    """The curves of a run in the cloud could not be looked at, or would start anew on resuming."""
    writer = MetricWriter(WORKDIR)
    writer.write(1, {"train/loss": 3.0})
    writer.flush()
    assert [line["step"] for line in read_metrics(f"{WORKDIR}/metrics.jsonl")] == [1]
    writer.write(2, {"train/loss": 2.0, "eval/test/loss": 2.0})
    writer.write(3, {"train/loss": 1.0})
    writer.close()
    assert "eval/test/loss" in names_at(WORKDIR, 2)
    again = MetricWriter(WORKDIR, first_step=2)
    again.write(3, {"train/loss": 1.5})
    again.close()
    found = read_metrics(f"{WORKDIR}/metrics.jsonl")
    assert [(line["step"], line["train/loss"]) for line in found] == [(1, 3.0), (2, 2.0), (3, 1.5)]
    boards = [name for name in bucket.store if "/tensorboard/events" in name]
    assert boards
    assert not os.path.exists("gs:")


def test_checkpoints_are_looked_for_in_the_bucket(bucket):
    """Orbax would be handed a local path, and every start would be from scratch."""
    reader = Checkpoints(WORKDIR, read_only=True)
    assert os.fspath(reader.directory) == f"{WORKDIR}/checkpoints"
    reader.close()
    assert latest_step(WORKDIR) is None
