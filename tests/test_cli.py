"""The `alm` command: which verbs it has, how fast it answers, and how errors look."""

import os
import pathlib
import resource
import signal
import subprocess
import sys

import pytest

from alm_jax import arguments, cli, errors

ALM = [sys.executable, "-m", "alm_jax"]


@pytest.fixture
def verb(tmp_path, monkeypatch):
    """Adds the verb `speak` from a source text: `verb(body)` makes `main(argv)` with that body."""
    package = tmp_path / "verb_package"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cli.MODULES, "speak", "verb_package.speak")
    # What an earlier test imported under this name would be found again.
    for name in ("verb_package", "verb_package.speak"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def write(body: str) -> pathlib.Path:
        path = package / "speak.py"
        path.write_text(
            '"""Says what it is told.\n\nMore."""\n'
            "from alm_jax.errors import UserError\n"
            f"def main(argv=None):\n    {body}\n"
        )
        return path

    return write


def test_help_lists_verbs_at_once_without_importing_jax():
    """Slow or heavy help makes the tool feel broken, and fails where JAX cannot start."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run([*ALM, "--help"], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # The processor's time, for the machine may be busy; 0.05 s here.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
    for name in cli.verbs():
        assert f"  {name}  " in result.stdout
    code = "import sys, alm_jax.cli as c; c.main(['--help']); print([m for m in sys.modules " \
        "if m.split('.')[0] in ('jax', 'numpy', 'ml_collections', 'argparse')])"  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "[]"


def test_every_listed_verb_has_a_summary_and_starts(capsys):
    """`alm --help` must not list a verb that then fails to start."""
    for name, path in cli.verbs().items():
        assert cli._summary(path), f"{path} has no module docstring for `alm --help`"
        with pytest.raises(SystemExit) as caught:
            cli.main([name, "--help"])
        assert caught.value.code == 0
        assert "usage: " in capsys.readouterr().out, f"alm {name} --help"


def test_module_without_main_is_no_verb(verb, capsys):
    """A library module that bears a verb's name must not be offered."""
    verb("return 0").write_text('"""Only functions."""\n')
    assert "speak" not in cli.verbs()
    assert cli.main(["speak"]) == 2
    assert "unknown verb 'speak'" in capsys.readouterr().err


def test_verb_runs_with_its_arguments_and_status(verb, capsys):
    """The verb sees exactly what stands behind its name."""
    verb("print(argv); return 3")
    assert cli.main(["speak", "--loud", "a b", "звук"]) == 3
    assert capsys.readouterr().out == "['--loud', 'a b', 'звук']\n"
    cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines if "speak" in line] == [
        ["speak", "Says what it is told."]
    ]


def test_no_arguments_prints_help_and_fails(capsys):
    """A script that loses its verb must not succeed."""
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: alm VERB")
    assert cli.main(["--help"]) == 0


def test_version(capsys):
    """Bug reports name the version."""
    import alm_jax

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"alm_jax {alm_jax.__version__}\n"


def test_unknown_verb_names_the_closest(verb, capsys):
    """A misspelt verb leads to the right one."""
    verb("return 0")
    assert cli.main(["spaek"]) == 2
    assert "unknown verb 'spaek'; did you mean 'speak'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise UserError('x.wav is not audio; give a sound file')", "x.wav is not audio"),
        ("open('/no/such/file')", "/no/such/file"),
        ("open('/')", "Is a directory"),
    ],
)
def test_user_error_is_one_message_and_status_2(verb, capsys, body, message, monkeypatch):
    """A traceback for a mistyped path hides the one line that matters."""
    monkeypatch.delenv("ALM_DEBUG", raising=False)
    verb(body)
    assert cli.main(["speak"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("alm speak: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    for argv, environment in (("--debug speak", "0"), ("speak --debug", ""), ("speak", "1")):
        monkeypatch.setenv("ALM_DEBUG", environment)
        with pytest.raises((errors.UserError, OSError)):
            cli.main(argv.split())


def test_bug_keeps_its_traceback(verb):
    """A bug reported as bad input cannot be found."""
    verb("return {}['key']")
    with pytest.raises(KeyError):
        cli.main(["speak"])


def test_interrupt_is_quiet(verb, capsys):
    """Ctrl-C is no error to explain."""
    verb("raise KeyboardInterrupt")
    assert cli.main(["speak"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_interrupt_of_a_real_process(tmp_path):
    """The same through the signal that a terminal sends."""
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    code = (
        "import signal, sys, time; from alm_jax import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def main(argv):\n    print('ready', flush=True); time.sleep(60)\n"
        "sys.exit(cli.run(main, []))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.strip() == "alm: stopped"


def test_reader_that_leaves_early():
    """`alm caption *.wav | head -1` must end without a traceback."""
    code = (
        "import sys; from alm_jax import cli\n"
        "def main(argv):\n    for i in range(100000): print('line', i)\n"
        "sys.exit(cli.run(main, []))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=20) == 141
    assert err == ""


def test_file_name_that_is_no_utf8_can_be_printed():
    """Archives from old systems hold such names; printing one must not crash the verb."""
    code = (
        "import sys; from alm_jax import cli\n"
        "def main(argv):\n    print(argv[0])\n"
        "sys.exit(cli.run(main))"
    )
    name = b"caf\xe9.wav"
    result = subprocess.run(
        [sys.executable, "-c", code, name], capture_output=True, check=True, env=dict(os.environ)
    )
    assert result.stdout == b"caf\\udce9.wav\n"


# ---- flags of the verbs


def test_parser_takes_no_abbreviation_and_names_the_closest_flag(capsys):
    """`--out` must not mean `--output` today and something else tomorrow."""
    parser = arguments.ArgumentParser(prog="alm embed")
    parser.add_argument("--output")
    parser.add_argument("--batch-size", type=int, default=1)
    assert parser.parse_args(["--batch-size=3"]).batch_size == 3
    for argv, message in (
        (["--outptu=x"], "unknown flag --outptu; did you mean '--output'?"),
        (["--batch_size", "3"], "unknown flag --batch_size; did you mean '--batch-size'?"),
        (["--batch-size=x"], "invalid int value: 'x'"),
        (["stray"], "unexpected argument 'stray'"),
    ):
        with pytest.raises(SystemExit) as caught:
            parser.parse_args(argv)
        assert caught.value.code == 2
        err = capsys.readouterr().err
        assert err.startswith("alm embed: error: ")
        assert message in err


def test_overrides_are_taken_out_of_other_arguments():
    """A file called config.wav is a file; what follows `--` is never an override."""
    overrides, rest = arguments.split_overrides(
        ["config.wav", "--config.a=1", "config.b=x=y", "--text", "t", "--", "--config.c=3"]
    )
    assert overrides == ["a=1", "b=x=y"]
    assert rest == ["config.wav", "--text", "t", "--", "--config.c=3"]


def test_load_is_imported_on_first_use_only():
    """`import alm_jax` must stay immediate; an unknown attribute must still be an error."""
    code = (
        "import sys, alm_jax\n"
        "assert 'jax' not in sys.modules\n"
        "assert 'load' in dir(alm_jax)\n"
        "try:\n    alm_jax.laod\n"
        "except AttributeError as error:\n    assert 'laod' in str(error)\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
