"""Launchers: what they would run, compared with goldens; and those that can run here, run.

After an intended change: UPDATE_GOLDEN=1 pytest tests/launch, and read the difference.
"""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from launch import __main__ as launch
from launch import host, processes

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
TRAIN = ["--config=cacophony", "--workdir=gs://my-bucket/runs/cacophony"]
SHARED = ["--config=cacophony", "--workdir=/shared/runs/a b", "--config.train.steps=10"]
CLOUD = ["--project=my-project", "--zone=us-west4-a"]
CASES = {
    "local": ["local", "--", *SHARED],
    "local_processes": ["local", "--processes=2", "--gpus-each=4", "--", *SHARED],
    "tpu_vm": [
        *["tpu-vm", "--name=pod", *CLOUD, "--type=v5litepod-256", "--version=v2-alpha-tpuv5-lite"],
        *["--spot", "--data=gs://my-bucket/opensounds=data/opensounds", "--", *TRAIN],
    ],
    "tpu_vm_existing": ["tpu-vm", "--name=pod", *CLOUD, "--", *TRAIN],
    "xpk": [
        *["xpk", "--name=run1", *CLOUD, "--cluster=tpus", "--type=v5litepod-256", "--slices=2"],
        *["--image=my-image:1", "--", *TRAIN],
    ],
    "jobset_gpu": [
        *["jobset", "--name=run1", "--image=my-image:1", "--hosts=4"],
        *["--select=cloud.google.com/gke-accelerator=nvidia-h100-80gb", "--", *TRAIN],
    ],
    "jobset_tpu": [
        *["jobset", "--name=run1", "--image=my-image:1", "--hosts=16", "--per-host=4"],
        *["--resource=google.com/tpu", "--select=cloud.google.com/gke-tpu-topology=8x8"],
        *["--select=cloud.google.com/gke-tpu-accelerator=tpu-v5-lite-podslice", "--", *TRAIN],
    ],
    "slurm": [
        *["slurm", "--nodes=4", "--partition=gpu", "--time=8:00:00", "--submissions=3"],
        *["--", *SHARED],
    ],
    "skypilot": [
        *["skypilot", "--name=run1", "--accelerators=H100:8", "--nodes=2"],
        *["--extras=cuda,bucket", "--data=s3://my-bucket/opensounds=data/opensounds"],
        *["--", *TRAIN],
    ],
    "skypilot_spot": [
        "skypilot",
        "--name=run1",
        "--accelerators=tpu-v5e-8",
        "--spot",
        "--",
        *TRAIN,
    ],
}


def dry(arguments: list[str]) -> list[str]:
    place = arguments.index("--")
    return [*arguments[:place], "--dry-run", *arguments[place:]]


@pytest.mark.parametrize("name", CASES)
def test_dry_run(name, capsys):
    """A pod would be paid for while somebody mends a command that nobody had read."""
    assert launch.main(dry(CASES[name])) == 0
    printed = capsys.readouterr().out
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(printed)
    assert printed == golden.read_text()
    # What is printed is a script, and no placeholder was forgotten.
    subprocess.run(["bash", "-n"], input=printed, text=True, check=True)
    assert "None" not in printed


def test_every_target_and_golden_is_tested():
    """A launcher, or a golden, that is compared with nothing looks like a promise."""
    assert {arguments[0] for arguments in CASES.values()} == set(launch.TARGETS)
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", ["jobset_gpu", "jobset_tpu", "skypilot", "skypilot_spot"])
def test_files_are_yaml(name, tmp_path, monkeypatch):
    """The cluster would refuse the file."""
    place = CASES[name].index("--")
    parser_input = dry(CASES[name])
    assert place
    written = {}
    monkeypatch.setattr("launch.plan.Command.carry_out", lambda self: 0)
    monkeypatch.chdir(tmp_path)
    assert launch.main([word for word in parser_input if word != "--dry-run"]) == 0
    for path in tmp_path.iterdir():
        written = yaml.safe_load(path.read_text())
    if name.startswith("jobset"):
        template = written["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        assert template["containers"][0]["command"] == ["alm", "train", *TRAIN]
        names = [entry["name"] for entry in template["containers"][0].get("env", [])]
        described = [] if "tpu" in name else list(host.described("", "", ""))
        assert names == [*host.RESTARTED, *described]
    else:
        for script in (written["setup"], written["run"]):
            subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["slurm", "--", "--config=x"], "needs --workdir=..."),
        (["slurm"], "needs --config=... and --workdir=..."),
        (["xpk", *CASES["xpk"][1:8], "--", *SHARED], "name a bucket, such as"),
        (["tpu-vm", "--name=a", *CLOUD, "--data=/disk=x", "--", *TRAIN], "gs://BUCKET/PATH=DIR"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(arguments, message, capsys):
    """The mistake would show only after minutes of waiting for machines."""
    with pytest.raises(SystemExit) as stop:
        launch.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_launchers_need_python_alone():
    """Whoever starts a job from a workstation would have to install JAX there."""
    for path in (ROOT / "launch").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in filter(None, names):
                assert name.split(".")[0] in {*sys.stdlib_module_names, "launch"}, path


CHILD = """
import os, pathlib, signal, sys, time
number = os.environ["NUMBER"]
def stop(*_):
    print("told", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], number).touch()
if number == sys.argv[2]:
    sys.exit(3)
time.sleep(60)
"""


def test_sigterm_is_handed_on_to_every_process(tmp_path):
    """Stopping a job of several local processes would lose what they have not saved."""
    program = f"""
import sys
from launch.processes import run_together
words = [sys.executable, "-c", {CHILD!r}, {str(tmp_path)!r}, "none"]
sys.exit(run_together([dict(NUMBER=str(n)) for n in range(2)], words))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )
    for _ in range(600):
        if {path.name for path in tmp_path.iterdir()} == {"0", "1"}:
            break
        time.sleep(0.05)
    parent.send_signal(signal.SIGTERM)
    out, _ = parent.communicate(timeout=60)
    assert parent.returncode == 0
    assert out.count("told") == 2


def test_a_failed_process_ends_the_others(tmp_path, monkeypatch):
    """The command would hang on a process that waits for the dead one."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    words = [sys.executable, "-c", CHILD, str(tmp_path), "1"]
    assert processes.run_together([dict(NUMBER=str(n)) for n in range(2)], words) == 3
