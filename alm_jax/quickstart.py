"""Real sound in, a searchable and exported model out: data, two stages, numbers, report.

alm quickstart --tier=tiny
alm quickstart --tier=default --output=runs/quickstart --config.clap.train.steps=800

Run again, it goes on where it stopped; what is finished is kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from alm_jax import __version__, cli, config_files
from alm_jax.arguments import ArgumentParser
from alm_jax.config import load_config
from alm_jax.errors import UserError
from alm_jax.stage_log import StageLog, fingerprint

TIERS = ("tiny", "default", "plus", "portable")
TEST_SPLIT = "test"
STAGES = ("mae", "clap")
# Recorded ablation that ships with the project; a wheel does not hold it.
ABLATION = Path(__file__).parent.parent / "docs" / "results" / "ablation.json"


def stage_config(
    spec: str, stage: str, tier: str, overrides: Sequence[str], values: Sequence[str]
) -> ConfigDict:
    """The config of one training stage.

    Args:
      spec: a config whose `get_config` knows the argument "mae" (stage 1; stage 2 without it), and
        "tiny" for the tiny tier.
      stage: "mae" or "clap".
      tier: the tier that was asked for.
      overrides: `key=value` for both stages, `mae.key=value` or `clap.key=value` for one.
      values: `key=value` that the quickstart itself sets.

    Raises:
      ConfigError: as `load_config`.
    """
    name, argument = config_files.split_spec(spec)
    arguments = [argument, "mae" if stage == "mae" else "", "tiny" if tier == "tiny" else ""]
    chosen = []
    for override in overrides:
        first, _, rest = override.partition(".")
        if first not in STAGES:
            chosen.append(override)
        elif first == stage:
            chosen.append(rest)
    # The quickstart's own values first: a user may know better.
    return load_config(f"{name}:{','.join(a for a in arguments if a)}", [*values, *chosen])


def quickstart(
    tier: str,
    output: str | os.PathLike[str],
    data: str | os.PathLike[str] = "data",
    packages: str | os.PathLike[str] | None = None,
    *,
    spec: str = "quickstart",
    overrides: Sequence[str] = (),
) -> Path:
    """Runs all stages, leaving out what an earlier call has finished.

    Args:
      tier: of OpenSounds.
      output: receives mae/, clap/, export/, evaluation/, results.json and report.html.
      data: folder of datasets and downloads.
      packages: folder of packages that were fetched before; nothing is downloaded then.
      spec: config of both stages, see `stage_config`.
      overrides: see `stage_config`.

    Returns:
      The path of the report.

    Raises:
      UserError: the data cannot be had, `output` holds a run of something else, or the exporter
        refused the model (the report is written all the same).
    """
    output = Path(output)
    _refuse_other_tier(output, tier)
    # Only now: it imports JAX.
    from alm_jax import quickstart_stages as stages

    job = StageLog(output, total=7)

    # The dataset itself knows whether it is finished, and tries missing packages again.
    with job.stage("data", f"Data: OpenSounds, tier {tier}", tier, always=True):
        directory = stages.prepare(tier, Path(data), packages)
    common = [f"data.dir={directory.parent}"]
    mae = stage_config(spec, "mae", tier, overrides, common)
    tokenizer = output / "mae" / "tokenizer.model"
    clap = stage_config(
        spec,
        "clap",
        tier,
        overrides,
        [*common, f"init_from.workdir={output / 'mae'}", f"tokenizer.path={tokenizer}"],
    )
    key = fingerprint(__version__, stages.data_key(directory), mae.to_dict())

    with job.stage("tokenizer", "Tokenizer, from the training captions", key, tokenizer) as due:
        if due:
            stages.make_tokenizer(mae, output / "mae")
    title = f"Stage 1: masked autoencoder, {mae.train.steps} steps"
    with job.stage("stage1", title, key, output / "mae" / "checkpoints") as due:
        if due:
            stages.run_training(mae, output / "mae")
    key = fingerprint(key, clap.to_dict())
    title = f"Stage 2: matching sounds with captions and writing them, {clap.train.steps} steps"
    with job.stage("stage2", title, key, output / "clap" / "checkpoints") as due:
        if due:
            stages.run_training(clap, output / "clap")

    results = output / "results.json"
    evaluation = output / "evaluation"
    title = f"Evaluation on the {TEST_SPLIT} split"
    with job.stage("evaluation", title, key, results, evaluation) as due:
        if due:
            stages.evaluate(output / "clap", directory, TEST_SPLIT, evaluation, results)
    refused: UserError | None = None
    with job.stage("export", "Export to PyTorch", key, output / "export") as due:
        if due:
            try:
                stages.export(output, directory, evaluation, results)
            except UserError as error:
                refused = error
                print(f"      no export: {error}")
    stages.record_run(results, job.seconds, job.peak_memory_gb)
    report = output / "report.html"
    key = fingerprint(key, str(refused or ""))
    with job.stage("report", "Report", key, report) as due:
        if due:
            stages.write_report(
                output, directory, evaluation, results, ABLATION, str(refused or "")
            )
    stages.record_run(results, job.seconds, job.peak_memory_gb)
    stages.print_summary(output)
    if refused is not None:
        raise refused
    return report


def main(argv: list[str] | None = None) -> int:
    """The verb `alm quickstart`."""
    parser = ArgumentParser(prog="alm quickstart", description=__doc__)
    parser.add_argument(
        "--tier", choices=TIERS, default="default", help="how much sound (default: %(default)s)"
    )
    parser.add_argument(
        "--output", default="runs/quickstart", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--data", default="data", metavar="DIR", help="of datasets and downloads: %(default)s"
    )
    parser.add_argument(
        "--packages", metavar="FOLDER", help="of packages fetched before: nothing is downloaded"
    )
    parser.add_config_argument(default="quickstart")
    args = parser.parse_args(argv)
    quickstart(
        args.tier,
        args.output,
        args.data,
        args.packages,
        spec=args.config,
        overrides=args.overrides,
    )
    return 0


def _refuse_other_tier(output: Path, tier: str) -> None:
    """Training would refuse too, but only after the data has been fetched."""
    from alm_jax.config import read_config

    saved = output / "mae" / "config.json"
    if not saved.exists():
        return
    before = Path(read_config(saved).data.dir)
    if before.name not in (tier, "portable"):
        raise UserError(
            f"{output} holds a quickstart on {before}, not on tier {tier!r}: give another folder "
            f"with --output=DIR (make: ARGS=--output=DIR), or delete {output}"
        )


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm quickstart"))
