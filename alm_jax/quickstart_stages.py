"""What each stage of the quickstart does; their order is in `alm_jax.quickstart`."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from alm_jax import train
from alm_jax.config import read_config
from alm_jax.evaluators.files import load_evaluation, save_evaluation
from alm_jax.evaluators.linear.evaluate import NAMES, ridge_results
from alm_jax.evaluators.results import format_table, read_results, write_results
from alm_jax.evaluators.suite import Evaluation, embed_clips, evaluate_split, retrieval_results
from alm_jax.export import real_examples
from alm_jax.inference.model import load
from alm_jax.interop.exported import read_model
from alm_jax.interop.model_card import DataSummary
from alm_jax.interop.torch_export import export_torch, load_module
from alm_jax.report import numbers
from alm_jax.report.content import gather, machine
from alm_jax.report.page import write_page
from alm_jax.report.sections import alm_command
from input_pipeline.prepare import prepare_opensounds

log = logging.getLogger("alm_jax")


class ExportedModel:
    """An exported folder run by PyTorch and its own modelling file; an `evaluation_suite.Model`."""

    def __init__(self, folder: Path):
        """Loads the model.

        Args:
          folder: an export.
        """
        self._model = load_module(folder).AudioTextModel.from_pretrained(folder)
        self.sample_rate = int(self._model.sample_rate)

    def embed_audio(
        self, clips: Any, sample_rate: float | None = None, *, batch_size: int = 16
    ) -> np.ndarray:
        """[n, J] float32 of int16 clips [S]."""
        rate = self.sample_rate if sample_rate is None else int(sample_rate)
        return self._model.embed_audio(clips, rate, batch_size).numpy()

    def embed_text(self, strings: Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """[m, J] float32."""
        return self._model.embed_text(strings, batch_size).numpy()


def prepare(tier: str, data: Path, packages: str | os.PathLike[str] | None) -> Path:
    """Builds the dataset, unless it is there, and returns its version folder."""
    return Path(prepare_opensounds(tier, data, packages, workers=2))


def data_key(directory: Path) -> str:
    """What a dataset's files say of themselves; changes when it is built from other packages."""
    parts = [directory.parent.name, directory.name]
    for name in ("dataset_info.json", "features.json"):
        parts.append((directory / name).read_text(encoding="utf-8"))
    return "\n".join(parts)


def make_tokenizer(config: ConfigDict, workdir: Path) -> None:
    """Trains the tokenizer that both stages share, into stage 1's workdir."""
    tokenizer = train.workdir_tokenizer(config, workdir)
    print(f"      {tokenizer.vocab_size} pieces")


def run_training(config: ConfigDict, workdir: Path) -> None:
    """Trains a stage, or goes on with it."""
    if jax.default_backend() == "cpu" and sys.platform == "linux":
        if "hugetlb" not in os.environ.get("GLIBC_TUNABLES", ""):
            print("      (GLIBC_TUNABLES=glibc.malloc.hugetlb=1 saves about a third of the time)")
    train.train(config, workdir)
    # The next stage needs none of the compiled functions and buffers of this one.
    jax.clear_caches()
    gc.collect()


def score(workdir: Path, directory: str | os.PathLike[str], split: str) -> Evaluation:
    """Scores a run's last checkpoint, and drops what was compiled for it."""
    evaluation = evaluate_split(load(workdir), directory, split)
    jax.clear_caches()
    return evaluation


def evaluate(workdir: Path, directory: Path, split: str, folder: Path, results: Path) -> None:
    """Scores stage 2's model and the baseline; starts results.json anew."""
    evaluation = score(workdir, directory, split)
    save_evaluation(evaluation, folder)
    print("      ridge baseline on the same split")
    ridge = ridge_results(
        evaluation.clips, read_config(workdir / "config.json").data.train_split, "validation"
    )
    size = {
        "model/parameters": {
            "value": sum(np.size(leaf) for leaf in jax.tree.leaves(read_model(workdir)[1])),
            "chance": None,
            "unit": "count",
            "protocol": "all parameters of stage 2's model, both towers and the caption decoder",
        }
    }
    results.unlink(missing_ok=True)
    write_results(results, evaluation.results, ridge, size)


