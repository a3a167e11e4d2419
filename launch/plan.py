"""What a launcher does: files to write and commands to run, shown or carried out."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shlex
import subprocess
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class File:
    """A file to write, its folder included."""

    path: str
    text: str

    def shell(self) -> str:
        """The shell command that writes it."""
        folder = os.path.dirname(self.path)
        make = f"mkdir -p {shlex.quote(folder)}\n" if folder else ""
        return f"{make}cat > {shlex.quote(self.path)} <<'END_OF_FILE'\n{self.text}END_OF_FILE"

    def carry_out(self) -> int:
        """Writes it."""
        path = pathlib.Path(self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text, encoding="utf-8")
        return 0


@dataclasses.dataclass(frozen=True)
class Command:
    """A command to run to its end."""

    words: tuple[str, ...]

    def shell(self) -> str:
        """The command as one would type it."""
        return shlex.join(self.words)

    def carry_out(self) -> int:
        """Runs it, after saying so; gives its exit status."""
        print(f"+ {self.shell()}", flush=True)
        try:
            return subprocess.run(self.words, check=False).returncode
        except FileNotFoundError:
            print(f"launch: error: there is no command {self.words[0]!r} here; install it first")
            return 127


@dataclasses.dataclass(frozen=True)
class Together:
    """Processes that run side by side, each with variables of its own."""

    environments: tuple[dict[str, str], ...]
    words: tuple[str, ...]

    def shell(self) -> str:
        """The commands as one would type them."""
        lines = [
            " ".join([*(f"{k}={shlex.quote(v)}" for k, v in e.items()), shlex.join(self.words)])
            for e in self.environments
        ]
        return lines[0] if len(lines) == 1 else "\n".join([*(f"{x} &" for x in lines), "wait"])

    def carry_out(self) -> int:
        """Runs them; see `launch.processes`."""
        from launch.processes import run_together

        return run_together(self.environments, self.words)


Step = File | Command | Together


def run(steps: Sequence[Step], dry_run: bool) -> int:
    """Carries out the steps until one fails, or only prints them as a shell script.

    Returns:
      The exit status of the last step carried out.
    """
    for step in steps:
        if dry_run:
            print(step.shell())
        elif status := step.carry_out():
            return status
    return 0
