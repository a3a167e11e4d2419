"""Sections of a report that are read from files: data, recorded ablation, export, commands."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from alm_jax.report import numbers


def data_statistics(directory: Path) -> dict[str, Any] | None:
    """Counts, sources, licences and skipped files of OpenSounds, from prepare_report.json.

    None where there is no such file, or one of another dataset.
    """
    path = directory / "prepare_report.json"
    if not path.exists():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    if "packages" not in report:
        return None
    splits, packages = report["splits"], report["packages"]
    hours = sum(split["hours"] for split in splits.values())
    train = splits["train"]
    columns = {
        "clips": "examples",
        "recorded": "recorded",
        "rendered notes": "rendered_notes",
        "recorded, not speech": "not_speech",
        "distinct captions": "captions",
    }
    problems = [
        f"Missing package {name}: {problem}" for name, problem in report["missing_packages"].items()
    ]
    problems += [
        f"Damaged package {name}: {problem}"
        for name, problem in report.get("damaged_packages", {}).items()
    ]
    return {
        "trained_on": (
            f"{train['examples']:,} clips ({train['hours']:.1f} hours) of OpenSounds, tier "
            f"{report['tier']}: sounds that ship inside free-software packages"
        ),
        "sentence": (
            f"OpenSounds, tier {report['tier']}, version {report['version']}: {hours:.2f} hours of "
            f"sound out of {len(packages)} packages, fetched by name, with the texts that ship "
            "beside them. Clips with one text, one recording or nearly one spectrum are never on "
            "two sides of the split."
        ),
        "facts": [
            ("Training clips", f"{train['examples']:,}"),
            ("Training sound", f"{train['hours']:.1f} h"),
        ],
        "split_columns": [*columns, "hours"],
        "splits": [
            {
                "name": name,
                "cells": [f"{split[key]:,}" for key in columns.values()]
                + [f"{split['hours']:.2f}"],
            }
            for name, split in splits.items()
        ],
        "sources": [
            {
                "name": name,
                "archive": package.get("archive", ""),
                "clips": f"{package['clips']:,}",
                "skipped": f"{package['skipped']:,}",
                "licence": package.get("licence", ""),
            }
            for name, package in packages.items()
        ],
        "problems": problems,
        "skipped": report["skipped"],
    }


def ablation_table(path: Path) -> dict[str, Any]:
    """A recorded ablation as a table; see `alm_jax.ablation` for the file."""
    variants = json.loads(path.read_text(encoding="utf-8"))
    names = {
        "R@10 →caption": "eval/retrieval/audio_to_text/R@10",
        "R@1 →caption": "eval/retrieval/audio_to_text/R@1",
        "R@10 →sound": "eval/retrieval/text_to_audio/R@10",
        "R@10, no speech": "eval/retrieval_not_speech/audio_to_text/R@10",
        "GM instruments": "eval/zero_shot/general_midi/accuracy",
        "CIDEr-D": "eval/captions/CIDEr-D",
    }
    rows = []
    for variant in variants.values():
        results = variant["results"]
        rows.append(
            {
                "title": variant["title"],
                "cells": [
                    numbers.shown(results[name]["value"], results[name]["unit"])
                    if name in results
                    else "–"
                    for name in names.values()
                ],
                "steps": f"{variant['steps']:,}",
                "minutes": f"{variant['seconds'] / 60:.1f}",
            }
        )
    first = next(iter(variants.values()))
    main = first["results"]["eval/retrieval/audio_to_text/R@10"]
    dates = sorted({variant["date"] for variant in variants.values()})
    return {
        "columns": list(names),
        "rows": rows,
        "command": first["command"],
        "provenance": f"{', '.join(dates)}; {first['machine']}; {first['data']}.",
        "note": (
            f"Test split: {numbers.sizes(main)}; R@10 by chance "
            f"{numbers.shown(main['chance'], 'fraction')}. One seed: differences of a point or two "
            "are noise. Minutes are those of stage 2."
        ),
    }


def parity(results: numbers.Results, refused: str = "") -> dict[str, Any] | None:
    """What the exporter and the exported model's own test run found; None without an export."""
    if refused:
        return {"title": "No export", "sentence": refused, "rows": [], "note": ""}
    prefix = "export/parity/"
    rows = [
        (name.removeprefix(prefix), f"{row['value']:.1e}")
        for name, row in results.items()
        if name.startswith(prefix)
    ]
    if not rows:
        return None
    count, different = numbers.exported_equal(results)
    if not count:
        sentence = "Its embeddings were compared with the JAX model's."
    elif different:
        sentence = (
            f"Of {count} retrieval numbers on the whole test split, {count - len(different)} are "
            f"equal to the JAX model's; these differ: {', '.join(different)}."
        )
    else:
        sentence = (
            f"Run over the whole test split by PyTorch alone, it gives the same {count} retrieval "
            "numbers as the JAX model: all are equal."
        )
    first = next(row for name, row in results.items() if name.startswith(prefix))
    return {
        "title": "The exported PyTorch model is the same model",
        "sentence": sentence,
        "rows": rows,
        "note": (
            f"Largest difference over {first['n_clips']} clips and {first['n_captions']} captions. "
            "The exporter refuses to write a model that differs by more than 1e-4 or whose "
            "embeddings have collapsed."
        ),
    }


def alm_command() -> str:
    """How the command line is reached from here: `alm`, or the path of the environment's own."""
    if shutil.which("alm"):
        return "alm"
    script = Path(sys.executable).with_name("alm")
    if not script.exists():
        return f"{sys.executable} -m alm_jax"
    here = Path.cwd()
    return str(script.relative_to(here) if script.is_relative_to(here) else script)


def commands(run: Path) -> list[tuple[str, str]]:
    """What to do with the model next, as (what for, command) pairs."""
    model, alm = shlex.quote(str(run / "export")), alm_command()
    return [
        (
            "Search a folder of your own sounds in the browser",
            f"{alm} search --model={model} --audio=FOLDER",
        ),
        (
            "Embeddings of files and texts as arrays",
            f'{alm} embed --model={model} --audio *.wav --text "a dog barks" --output=out.npz',
        ),
        ("Captions", f"{alm} caption --model={model} --audio *.wav"),
        (
            "From Python",
            "import alm_jax\n"
            f'model = alm_jax.load("{run / "export"}")\n'
            'audio = model.embed_audio(["dog.wav", "rain.flac"])  # [2, d]\n'
            'text = model.embed_text(["a dog barks", "rain"])     # [2, d]\n'
            "print(audio @ text.T)",
        ),
        (
            "In PyTorch, without alm_jax (in the folder that holds modeling_alm.py)",
            "from modeling_alm import AudioTextModel\n"
            'model = AudioTextModel.from_pretrained(".")\n'
            'print(model.embed_text(["a dog barks", "rain"]).shape)',
        ),
        (
            "The same numbers for another model or another dataset",
            f"{alm} eval --model=DIR --data=DIR --output=evaluation",
        ),
        (
            "What each part earns: the quickstart without stage 1, captioning, masking",
            f"{alm} ablation --output=runs/ablation",
        ),
    ]
