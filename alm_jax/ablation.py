"""What stage 1, the captioning loss and masking each earn: the quickstart with one of them removed.

alm ablation --data=data/opensounds/default --output=runs/ablation

Every variant is an ordinary run in a folder of its own; run again, it goes on where it stopped. The
result is `ablation.json` (copied to docs/results/, the quickstart's report shows it) and a table.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from alm_jax import __version__, cli
from alm_jax.arguments import ArgumentParser
from alm_jax.quickstart import TEST_SPLIT, stage_config
from alm_jax.stage_log import StageLog, fingerprint

FILE_NAME = "ablation.json"
COLUMNS = (
    "eval/retrieval/audio_to_text/R@10",
    "eval/retrieval/audio_to_text/R@1",
    "eval/retrieval/text_to_audio/R@10",
    "eval/retrieval_not_speech/audio_to_text/R@10",
    "eval/zero_shot/general_midi/accuracy",
    "eval/captions/CIDEr-D",
)


def _without_stage1(config: ConfigDict) -> None:
    config.init_from.workdir = ""


def _without_captioning(config: ConfigDict) -> None:
    del config.objectives["captioning"]
    config.model.caption_decoder = None


def _unmasked(config: ConfigDict) -> None:
    config.masking.budget = 0
    config.masking.ratio = 0.0


VARIANTS: dict[str, tuple[str, Callable[[ConfigDict], None]]] = {
    "full": ("everything, as in the quickstart", lambda config: None),
    "no_stage1": ("without stage 1", _without_stage1),
    "no_captioning": ("without the captioning loss", _without_captioning),
    "unmasked": ("all patches in training, none dropped", _unmasked),
}


def variant_config(config: ConfigDict, variant: str) -> ConfigDict:
    """Stage 2's config with one part removed.

    Args:
      config: stage 2's.
      variant: a name in `VARIANTS`.
    """
    changed = config.copy_and_resolve_references()
    with changed.unlocked():
        VARIANTS[variant][1](changed)
        changed.name = f"{config.name}-{variant}"
    changed.lock()
    return changed


def ablate(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    command: str,
    mae: str | os.PathLike[str] | None = None,
    variants: Sequence[str] = tuple(VARIANTS),
    spec: str = "quickstart",
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains and scores the variants.

    Args:
      data: a prepared dataset.
      output: receives a workdir a variant, `mae/` and `ablation.json`.
      command: what was typed, for the record.
      mae: workdir of a finished stage 1 of the same config; None trains one in `output`.
      variants: names in `VARIANTS`.
      spec: config of both stages, see `quickstart.stage_config`.
      overrides: see `quickstart.stage_config`.

    Returns:
      Variant -> record: `title`, `results` (rows as in results.json), `steps`, `seconds` (of
      training), `command`, `date`, `machine`, `data`.

    Raises:
      UserError: as `train`.
    """
    from alm_jax import quickstart_stages as stages
    from alm_jax.report.content import machine

    output = Path(output)
    job = StageLog(output, total=1 + 2 * len(variants))
    stage1 = output / "mae" if mae is None else Path(mae)
    common = [f"data.dir={data}"]
    first = stage_config(spec, "mae", "", overrides, common)
    links = [f"init_from.workdir={stage1}", f"tokenizer.path={stage1 / 'tokenizer.model'}"]
    second = stage_config(spec, "clap", "", overrides, [*common, *links])
    key = fingerprint(__version__, first.to_dict())
    with job.stage("mae", "Stage 1", key, stage1 / "checkpoints") as due:
        if due and mae is None:
            stages.run_training(first, stage1)
    path = output / FILE_NAME
    records: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for variant in variants:
        config = variant_config(second, variant)
        workdir = output / variant
        key = fingerprint(__version__, first.to_dict(), config.to_dict())
        title = VARIANTS[variant][0]
        with job.stage(variant, f"Training: {title}", key, workdir / "checkpoints") as due:
            if due:
                stages.run_training(config, workdir)
        with job.stage(f"{variant} test", "Testing", key, path) as due:
            if due:
                evaluation = stages.score(workdir, data, TEST_SPLIT)
                records[variant] = {
                    "title": title,
                    "results": evaluation.results,
                    "steps": config.train.steps,
                    "seconds": round(job.seconds[variant], 1),
                    "command": command,
                    "date": datetime.date.today().isoformat(),
                    "machine": machine(),
                    "data": f"{evaluation.clips.directory}, {TEST_SPLIT} split, fingerprint "
                    f"{evaluation.clips.fingerprint}",
                }
                _write(path, records)
    return {variant: records[variant] for variant in variants}


def format_records(records: Mapping[str, Mapping[str, Any]]) -> str:
    """A text table, one line a variant."""
    from alm_jax.report.numbers import shown

    heads = ["variant", *(name.removeprefix("eval/") for name in COLUMNS), "steps", "minutes"]
    lines = [heads]
    for variant, record in records.items():
        rows = [record["results"].get(name) for name in COLUMNS]
        cells = ["-" if row is None else shown(row["value"], row["unit"]) for row in rows]
        lines.append([variant, *cells, str(record["steps"]), f"{record['seconds'] / 60:.1f}"])
    # One line a metric: the names are long, the variants few.
    columns = [list(column) for column in zip(*lines, strict=True)]
    widths = [max(len(line[column]) for line in columns) for column in range(len(lines))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in columns
    )


def main(argv: list[str] | None = None) -> int:
    """The verb `alm ablation`."""
    parser = ArgumentParser(prog="alm ablation", description=__doc__)
    parser.add_argument(
        "--data", default="data/opensounds/default", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument(
        "--output", default="runs/ablation", metavar="DIR", help="default: %(default)s"
    )
    parser.add_argument("--steps", type=int, help="of stage 2 (default: the config's)")
    parser.add_argument("--mae", metavar="DIR", help="workdir of a finished stage 1 to start from")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        help="which (default: all)",
    )
    parser.add_config_argument(default="quickstart")
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    overrides = list(args.overrides)
    if args.steps is not None:
        overrides.append(f"clap.train.steps={args.steps}")
    records = ablate(
        args.data,
        args.output,
        command=shlex.join(["alm", "ablation", *arguments]),
        mae=args.mae,
        variants=args.variants,
        spec=args.config,
        overrides=overrides,
    )
    print()
    print(format_records(records))
    print(f"\n{Path(args.output) / FILE_NAME}")
    return 0


def _write(path: Path, records: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    text = json.dumps(records, indent=1, ensure_ascii=False)
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm ablation"))
