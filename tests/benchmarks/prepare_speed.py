"""What `alm prepare` costs beyond decoding: CPU time of one process, in turns.

    python -m tests.benchmarks.prepare_speed data/opensounds/default

Ten-second files are made of recorded clips, FLAC at 44.1 kHz. Each round decodes all of them with
the project's decoder alone, then prepares them here, then, where Beam is installed, on its
in-process runner. CPU time, not wall time: other programs on the machine do not count.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from input_pipeline.audio_files import read_audio, to_int16
from input_pipeline.cleaning import Limits
from input_pipeline.engines import Engine
from input_pipeline.examples import Settings
from input_pipeline.own_data import prepare_own
from input_pipeline.sources import open_source

FILES, ROUNDS, SECONDS, RATE = 300, 5, 10, 44100


def write_files(directory: str, folder: Path) -> list[Path]:
    """Recorded clips one after the other, cut into ten seconds each."""
    source = open_source(directory, "train")
    clips = (e["audio"] for e in source if ".sf2#" not in e["id"])
    need = SECONDS * 16000
    kept, made = np.zeros(0, np.int16), []
    lines = ["file,caption"]
    for clip in clips:
        kept = np.concatenate([kept, clip])
        while len(kept) >= need and len(made) < FILES:
            audio = soxr.resample(kept[:need] / np.float32(32768), 16000, RATE)
            made.append(folder / f"{len(made):04d}.flac")
            soundfile.write(made[-1], audio, RATE)
            lines.append(f"{made[-1].name},a sound")
            kept = kept[need:]
        if len(made) == FILES:
            break
    (folder / "captions.csv").write_text("\n".join(lines), encoding="utf-8")
    return made


def timed(work: Callable[[], object]) -> float:
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        work()
    return time.process_time() - start


def main(argv: Sequence[str]) -> None:
    """Prints clips a second of CPU time, the median of the rounds, and the ratios."""
    (directory,) = argv
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "in")
        folder.mkdir()
        files = write_files(directory, folder)
        settings = Settings(limits=Limits(keep_duplicates=True, max_rejected=1.0))

        def decode() -> None:
            for path in files:
                to_int16(read_audio(path))

        def prepare(engine: Engine) -> None:
            out = Path(name, "out")
            prepare_own(folder, out, settings=settings, engine=engine)
            shutil.rmtree(out)

        ways: dict[str, Callable[[], object]] = {
            "decoder alone": decode,
            "alm prepare": lambda: prepare(Engine(workers=0)),
        }
        if importlib.util.find_spec("apache_beam"):
            ways["alm prepare --runner=local"] = lambda: prepare(Engine(1, "local"))
        for work in ways.values():
            timed(work)  # imports and caches
        spent = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, work in ways.items():
                spent[way].append(timed(work))
    base = np.array(spent["decoder alone"])
    for way, seconds in spent.items():
        ratio = np.median(base / np.array(seconds))
        print(
            f"{way}: {len(files) / np.median(seconds):.0f} clips/s of CPU, {ratio:.2f} of decoding"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
