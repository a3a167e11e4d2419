"""A person's data, or a published corpus on disk -> a TFDS dataset: the whole of `prepare --input`.

One clip after the other is decoded, in parts of a few hundred; a finished part is kept, so that a
build that was stopped goes on where it was (`parts`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alm_jax.errors import UserError
from input_pipeline.cleaning import RejectedLog
from input_pipeline.examples import Settings
from input_pipeline.formats import Format, Options, choose_format
from input_pipeline.lock import locked

if TYPE_CHECKING:
    from input_pipeline.engines import Engine
    from input_pipeline.sources import Source

REPORT, REJECTED = "prepare_report.json", "rejected.jsonl"


def prepare_own(
    root: Path,
    output: Path,
    *,
    layout: str = "",
    options: Options | None = None,
    settings: Settings | None = None,
    exclude: Sequence[str] = (),
    engine: Engine | None = None,
) -> Path:
    """Builds a dataset; does nothing where the same one is already built.

    Args:
      root: a folder, or a table, tar or parquet file.
      output: the dataset's folder; a config names it as `data.dir`.
      layout: name of the format; "" guesses.
      options: columns and the like.
      settings: sample rate, limits, splits.
      exclude: datasets, DIR or DIR:SPLIT, whose recordings are left out (without a split: all but
        train).
      engine: what decodes; by default two processes.

    Returns:
      The version folder, with `prepare_report.json` and `rejected.jsonl` beside the data.

    Raises:
      UserError: nothing to read, input that is not what it seems, too many rejected rows, or
        another dataset in `output`.
    """
    options, settings = options or Options(), settings or Settings()
    root = root.expanduser()
    chosen, why = choose_format(root, layout)
    similar_too = bool(exclude) or not settings.limits.keep_near_duplicates
    settings = dataclasses.replace(settings, published=chosen.published, fingerprints=similar_too)
    _say(f"{root}: format {chosen.name} ({chosen.title}), because {why}")
    # Here, not at the top: --help and messages about the input come without TFDS.
    from input_pipeline import assemble, plan, recordings, similar
    from input_pipeline.engines import Engine
    from input_pipeline.parts import VERSION

    final = output / VERSION
    unwanted = {name: recordings.open_splits(name, held_out=True) for name in exclude}
    with locked(output, _say), contextlib.ExitStack() as at_end:
        work = output / ".work"
        shutil.rmtree(work / "plan", ignore_errors=True)
        (work / "plan").mkdir(parents=True)
        # However it ends: the rows of a large table are gigabytes, and read anew each time.
        at_end.callback(shutil.rmtree, work / "plan", ignore_errors=True)
        log = RejectedLog(work / REJECTED)
        if chosen.rows is None:
            planned = plan.plan_files(chosen, root, options)
        else:
            planned = plan.plan_rows(chosen, root, options, settings, work / "plan", log)
        digest = _digest(planned.digest, settings, unwanted)
        if _is_ready(final, digest):
            shutil.rmtree(work)
            _say(f"{final} is ready")
            return final
        engine = engine or Engine()
        done = list(engine.run(planned.parts, settings, work))
        rows = planned.absent + sum(part.rows for part in done)
        for item in itertools.chain.from_iterable(part.rejected() for part in done):
            log.add(item)
        dropped = assemble.Dropped(log)
        assemble.drop_duplicates(done, settings, dropped)
        if unwanted:
            references = {
                name: recordings.reference(sources, engine.workers, f"reading {name}")
                for name, sources in unwanted.items()
            }
            similar.drop_excluded(done, settings, references, dropped)
        if not settings.limits.keep_near_duplicates:
            similar.drop_near_duplicates(done, settings, dropped)
        log.close()
        if message := log.too_many(rows, settings.limits):
            raise UserError(
                f"{message}\nAll of them stand in {work / REJECTED}. Mend the input, or change the"
                " limits (`alm prepare --help`); what is decoded stays decoded"
            )
        if sum(sum(part.sizes.values()) for part in done) == len(dropped):
            raise UserError(f"{root}: not one clip is left\n{log.shown()}")
        whole = work / VERSION
        shutil.rmtree(whole, ignore_errors=True)
        summary = assemble.assemble(
            done,
            dropped,
            _name(output),
            f"{chosen.title}, prepared by `alm prepare` from {root}",
            settings.sample_rate,
            whole,
        )
        report = _report(root, chosen, why, settings, summary, log, rows, digest)
        shutil.move(work / REJECTED, whole / REJECTED)
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (whole / REPORT).write_text(f"{text}\n", encoding="utf-8")
        whole.rename(final)
        shutil.rmtree(work)
    for line in _lines(report, log, final):
        _say(line)
    return final


def _say(line: str) -> None:
    print(f"prepare: {line}", flush=True)


def _digest(planned: str, settings: Settings, unwanted: Mapping[str, Sequence[Source]]) -> str:
    digest = hashlib.blake2b(f"{settings!r} {planned}".encode(), digest_size=16)
    for source in itertools.chain.from_iterable(unwanted.values()):
        digest.update(source.fingerprint.encode())
    return digest.hexdigest()


def _is_ready(final: Path, digest: str) -> bool:
    if not final.exists():
        return False
    try:
        made = json.loads((final / REPORT).read_text(encoding="utf-8")).get("digest")
    except (OSError, ValueError):
        made = None
    if made != digest:
        raise UserError(
            f"{final} is there already, made from other input or with other settings: choose"
            " another --output, or remove that folder"
        )
    return True


def _name(output: Path) -> str:
    """The dataset's name for TFDS: the folder's, as an identifier."""
    name = re.sub(r"\W+", "_", output.resolve().name, flags=re.ASCII).strip("_").lower()
    return name if name[:1].isalpha() else f"data_{name}".rstrip("_")


def _report(
    root: Path,
    chosen: Format,
    why: str,
    settings: Settings,
    summary: dict[str, dict[str, Any]],
    log: RejectedLog,
    rows: int,
    digest: str,
) -> dict[str, Any]:
    return {
        "input": str(root),
        "format": chosen.name,
        "why": why,
        "settings": dataclasses.asdict(settings),
        "rows": rows,
        "splits": {
            split: {**numbers, "rejected": dict(log.by_split.get(split, {}))}
            for split, numbers in summary.items()
        },
        "rejected_by_reason": dict(log.by_reason.most_common()),
        "digest": digest,
    }


def _lines(report: dict[str, Any], log: RejectedLog, final: Path) -> Iterator[str]:
    """The report for a person."""
    for split, numbers in report["splits"].items():
        lost = ", ".join(f"{count} {reason}" for reason, count in numbers["rejected"].items())
        yield (
            f"{split}: {numbers['examples']} clips, {numbers['captions']} captions,"
            f" {numbers['hours']:.2f} h" + (f"; rejected {lost}" if lost else "")
        )
    if log.first:
        yield (
            f"rejected {log.by_reason.total()} of {report['rows']} rows; all are named in"
            f" {final / REJECTED}\n{log.shown()}"
        )
