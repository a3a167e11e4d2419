"""The ablation's variants, and the whole of it on a few steps."""

import json
from pathlib import Path

import pytest

from alm_jax.ablation import VARIANTS, ablate, format_records, variant_config
from alm_jax.config import config_diff, flatten
from alm_jax.quickstart import stage_config
from alm_jax.report.sections import ablation_table

SMALL = [
    "data.batch_size=8",
    "data.max_seconds=1.0",
    "eval.bucket_seconds=(1.0,)",
    "optim.warmup_steps=1",
    "optim.name=adamw",  # Muon takes long to compile
    "train.steps=2",
    "train.log_every_steps=1",
    "model.audio.width=32",
    "model.audio.depth=1",
    "model.audio.heads=2",
    "model.audio.mlp_dim=64",
    *(f"mae.model.mae_decoder.{key}" for key in ("width=32", "depth=1", "heads=2", "mlp_dim=64")),
    *(
        f"clap.model.{part}.{key}"
        for part in ("text", "caption_decoder")
        for key in ("width=32", "depth=1", "heads=2", "mlp_dim=64")
    ),
    "clap.model.embed_dim=32",
    "clap.model.audio_pool.heads=2",
]


def test_each_variant_changes_one_thing() -> None:
    """A difference in the table would be due to something else than it says."""
    full = stage_config("quickstart", "clap", "", [], ["init_from.workdir=mae"])
    changed = {
        name: {line.split(":")[0] for line in config_diff(full, variant_config(full, name))}
        - {"name"}
        for name in VARIANTS
    }
    assert changed["full"] == set()
    assert changed["no_stage1"] == {"init_from.workdir"}
    assert changed["unmasked"] <= {"masking.budget", "masking.ratio"} and changed["unmasked"]
    assert all(
        key.startswith(("objectives.captioning", "model.caption_decoder"))
        for key in changed["no_captioning"]
    )
    without = variant_config(full, "no_captioning")
    assert without.model.caption_decoder is None
    assert not [key for key in flatten(without) if key.startswith("objectives.captioning")]


@pytest.mark.slow
def test_ablation_runs_and_resumes(
    tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour of training would end without its table, or start over after a stop."""

    def run(variants: list[str]) -> dict:
        return ablate(
            tiny_dataset, tmp_path, command="alm ablation", variants=variants, overrides=SMALL
        )

    run(["full"])
    capsys.readouterr()
    records = run(["full", "no_captioning"])
    said = capsys.readouterr().out
    assert said.count("done before") == 3  # stage 1, training and testing of `full`
    stored = json.loads((tmp_path / "ablation.json").read_text())
    assert stored.keys() == records.keys() == {"full", "no_captioning"}
    for record in stored.values():
        row = record["results"]["eval/retrieval/audio_to_text/R@10"]
        assert row["n_clips"] > 0 and row["chance"] is not None
        assert record["steps"] == 2 and record["seconds"] > 0 and record["date"]
    assert "eval/captions/CIDEr-D" in stored["full"]["results"]
    assert "eval/captions/CIDEr-D" not in stored["no_captioning"]["results"]
    assert "no_captioning" in format_records(records)
    table = ablation_table(tmp_path / "ablation.json")
    assert len(table["rows"]) == 2 and len(table["rows"][0]["cells"]) == len(table["columns"])
