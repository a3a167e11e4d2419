"""A person's data, or a published corpus on disk -> a TFDS dataset: the whole of `prepare --input`.

One clip after the other is decoded, in parts of a few hundred; a finished part is kept, so that a
build that was stopped goes on where it was (`parts`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alm_jax.errors import UserError
from input_pipeline import cleaning
from input_pipeline.cleaning import Rejected
from input_pipeline.examples import Settings, split_of
from input_pipeline.formats import Format, FormatError, Options, Row, choose_format
from input_pipeline.formats.rows import merge_captions
from input_pipeline.lock import locked

if TYPE_CHECKING:
    from input_pipeline.engines import Engine
    from input_pipeline.parts import Part
    from input_pipeline.sources import Source

REPORT, REJECTED = "prepare_report.json", "rejected.jsonl"
# Ten seconds at 16 kHz are 320 kB: a shard of about 160 MB.
_ROWS_PER_PART = 512
_SHOWN = 5


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
    from input_pipeline import assemble, recordings, similar
    from input_pipeline.engines import Engine
    from input_pipeline.parts import VERSION

    final = output / VERSION
    unwanted = {name: recordings.open_splits(name, held_out=True) for name in exclude}
    with locked(output, _say):
        parts, absent, rows = _plan(chosen, root, options, settings)
        digest = _digest(parts, absent, settings, unwanted)
        if _is_ready(final, digest):
            _say(f"{final} is ready")
            return final
        work = output / ".work"
        engine = engine or Engine()
        done = list(engine.run(parts, settings, work))
        rows += sum(part.rows for part in done if part.rows) - sum(len(p.rows) for p in parts)
        dropped = assemble.find_duplicates(done, settings)
        if unwanted:
            references = {
                name: recordings.reference(sources, engine.workers, f"reading {name}")
                for name, sources in unwanted.items()
            }
            similar.drop_excluded(done, settings, references, dropped)
        if not settings.limits.keep_near_duplicates:
            similar.drop_near_duplicates(done, settings, dropped)
        bad = [item for part in done for item in part.rejected] + dropped.rejected
        _write_rejected(work / REJECTED, absent + bad)
        # What was asked to go, and videos that nobody has any more, are no sign of bad input.
        unexpected = [item for item in bad if item.reason != "excluded"]
        unexpected += [] if chosen.partial else absent
        counted = rows - (len(absent + bad) - len(unexpected))
        if message := cleaning.too_many(unexpected, counted, settings.limits):
            raise UserError(
                f"{message}\nAll of them stand in {work / REJECTED}. Mend the input, or change the"
                " limits (`alm prepare --help`); what is decoded stays decoded"
            )
        if not any(part.clips for part in done):
            raise UserError(f"{root}: not one clip is left\n{_first(absent + bad)}")
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
        report = _report(root, chosen, why, settings, summary, absent + bad, rows, digest)
        shutil.move(work / REJECTED, whole / REJECTED)
        text = json.dumps(report, indent=1, ensure_ascii=False)
        (whole / REPORT).write_text(f"{text}\n", encoding="utf-8")
        whole.rename(final)
        shutil.rmtree(work)
    for line in _lines(report, absent + bad, final):
        _say(line)
    return final


def _say(line: str) -> None:
    print(f"prepare: {line}", flush=True)


def _plan(
    chosen: Format, root: Path, options: Options, settings: Settings
) -> tuple[list[Part], list[Rejected], int]:
    """The parts of an input, the rows whose audio is not there, and how many rows are known."""
    from input_pipeline.parts import Part

    if chosen.rows is None:
        assert chosen.files is not None
        files = chosen.files(root)
        if not files:
            raise FormatError(f"--input={root}: no file of the format {chosen.name} there")
        return (
            [
                Part(f"{number:06d}", chosen.name, root, options, file=file)
                for number, file in enumerate(files)
            ],
            [],
            0,
        )
    absent: list[Rejected] = []
    parts: list[Part] = []
    rows = merge_captions(_rows(chosen, root, options), str(root))
    count = 0

    def present() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            if row.audio is None:
                split = split_of(row, settings)
                absent.append(Rejected(row.id, "missing", row.problem, row.where, split))
            else:
                yield row

    stream = present()
    while chunk := tuple(itertools.islice(stream, _ROWS_PER_PART)):
        parts.append(Part(f"{len(parts):06d}", chosen.name, root, options, rows=chunk))
    if not parts:
        raise FormatError(
            f"{root}: of {count} rows not one has its audio:\n{_first(absent)}\nSay where the"
            " audio lies with --audio-dir"
            if count
            else f"{root}: no rows"
        )
    return parts, absent, count


def _rows(chosen: Format, root: Path, options: Options) -> Iterator[Row]:
    assert chosen.rows is not None
    try:
        yield from chosen.rows(root, options)
    except KeyError as error:  # adapters of published tables take their columns for granted
        raise FormatError(
            f"{root}: a table has no column or field {error}, which {chosen.title} has as"
            " published. Is it another version? --format=table reads any table"
        ) from error


def _digest(
    parts: list[Part],
    absent: list[Rejected],
    settings: Settings,
    unwanted: Mapping[str, Sequence[Source]],
) -> str:
    digest = hashlib.blake2b(repr((settings, absent)).encode(), digest_size=16)
    for source in itertools.chain.from_iterable(unwanted.values()):
        digest.update(source.fingerprint.encode())
    for part in parts:
        digest.update(part.digest(settings).encode())
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


def _write_rejected(path: Path, rejected: list[Rejected]) -> None:
    lines = (json.dumps(item.as_dict(), ensure_ascii=False) for item in rejected)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _report(
    root: Path,
    chosen: Format,
    why: str,
    settings: Settings,
    summary: dict[str, dict[str, Any]],
    rejected: list[Rejected],
    rows: int,
    digest: str,
) -> dict[str, Any]:
    by_split: dict[str, Counter[str]] = {}
    for item in rejected:
        by_split.setdefault(item.split, Counter())[item.reason] += 1
    return {
        "input": str(root),
        "format": chosen.name,
        "why": why,
        "settings": dataclasses.asdict(settings),
        "rows": rows,
        "splits": {
            split: {**numbers, "rejected": dict(by_split.get(split, {}))}
            for split, numbers in summary.items()
        },
        "rejected_by_reason": dict(Counter(item.reason for item in rejected).most_common()),
        "digest": digest,
    }


def _lines(report: dict[str, Any], rejected: list[Rejected], final: Path) -> Iterator[str]:
    """The report for a person."""
    for split, numbers in report["splits"].items():
        lost = ", ".join(f"{count} {reason}" for reason, count in numbers["rejected"].items())
        yield (
            f"{split}: {numbers['examples']} clips, {numbers['captions']} captions,"
            f" {numbers['hours']:.2f} h" + (f"; rejected {lost}" if lost else "")
        )
    if rejected:
        yield (
            f"rejected {len(rejected)} of {report['rows']} rows; all are named in"
            f" {final / REJECTED}\n{_first(rejected)}"
        )


def _first(rejected: list[Rejected]) -> str:
    return "\n".join(f"  {item}" for item in rejected[:_SHOWN])
