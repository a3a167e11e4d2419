"""Real sound for the tests: the tiny tier of OpenSounds, fetched and built once per machine.

Everything lies in a user cache folder ($ALM_JAX_CACHE, or alm_jax below $XDG_CACHE_HOME or
~/.cache), so that no test run downloads twice.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from input_pipeline import audio_files
from input_pipeline.lock import locked
from input_pipeline.opensounds import fetch, index
from input_pipeline.opensounds.build import prepare_opensounds
from tests import quick_compilation

# The tests compile far more than they compute. XLA reads this when its first array is made. Whoever
# set it keeps their own.
os.environ.setdefault("XLA_FLAGS", quick_compilation.FLAGS)
# And many start the same run again: a program is compiled once for a whole `make test`, with the
# processes that its tests start. JAX reads these when it is imported.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    programs = tempfile.mkdtemp(prefix="alm_jax_programs_")
    atexit.register(shutil.rmtree, programs, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": programs,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ALM_JAX_CACHE") or Path(base, "alm_jax"))


def _code_digest() -> str:
    """Changes with everything that decides what a built dataset holds."""
    sources = [Path(audio_files.__file__), *sorted(Path(index.__file__).parent.glob("*.*"))]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def tiny_packages() -> Path:
    """Folder with the archives of the tiny tier (21 MB)."""
    folder = cache_folder() / "packages"
    with locked(folder, print):  # the tests run in several processes
        located = fetch.locate(index.tier_packages("tiny"), folder, offline=False)
    if located.missing:
        pytest.fail(
            "the tests need these packages:\n"
            + "\n".join(f"  {name}: {problem}" for name, problem in located.missing.items())
        )
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tiny_packages: Path) -> Path:
    """The tiny tier as a TFDS dataset: a builder folder, to be read only."""
    datasets = cache_folder() / "datasets"
    current = datasets / _code_digest()
    folder = prepare_opensounds("tiny", current, packages=tiny_packages, require_all=True)
    for other in datasets.iterdir():
        # Builds of earlier code; a recent one may serve another checkout's tests right now.
        if other != current and time.time() - other.stat().st_mtime > 24 * 3600:
            shutil.rmtree(other, ignore_errors=True)
    return folder