def export(output: Path, directory: Path, folder: Path, results: Path) -> None:
    """Exports stage 2's model and scores the export, by PyTorch, on the test split.

    Raises:
      UserError: the exporter refused the model.
    """
    workdir, target = output / "clap", output / "export"
    rows = read_results(results)
    config = read_config(workdir / "config.json")
    rate = int(config.data.sample_rate)
    evaluation = load_evaluation(folder, directory, rows)
    clips, captions = real_examples(os.fspath(directory), evaluation.clips.split, rate)
    report = export_torch(
        workdir,
        target,
        clips=clips,
        captions=captions,
        results={name: row for name, row in rows.items() if name.startswith("eval/")},
        data=DataSummary.read(directory, config.data.train_split, rate),
    )
    parity = {
        f"export/parity/{name}": {
            "value": value,
            "chance": None,
            "unit": "relative",
            "n_clips": report.clips,
            "n_captions": report.captions,
            "protocol": "largest relative difference between the PyTorch and the JAX model",
        }
        for name, value in report.differences.items()
    }
    model = ExportedModel(target)
    audio = embed_clips(model, evaluation.clips, progress="embedding clips with PyTorch")
    text = model.embed_text(evaluation.clips.captions)
    retrieval = retrieval_results(audio, text, evaluation.clips, "export/retrieval")
    write_results(results, parity, retrieval)
    count, different = numbers.exported_equal(read_results(results))
    if different:
        print(f"      of {count} retrieval numbers these differ from JAX: {', '.join(different)}")
    else:
        print(f"      PyTorch gives the same {count} retrieval numbers as JAX: all are equal")


def record_run(results: Path, seconds: Mapping[str, float], memory_gb: float) -> None:
    """Adds to results.json what the run cost."""
    where = machine()
    rows: dict[str, dict[str, Any]] = {
        f"quickstart/seconds/{name}": {
            "value": spent,
            "chance": None,
            "unit": "seconds",
            "protocol": f"wall time, downloads included; {where}",
        }
        for name, spent in seconds.items()
    }
    rows["quickstart/peak_memory"] = {
        "value": memory_gb,
        "chance": None,
        "unit": "GB",
        "protocol": "largest resident memory of the process plus that of its largest child",
    }
    write_results(results, rows)


def write_report(
    output: Path, directory: Path, folder: Path, results: Path, ablation: Path, refused: str
) -> None:
    """Writes report.html."""
    rows = read_results(results)
    evaluation = load_evaluation(folder, directory, rows)
    content = gather(
        output,
        evaluation,
        load(output / "clap"),
        rows,
        ablation=ablation if ablation.exists() else None,
        refused=refused,
    )
    path = write_page(content, output / "report.html")
    log.info("%s: %.1f MB", path, path.stat().st_size / 1e6)


def print_summary(output: Path) -> None:
    """The headline numbers and where everything lies."""
    rows = read_results(output / "results.json")
    names = [item.name for item in numbers.comparisons(rows)]
    for baseline in NAMES.values():
        same = [f"baseline/{baseline}/{name.removeprefix('eval/')}" for name in names]
        names += [name for name in same if name in rows]
    print()
    print(format_table({name: rows[name] for name in names}))
    spent = sum(row["value"] for name, row in rows.items() if "quickstart/seconds/" in name)
    memory = rows["quickstart/peak_memory"]["value"]
    print()
    print(f"{spent / 60:.1f} minutes in all, at most {memory:.1f} GB of memory.")
    print(f"Report:  {output / 'report.html'}  (open it in a browser)")
    print(f"Numbers: {output / 'results.json'}")
    if (output / "export").is_dir():
        print(f"Search:  {alm_command()} search --model={output / 'export'} --audio=FOLDER")
