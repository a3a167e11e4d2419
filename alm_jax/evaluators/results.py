"""results.json: one flat file of numbers, each with what is needed to read it.

Every entry is `name -> row`. A row holds at least `value`, `chance` (what a model that knows
nothing gets, or null where the question makes no sense) and `protocol` (how it was counted, with a
version); evaluators add `unit`, `n_clips`, `n_captions`, `n_classes`, `prompt` and the like.
"""

import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from alm_jax.errors import UserError


class Row(TypedDict):
    """One number and its circumstances.

    Attributes:
      value: the number.
      chance: its expectation without knowledge, None where there is none.
      unit: 'fraction' (0..1), 'rank' (1 is best) or 'score'.
      protocol: name, version and rules of the count.
      n_clips, n_captions, n_queries, n_gallery, n_classes: sizes of the problem.
      prompt: the text templates, where the number depends on them.
    """

    value: float
    chance: float | None
    unit: str
    protocol: str
    n_clips: NotRequired[int]
    n_captions: NotRequired[int]
    n_queries: NotRequired[int]
    n_gallery: NotRequired[int]
    n_classes: NotRequired[int]
    prompt: NotRequired[str]


REQUIRED = ("value", "chance", "protocol")


def flatten_results(
    *groups: Mapping[str, Mapping[str, Any]], **common: Any
) -> dict[str, dict[str, Any]]:
    """Joins the answers of several evaluators into the flat dictionary of results.json.

    Args:
      *groups: name -> row, as the evaluators return them.
      **common: fields added to every row that does not have them, e.g. `split='test'`.

    Returns:
      name -> row with plain Python numbers, in the given order.

    Raises:
      UserError: a name that appears twice, a row without a required field, or a value that is not
        a finite number.
    """
    flat: dict[str, dict[str, Any]] = {}
    for group in groups:
        for name, row in group.items():
            if name in flat:
                raise UserError(f"{name} is reported twice: give one evaluator another prefix")
            missing = [field for field in REQUIRED if field not in row]
            if missing:
                raise UserError(f"{name} lacks {', '.join(missing)}: every number needs them")
            flat[name] = {key: _plain(name, key, entry) for key, entry in {**common, **row}.items()}
    return flat


def write_results(path: str | os.PathLike[str], *groups: Mapping, **common: Any) -> Path:
    """Adds results to results.json; a reader never sees a half-written file.

    Names already in the file keep their row unless they are given again. Writers in several
    processes on one machine wait for each other, so none of their rows is lost.

    Args:
      path: the file; it and its folder are made if they do not exist.
      *groups: name -> row.
      **common: fields added to every row that does not have them.

    Returns:
      The path written.

    Raises:
      UserError: as `flatten_results`, or if the file is there but is not a results file.
    """
    target = Path(path)
    new = flatten_results(*groups, **common)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _folder_lock(target.parent):
        merged = (read_results(target) if target.exists() else {}) | new
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(merged, file, indent=1, ensure_ascii=False, allow_nan=False)
                file.write("\n")
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    return target


def read_results(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Reads results.json.

    Raises:
      UserError: the file is not JSON, or not a dictionary of rows.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error}): move it away and run again") from error
    if not isinstance(content, dict) or not all(isinstance(row, dict) for row in content.values()):
        raise UserError(f"{path} is not a results file (name -> row): move it away and run again")
    return content


def format_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Lays results out for a terminal, chance and sizes beside every number.

    Args:
      results: name -> row.

    Returns:
      Lines of text without a final newline. Fractions are shown in percent.
    """
    header = ("metric", "value", "chance", "clips", "captions", "classes", "prompt")
    lines: list[Sequence[str]] = [header]
    for name, row in results.items():
        unit = row.get("unit", "score")
        lines.append(
            (
                name,
                _shown(row["value"], unit),
                _shown(row["chance"], unit),
                *(str(row.get(f"n_{what}", "")) for what in header[3:6]),
                str(row.get("prompt", "")),
            )
        )
    used = [
        column
        for column in range(len(header))
        if column < 3 or any(line[column] for line in lines[1:])
    ]
    widths = {column: max(len(line[column]) for line in lines) for column in used}
    left = {0, len(header) - 1}
    table = []
    for line in lines:
        cells = [
            line[column].ljust(width) if column in left else line[column].rjust(width)
            for column, width in widths.items()
        ]
        table.append("  ".join(cells).rstrip())
    table.insert(1, "  ".join("-" * widths[column] for column in used))
    notes = sorted({str(row["protocol"]) for row in results.values() if row.get("protocol")})
    return "\n".join(table + [f"  {note}" for note in notes])


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    if unit == "fraction":
        return f"{100 * value:.1f}%"
    return f"{value:.1f}" if unit == "rank" else f"{value:.3f}"


def _plain(name: str, key: str, entry: Any) -> Any:
    """Numpy scalars become Python numbers; what JSON cannot say is refused."""
    if hasattr(entry, "item") and getattr(entry, "ndim", 1) == 0:
        entry = entry.item()
    if key == "value" and (isinstance(entry, bool) or not isinstance(entry, int | float)):
        raise UserError(f"{name}: value must be a number, got {entry!r}")
    if isinstance(entry, float) and not math.isfinite(entry):
        raise UserError(f"{name}: {key} is {entry}; a result that is not finite is not reported")
    return entry


@contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Lets one process at a time change the results in a folder (advisory, released on exit)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
