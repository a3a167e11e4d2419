"""results.json: one flat file of numbers, each with what is needed to read it.

Every entry is `name -> row`, a row being one number and its circumstances:

* `value`; `chance`, its expectation without knowledge, null where there is none; `protocol`: name,
  version and rules of the count. No row is without these;
* `unit`: 'fraction' (0..1), 'rank' (1 is best) or 'score';
* `ci_low`, `ci_high`, `ci`: a confidence interval, and how it was made;
* `n_clips`, `n_captions`, `n_queries`, `n_gallery`, `n_classes`: sizes of the problem; `gallery`;
* `prompt`: the text templates, where the number depends on them;
* `convention`: how it is counted, and who counts so, where codes differ;
* `dataset`, `split`, `dataset_fingerprint`; `note`: what keeps it from being comparable.
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
from alm_jax.evaluators.metrics.bootstrap import Interval


class Row(TypedDict):
    """The fields of a number that most evaluators give; see the module's docstring."""

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
    """Lays results out for a terminal, chance, interval and sizes beside every number.

    Args:
      results: name -> row.

    Returns:
      Lines of text without a final newline. Fractions are shown in percent. How each number was
      counted stands below, under the number of its last column.
    """
    notes = list(dict.fromkeys(filter(None, map(_note, results.values()))))
    lines: list[Sequence[str]] = [tuple(_COLUMNS)]
    for row_name, row in results.items():
        cells = {name: str(row.get(field, "")) for name, field in _COLUMNS.items()}
        unit = row.get("unit", "score")
        cells["metric"] = row_name
        cells["value"], cells["chance"] = (
            format_value(row["value"], unit),
            format_value(row["chance"], unit),
        )
        if "ci_low" in row:
            cells["95% interval"] = (
                f"{format_value(row['ci_low'], unit)}-{format_value(row['ci_high'], unit)}"
            )
        if len(notes) > 1 and (note := _note(row)):
            cells["note"] = f"[{notes.index(note) + 1}]"
        lines.append(tuple(cells.values()))
    used = [
        column
        for column in range(len(_COLUMNS))
        if any(line[column] for line in lines[1:]) or tuple(_COLUMNS)[column] in _ALWAYS
    ]
    widths = {column: max(len(line[column]) for line in lines) for column in used}
    left = {list(_COLUMNS).index(name) for name in ("metric", "data", "prompt", "note")}
    table = []
    for line in lines:
        padded = [
            line[column].ljust(width) if column in left else line[column].rjust(width)
            for column, width in widths.items()
        ]
        table.append("  ".join(padded).rstrip())
    table.insert(1, "  ".join("-" * widths[column] for column in used))
    numbered = len(notes) > 1
    return "\n".join(
        table + [f"  [{n}] {note}" if numbered else f"  {note}" for n, note in enumerate(notes, 1)]
    )


def with_interval(interval: Interval | None, unit: str = "clips") -> dict[str, Any]:
    """The fields of a row that give its confidence interval; none where there is none."""
    return {} if interval is None else interval.fields(unit)


# Column -> field of a row.
_COLUMNS = {
    "metric": "",
    "value": "",
    "95% interval": "",
    "chance": "",
    "clips": "n_clips",
    "captions": "n_captions",
    "queries": "n_queries",
    "gallery": "n_gallery",
    "classes": "n_classes",
    "data": "dataset_fingerprint",
    "prompt": "prompt",
    "note": "",
}
_ALWAYS = ("metric", "value", "chance")


def _note(row: Mapping[str, Any]) -> str:
    """How a number was counted, in one line."""
    parts = (row.get("protocol"), row.get("convention"), row.get("ci"), row.get("note"))
    return "; ".join(str(part) for part in parts if part)


def format_value(value: float | None, unit: str) -> str:
    """A number for people: a fraction in percent, "-" for None."""
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
