"""Stages of a longer job: a line and the seconds of each, and a note of what is finished."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def peak_memory_gb() -> float:
    """Largest resident memory so far of this process plus that of its largest child, in GB."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    own, child = (
        resource.getrusage(who).ru_maxrss * unit
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return (own + child) / 1e9


class StageLog:
    """Numbers the stages of a job in a folder and remembers which are done.

    A stage is named with a key that hashes everything it depends on; it counts as finished only
    under the key it was finished with. The record is `stages.json` in the folder.
    """

    def __init__(self, folder: Path, total: int):
        """Opens the record, an empty one if the folder is new.

        Args:
          folder: of the job.
          total: number of stages, for the lines.
        """
        self._path = folder / "stages.json"
        self._total = total
        self._number = 0
        self._stages: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            self._stages = json.loads(self._path.read_text(encoding="utf-8"))

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> seconds that its work took, over all runs of the job."""
        return {name: stage["seconds"] for name, stage in self._stages.items()}

    @property
    def peak_memory_gb(self) -> float:
        """Largest memory that any stage needed, in any run of the job."""
        return max((stage["peak_memory_gb"] for stage in self._stages.values()), default=0.0)

    @contextlib.contextmanager
    def stage(
        self, name: str, title: str, key: str, *outputs: Path, always: bool = False
    ) -> Iterator[bool]:
        """Runs the body of a `with` as the next stage.

        Yields whether there is something to do: False where the stage is finished and all of its
        outputs are there. What a stage takes is added up over the runs that it was spread over.

        Args:
          name: of the stage, as in `seconds`.
          title: of the stage, for people.
          key: see `fingerprint`.
          *outputs: files or folders that the stage leaves.
          always: run the body in any case: it knows itself what is finished. The seconds kept are
            then those of the longest run.
        """
        self._number += 1
        known = self._stages.get(name, {})
        done = bool(known.get("finished")) and known["key"] == key
        done = done and all(output.exists() for output in outputs)
        if done and not always:
            print(
                f"[{self._number}/{self._total}] {title}: done before "
                f"({known['seconds']:.1f} s), kept",
                flush=True,
            )
            yield False
            return
        before = known["seconds"] if known.get("key") == key and not known["finished"] else 0.0
        resumed = " (going on where it stopped)" if before else ""
        print(f"[{self._number}/{self._total}] {title} ...{resumed}", flush=True)
        started = time.perf_counter()
        finished = False
        try:
            yield True
            finished = True
        finally:
            spent = time.perf_counter() - started
            seconds = max(known["seconds"], spent) if done else before + spent
            memory = peak_memory_gb()
            if known.get("key") == key:
                memory = max(memory, known["peak_memory_gb"])
            self._stages[name] = {
                "key": key,
                "finished": finished,
                "seconds": seconds,
                "peak_memory_gb": memory,
            }
            self._write()
            print(f"      {'done' if finished else 'stopped'} after {spent:.1f} s", flush=True)

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.{os.getpid()}.part")
        partial.write_text(json.dumps(self._stages, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._path)


def fingerprint(*parts: str | Mapping[str, Any]) -> str:
    """16 hexadecimal digits that change when any part does."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
