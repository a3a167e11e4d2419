"""The licence of a package, as its own archive states it.

A Debian package lists licences per source file in ``usr/share/doc/NAME/copyright``; installed paths
differ from source paths, so a clip is given all licences named there, in their order, and the place
to look them up.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from input_pipeline.opensounds import archives
from input_pipeline.opensounds.index import PACKAGES

UNKNOWN = "unknown"


def licence_member(package: str, archive: Path) -> str:
    """Name of the member of ``archive`` that states the licence ('' if there is none)."""
    if archive.suffix == ".deb":
        return f"usr/share/doc/{package}/copyright"
    if archive.suffix == ".tgz":
        return "package.json"
    if not archives.is_zip(archive):
        return "PKG-INFO"
    try:
        with zipfile.ZipFile(archive) as wheel:
            names = wheel.namelist()
    except zipfile.BadZipFile:
        return ""  # reading the sounds will say what is wrong with it
    return next((name for name in names if name.endswith(".dist-info/METADATA")), "")


def describe(package: str, member: str, text: str) -> str:
    """One line that names the package's licence.

    Args:
      package: package name.
      member: where ``text`` comes from.
      text: content of that member ('' if it was not there).
    """
    if member.endswith("/copyright"):
        # The machine-readable format names a licence at the start of a field; "and"/"or" join
        # several in one.
        names = list(dict.fromkeys(re.findall(r"^License:[ \t]*(\S.*?)\s*$", text, re.MULTILINE)))
        several = "one or more of " if len(names) > 1 else ""
        stated = f"{several}{', '.join(names)}; see {member}" if names else ""
        stated = stated or (f"see {member}" if text else "")
    elif member.endswith("package.json"):
        stated = str(json.loads(text).get("license", "")) if text else ""
    else:
        match = re.search(r"^License(?:-Expression)?:[ \t]*(\S.*?)\s*$", text, re.MULTILINE)
        stated = match.group(1) if match else ""
    known = PACKAGES[package].licence if package in PACKAGES else ""
    if known and stated:
        return f"{known}; package: {stated}"
    return known or stated or UNKNOWN
