"""What makes the parts of a dataset: processes of this machine, or any runner of Apache Beam.

A part is made by a pure function and kept once it is finished (`parts.write_part`), so all engines
give the same dataset, and what was stopped on one goes on with another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from alm_jax.errors import UserError
from input_pipeline.examples import Settings
from input_pipeline.parts import Done, Part, is_done, read_done, write_part
from input_pipeline.pool import mapped

_LOCAL = "local"
_ERROR = ".error"


@dataclasses.dataclass(frozen=True)
class Engine:
    """Where parts are made.

    Attributes:
      workers: processes of this machine; 0: none but this one.
      runner: "" for those processes, "local" for Beam on them, or the name of a Beam runner.
      flags: of that runner, as Beam's own command line takes them.
    """

    workers: int = 2
    runner: str = ""
    flags: tuple[str, ...] = ()

    def run(self, parts: Sequence[Part], settings: Settings, work: Path) -> Iterator[Done]:
        """Makes the parts that are not made yet, and yields all of them in order.

        Args:
          parts: the pieces of work.
          settings: how.
          work: their folder; for runners on several machines one that all of them see.

        Raises:
          UserError: a part cannot be read, or Beam is not installed.
        """
        if self.runner:
            return _run_beam(parts, settings, work, self)
        return _run_here(parts, settings, work, self.workers)


def _run_here(
    parts: Sequence[Part], settings: Settings, work: Path, workers: int
) -> Iterator[Done]:
    write = functools.partial(write_part, settings=settings, work=work)
    with tqdm(total=len(parts), desc="preparing", unit="part", disable=None) as progress:
        for done in mapped(write, parts, workers if len(parts) > 1 else 0):
            yield done
            progress.update()


def _run_beam(
    parts: Sequence[Part], settings: Settings, work: Path, engine: Engine
) -> Iterator[Done]:
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError(
            f"--runner={engine.runner} needs Apache Beam: pip install 'apache-beam>=2.77' (the"
            " extra `beam` of this project), or leave the flag out to use processes of this machine"
        )
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    work.mkdir(parents=True, exist_ok=True)
    for part in parts:
        _error_of(part, work).unlink(missing_ok=True)
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    options = PipelineOptions(_flags(engine))
    with _watching(lambda: sum(is_done(part, work) for part in parts), len(parts)):
        try:
            pipeline = beam.Pipeline(options=options)
            (
                pipeline
                | "Parts" >> beam.Create(list(parts))
                # Without it a runner may fuse all parts onto one worker.
                | "Spread" >> beam.Reshuffle()
                | "Write" >> beam.Map(_make, settings, work)
            )
            pipeline.run().wait_until_finish()
        except Exception as error:
            if engine.runner == _LOCAL:
                raise
            # Beam says with all kinds of exceptions what its runners miss.
            raise UserError(
                f"--runner={engine.runner} has failed: {_shortened(str(error))}\nIts flags follow"
                " after --; what it needs (an address, a job server, Java, Beam's extra for a"
                " cloud, this package on its workers) stands in Beam's documents"
            ) from error
    for part in parts:
        if (done := read_done(work / part.name, part.digest(settings))) is not None:
            yield done
        elif (problem := _error_of(part, work)).is_file():
            raise UserError(problem.read_text(encoding="utf-8"))
        else:
            raise UserError(
                f"the runner {engine.runner} has finished, but {work / part.name} is not there: its"
                " workers must see --output and --input, on a shared or mounted file system"
            )


def _shortened(text: str) -> str:
    """The beginning and the end of a message, which may hold a worker's whole traceback."""
    return text if len(text) < 2000 else f"{text[:500]}\n...\n{text[-1000:]}"


def _flags(engine: Engine) -> list[str]:
    quiet = "--default_sdk_harness_log_level=WARNING"
    if engine.runner != _LOCAL:
        return [f"--runner={engine.runner}", quiet, *engine.flags]
    several = engine.workers > 1
    return [
        # Beam's own reference runner; what DirectRunner may start instead is another program.
        "--runner=FnApiRunner",
        f"--direct_num_workers={max(1, engine.workers)}",
        f"--direct_running_mode={'multi_processing' if several else 'in_memory'}",
        quiet,
        *engine.flags,
    ]


def _make(part: Part, settings: Settings, work: Path) -> None:
    """Makes a part on a worker; what the person can mend is written down, not raised.

    Runners wrap an exception in their own, and try again first.
    """
    try:
        write_part(part, settings, work)
    except UserError as error:
        _error_of(part, work).write_text(str(error), encoding="utf-8")


def _error_of(part: Part, work: Path) -> Path:
    return work / f"{part.name}{_ERROR}"


@contextlib.contextmanager
def _watching(done: Callable[[], int], total: int) -> Iterator[None]:
    """A bar of finished parts while somebody else makes them."""
    over = threading.Event()
    with tqdm(total=total, desc="preparing", unit="part", disable=None, file=sys.stderr) as bar:

        def watch() -> None:
            while not over.wait(1.0):
                bar.update(done() - bar.n)

        thread = threading.Thread(target=watch, name="watch-parts", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            bar.update(done() - bar.n)
