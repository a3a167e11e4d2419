"""``prepare_report.json``: what a build took, made and left out. It marks a whole dataset."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import soundfile

from input_pipeline.audio_files import SAMPLE_RATE
from input_pipeline.opensounds import captions, fetch, index, splits

if TYPE_CHECKING:
    from input_pipeline.opensounds.decode import Decoded

NAME = "prepare_report.json"
_SHOWN = 8


def read(folder: Path) -> dict[str, Any] | None:
    """The report of a finished dataset; None where it is not there or not finished."""
    # The report is written last, so it proves that the rest is whole.
    if not (folder / NAME).is_file() or not (folder / "dataset_info.json").is_file():
        return None
    return json.loads((folder / NAME).read_text())


def write(report: dict[str, Any], folder: Path) -> None:
    """Writes the report into a dataset's folder, in one step."""
    part = folder / f"{NAME}.part"
    part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.rename(folder / NAME)


def summarise(
    rows: list[index.Row], decoded: Decoded, located: fetch.Located, tier: str
) -> dict[str, Any]:
    """Counts, hours, packages, licences and every skipped file of a build."""
    present = [row for row in rows if (row.package, row.path) in decoded.clips]
    per_split: dict[str, dict[str, Any]] = {}
    for split in splits.SPLITS:
        inside = [row for row in present if splits.split_of(splits.group_key(row)) == split]
        samples = sum(decoded.clips[row.package, row.path].length for row in inside)
        per_split[split] = {
            "examples": len(inside),
            "recorded": sum(not row.is_note for row in inside),
            "rendered_notes": sum(row.is_note for row in inside),
            "not_speech": sum(row.kind != "speech" and not row.is_note for row in inside),
            "captions": len({captions.caption(row) for row in inside}),
            "captions_of_recorded": len(
                {captions.caption(row) for row in inside if not row.is_note}
            ),
            "hours": round(samples / SAMPLE_RATE / 3600, 4),
        }
    skipped = Counter(package for package, *_ in decoded.skipped)
    clips = Counter(package for package, _ in decoded.clips)
    return {
        "tier": tier,
        "version": index.VERSION,
        "splits": per_split,
        "packages": {
            name: {
                "archive": archive.name,
                "licence": decoded.licences[name],
                "clips": clips[name],
                "skipped": skipped[name],
            }
            for name, archive in located.archives.items()
        },
        "missing_packages": located.missing,
        "damaged_packages": decoded.damaged,
        "skipped_by_reason": dict(Counter(reason for _, _, reason, _ in decoded.skipped)),
        "skipped": [
            {"package": package, "path": path, "reason": reason, "detail": detail}
            for package, path, reason, detail in decoded.skipped
        ],
        "decode_seconds": round(decoded.seconds, 1),
        "libsndfile": soundfile.__libsndfile_version__,
    }


def lines(report: dict[str, Any], folder: Path) -> Iterator[str]:
    """The report for a person, line by line."""
    for split, numbers in report["splits"].items():
        yield (
            f"{split}: {numbers['examples']} clips ({numbers['recorded']} recorded, "
            f"{numbers['rendered_notes']} rendered notes), {numbers['captions']} captions, "
            f"{numbers['hours']:.2f} h"
        )
    skipped = report["skipped"]
    if skipped:
        reasons = ", ".join(
            f"{count} {reason}" for reason, count in sorted(report["skipped_by_reason"].items())
        )
        yield f"skipped {len(skipped)} ({reasons}); all are named in {folder / NAME}"
        for entry in skipped[:_SHOWN]:
            yield f"  {entry['package']}: {entry['path']}: {entry['detail']} ({entry['reason']})"
    for name, problem in report["damaged_packages"].items():
        yield f"damaged package {name}: {problem}"
