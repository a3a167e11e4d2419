"""Configs: where they are found, what an override may do, and what survives saving."""

import json
import pathlib
import textwrap

import numpy as np
import pytest
from ml_collections import ConfigDict

from alm_jax import config as config_lib
from alm_jax.config import ConfigError
from alm_jax.interop import model_card

CONFIG = """
    from ml_collections import config_dict

    def get_config(arg=""):
        config = config_dict.ConfigDict()
        config.name = "experiment"
        config.seed = 0
        config.note = config_dict.placeholder(str)
        config.free = None
        config.data = config_dict.ConfigDict()
        config.data.dir = "data/opensounds/tiny"
        config.data.batch_size = 256
        config.data.max_seconds = 10.0
        config.data.shuffle = True
        config.optim = config_dict.ConfigDict()
        config.optim.lr = 1e-3
        config.optim.betas = (0.9, 0.999)
        config.optim.clip_norm = config_dict.placeholder(float)
        config.mesh = config_dict.ConfigDict()
        config.mesh.axes = ["data", "fsdp"]
        config.mesh.shape = (-1, 1)
        config.mesh.rules = (("embed", None), ("mlp", "fsdp"))
        config.empty = config_dict.ConfigDict()
        config.train = config_dict.ConfigDict()
        config.train.steps = 1000
        config.train.warmup_steps = config.train.get_ref("steps") // 10
        if arg:
            config.name = arg
        return config
"""


@pytest.fixture
def config_file(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "experiment.py"
    path.write_text(textwrap.dedent(CONFIG))
    return str(path)


def load(config_file: str, *overrides: str) -> config_lib.ConfigDict:
    return config_lib.load_config(config_file, overrides)


# ---- values of overrides


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("--config.optim.lr=1e-4", "optim.lr", 1e-4),
        ("config.optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.lr=1e-4", "optim.lr", 1e-4),
        ("optim.lr=1", "optim.lr", 1.0),
        ("optim.lr=inf", "optim.lr", float("inf")),
        ("data.batch_size=64", "data.batch_size", 64),
        ("data.batch_size=1e4", "data.batch_size", 10_000),
        ("data.batch_size=64.0", "data.batch_size", 64),
        ("seed=-1", "seed", -1),
        ("data.shuffle=false", "data.shuffle", False),
        ("data.shuffle=True", "data.shuffle", True),
        ("data.dir=/a=b, c/", "data.dir", "/a=b, c/"),
        ("data.dir=", "data.dir", ""),
        ("name=none", "name", "none"),
        ("mesh.shape=(2,4)", "mesh.shape", (2, 4)),
        ("mesh.shape=2,4", "mesh.shape", (2, 4)),
        ("mesh.shape=[2, 4]", "mesh.shape", (2, 4)),
        ("optim.betas=(0,0.95)", "optim.betas", (0.0, 0.95)),
        ("mesh.axes=('data',)", "mesh.axes", ("data",)),
        ("mesh.axes=data,tensor", "mesh.axes", ("data", "tensor")),
        ("mesh.axes=(data,tensor)", "mesh.axes", ("data", "tensor")),
        ("mesh.axes=()", "mesh.axes", ()),
        ("mesh.rules=(('embed','fsdp'),)", "mesh.rules", (("embed", "fsdp"),)),
        ("optim.clip_norm=1", "optim.clip_norm", 1.0),
        ("optim.clip_norm=none", "optim.clip_norm", None),
        ("note=hello", "note", "hello"),
        ("note=None", "note", None),
        ("free=3", "free", 3),
        ("free=[1,[2]]", "free", (1, (2,))),
        ("free=some words", "free", "some words"),
    ],
)
def test_override_takes_value_of_the_fields_type(config_file, override, key, expected):
    """A valid override that is refused, or read as another type, makes sweeps impossible."""
    value = config_lib.flatten(load(config_file, override))[key]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("override", "wanted", "example"),
    [
        ("optim.lr=fast", "float", "--config.optim.lr=1e-4"),
        ("optim.lr=none", "float", "--config.optim.lr="),
        ("optim.lr=", "float", "--config.optim.lr="),
        ("data.batch_size=64.5", "int", "--config.data.batch_size="),
        ("data.batch_size=inf", "int", "--config.data.batch_size="),
        ("data.batch_size=true", "int", "--config.data.batch_size="),
        ("data.shuffle=1", "bool", "--config.data.shuffle=true"),
        ("data.shuffle=yes", "bool", "--config.data.shuffle=true"),
        ("mesh.shape=4", "tuple", "--config.mesh.shape=(-1,1)"),
        ("mesh.shape=(2,4.5)", "tuple", "--config.mesh.shape=(-1,1)"),
        ("mesh.shape=(data,fsdp)", "tuple", "--config.mesh.shape=(-1,1)"),
        ("mesh.axes=(1,2)", "tuple", "--config.mesh.axes="),
        ("optim.clip_norm=much", "float or none", "--config.optim.clip_norm="),
    ],
)
def test_value_of_wrong_type_names_key_value_type_and_example(
    config_file, override, wanted, example
):
    """Otherwise a run starts with a learning rate of 'fast', or dies hours later."""
    key, _, given = override.partition("=")
    with pytest.raises(ConfigError) as caught:
        load(config_file, override)
    message = str(caught.value)
    assert f"config.{key} must be {wanted}" in message
    assert repr(given) in message
    assert example in message


def test_nan_is_refused(config_file):
    """A NaN in a config differs from itself, so every resume would report a changed config."""
    with pytest.raises(ConfigError, match=r"config\.optim\.lr is NaN"):
        load(config_file, "optim.lr=nan")


# ---- keys of overrides


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optm.lr", "config.optim.lr"),
        ("optim.learning_rate", "config.optim.lr"),
        ("lr", "config.optim.lr"),
        ("train.lr", "config.optim.lr"),
        ("optim.beta", "config.optim.betas"),
        ("batch_size", "config.data.batch_size"),
        ("data.batchsize", "config.data.batch_size"),
        ("train.warmup", "config.train.warmup_steps"),
        ("sede", "config.seed"),
    ],
)
def test_misspelt_key_names_the_closest_full_path(config_file, key, meant):
    """A misspelt key that is accepted trains with the default and wastes the run."""
    with pytest.raises(ConfigError) as caught:
        load(config_file, f"--config.{key}=1")
    message = str(caught.value)
    assert f"config.{key}" in message
    suggestions = message.partition("did you mean ")[2]
    if key == "optim.learning_rate":  # resembles nothing: the group's fields are listed instead
        assert "lr" in message
    else:
        assert suggestions.split(" or ")[0].rstrip("?") == meant, message


def test_key_like_nothing_lists_the_fields_of_its_group(config_file):
    """Where there is no guess, the user still learns what the group has."""
    with pytest.raises(ConfigError, match=r"the fields of config\.train are: steps, warmup_steps"):
        load(config_file, "train.qqqqqqqqqqqqqqqqqqqq=1")
    with pytest.raises(ConfigError, match=r"config\.empty has no fields in this config"):
        load(config_file, "empty.qqqqqqqqqqqqqqqqqqqq=1")


def test_group_cannot_be_replaced_nor_a_leaf_descended(config_file):
    """Replacing a group would drop its other fields without a word."""
    with pytest.raises(ConfigError, match=r"config\.train is a group.*config\.train\.steps"):
        load(config_file, "train={}")
    with pytest.raises(ConfigError, match=r"config\.seed is a single value"):
        load(config_file, "seed.x=1")


def test_override_without_value_is_an_error(config_file):
    """`--config.data.shuffle` must not silently mean anything."""
    with pytest.raises(ConfigError, match=r"no value.*--config\.seed=VALUE"):
        load(config_file, "--config.seed")


def test_last_override_wins_and_references_follow(config_file):
    """A warm-up derived from the number of steps must follow an override of the steps."""
    config = load(config_file, "train.steps=10", "train.steps=500", "note=a", "note=none")
    assert (config.train.steps, config.train.warmup_steps) == (500, 50)
    assert config.note is None


def test_loaded_config_is_locked_and_immutable_in_type(config_file):
    """A typing mistake in code that sets a field must raise, not add a field nobody reads."""
    config = load(config_file)
    with pytest.raises(AttributeError):
        config.optim.learning_rate = 1.0
    with pytest.raises(TypeError):
        config.optim.lr = "fast"
    assert config.mesh.axes == ("data", "fsdp")


def test_required_field_must_be_given(tmp_path):
    """A config without a sensible default asks for the value before any work is done."""
    path = tmp_path / "c.py"
    path.write_text(
        "from ml_collections import config_dict\n"
        "def get_config():\n"
        "    return config_dict.ConfigDict(\n"
        "        {'data': {'dir': config_dict.required_placeholder(str)}})\n"
    )
    with pytest.raises(
        ConfigError, match=r"config\.data\.dir has no default.*--config\.data\.dir="
    ):
        load(str(path))
    assert load(str(path), "data.dir=/here").data.dir == "/here"


# ---- finding and running files


def test_argument_reaches_get_config(config_file):
    """`configs/x.py:arg` is how one file serves several sizes."""
    assert load(config_file + ":tiny,res=128").name == "tiny,res=128"
    assert load(config_file).name == "experiment"


def test_path_with_a_colon_in_a_folder(tmp_path):
    """A folder such as `12:30` must not be taken for the config's argument."""
    folder = tmp_path / "12:30"
    folder.mkdir()
    (folder / "c.py").write_text(textwrap.dedent(CONFIG))
    assert load(f"{folder}/c.py:arg:b").name == "arg:b"


def test_config_file_imports_its_neighbour_afresh(tmp_path):
    """Configs share common.py by a relative import, from whatever folder they are in."""
    for name, lr in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "common.py").write_text(f"LR = {lr}\n")
        (folder / "c.py").write_text(
            "from ml_collections import ConfigDict\nfrom . import common\n"
            "def get_config(arg=''):\n    return ConfigDict({'lr': common.LR})\n"
        )
    assert load(str(tmp_path / "a" / "c.py")).lr == 1.0
    assert load(str(tmp_path / "b" / "c.py")).lr == 2.0
    (tmp_path / "a" / "common.py").write_text("LR = 1234.5\n")
    assert load(str(tmp_path / "a" / "c.py")).lr == 1234.5


def test_missing_config_names_shipped_ones_closest_first(tmp_path, monkeypatch):
    """A misspelt config name must lead to the right one."""
    shipped = {
        name: tmp_path / f"{name}.py" for name in ("cacophony", "cacophony_mae", "quickstart")
    }
    monkeypatch.setattr("alm_jax.config_files.shipped_configs", lambda: shipped)
    for spec in ("quikstart", "configs/quikstart.py:arg"):
        with pytest.raises(ConfigError, match=r"closest first: quickstart, .*cacophony") as caught:
            load(spec)
        assert "quikstart" in str(caught.value)
    with pytest.raises(ConfigError, match=r"closest first: cacophony, cacophony_mae, quickstart"):
        load("cacofony")


def test_every_shipped_config_is_found_by_its_bare_name():
    """`--config=cacophony` must work from any folder."""
    shipped = config_lib.shipped_configs()
    folder = pathlib.Path(__file__).parent.parent / "configs"
    names = {p.stem for p in folder.glob("*.py") if "\ndef get_config(" in p.read_text()}
    assert set(shipped) == names
    for name in shipped:
        config = config_lib.load_config(name)
        assert config_lib.load_config(str(shipped[name])) == config


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("x = 1\n", "defines no get_config"),
        ("import no_such_module_here\n", "line 1: ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError"),
        (
            "def get_config():\n    return {}\n",
            "must return an ml_collections ConfigDict, not dict",
        ),
    ],
)
def test_broken_config_file_is_named_with_the_line(tmp_path, source, message):
    """The user edits this file: the message must point into it."""
    path = tmp_path / "broken.py"
    path.write_text(source)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_argument_for_a_config_that_takes_none(tmp_path):
    """`file.py:tiny` must not run the full size because the argument was dropped."""
    path = tmp_path / "c.py"
    path.write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()\n"
    )
    with pytest.raises(ConfigError, match="takes no argument, but 'tiny'"):
        load(f"{path}:tiny")


@pytest.mark.parametrize("value", ["np.float32(1)", "np.zeros(2)", "print", "({'a': 1},)"])
def test_leaf_that_json_cannot_bring_back_is_refused(tmp_path, value):
    """A resumed run must be able to read exactly the config that started it."""
    path = tmp_path / "c.py"
    path.write_text(
        "import numpy as np\nfrom ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({{'g': {{'x': {value}}}}})\n"
    )
    with pytest.raises(ConfigError, match=r"config\.g\.x holds a "):
        load(str(path))


def test_parse_arg():
    """A config's own argument is as strict as an override."""
    args = config_lib.parse_arg("tiny, width=192,shape=(1,2),dir=x", tiny=False, width=768,
                                shape=(4, 4), dir=None, lr=1.0)  # fmt: skip
    assert vars(args) == {"tiny": True, "width": 192, "shape": (1, 2), "dir": "x", "lr": 1.0}
    assert vars(config_lib.parse_arg("", tiny=False)) == {"tiny": False}
    with pytest.raises(ConfigError, match=r"unknown config argument 'wdith'; did you mean 'width'"):
        config_lib.parse_arg("wdith=1", width=768)
    with pytest.raises(ConfigError, match=r"argument width must be int, not 'x'; .* width=1000"):
        config_lib.parse_arg("width=x", width=768)
    with pytest.raises(ConfigError, match=r"'width' needs a value"):
        config_lib.parse_arg("width", width=768)


def test_absolute_import_of_a_neighbour_says_how(tmp_path):
    """`from common import ...` works nowhere else, so the message must give the right form."""
    (tmp_path / "common.py").write_text("")
    (tmp_path / "c.py").write_text("from common import base\n")
    with pytest.raises(ConfigError, match=r"from \.common import"):
        load(str(tmp_path / "c.py"))


# ---- saving and comparing


def test_saved_config_reads_back_equal(config_file, tmp_path):
    """Resuming compares the saved config with the given one: equal must mean equal."""
    config = load(config_file, "optim.lr=0.1", "data.dir=звук/音", "free=(1,(2.0,None,true))")
    path = tmp_path / "config.json"
    config_lib.save_config(config, path)
    back = config_lib.read_config(path)
    assert back == config
    assert config_lib.config_diff(back, config) == []
    assert config_lib.to_text(back) == config_lib.to_text(config)
    assert back.is_locked
    assert json.loads(path.read_text(encoding="utf-8"))["optim"]["lr"] == 0.1
    assert [p.name for p in tmp_path.iterdir() if p.suffix != ".py"] == ["config.json"]
    # A run is repeated from its saved config, with overrides.
    again = config_lib.load_config(str(path), ["optim.lr=0.2"])
    assert config_lib.config_diff(config, again) == ["optim.lr: 0.1 -> 0.2"]


def test_floats_survive_saving_bit_for_bit(tmp_path):
    """A learning rate that changes in its last bit breaks bitwise resume."""
    rng = np.random.default_rng(0)
    values = np.frombuffer(rng.bytes(8 * 200), np.float64)
    config = config_lib.ConfigDict({"x": tuple(float(v) for v in values[np.isfinite(values)])})
    config_lib.save_config(config, tmp_path / "c.json")
    assert config_lib.read_config(tmp_path / "c.json").x == config.x


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\x00"])
def test_unreadable_saved_config_is_named(tmp_path, content):
    """A truncated config.json must say which file is at fault."""
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=str(path)):
        config_lib.read_config(path)


def test_diff_shows_changed_added_removed_and_retyped():
    """A resume with a changed config lists exactly what changed."""
    old = config_lib.ConfigDict({"a": 1, "b": {"c": 1.0, "d": "x"}, "e": True})
    new = config_lib.ConfigDict({"a": 1, "b": {"c": 2.0, "f": None}, "e": 1})
    assert config_lib.config_diff(old, new) == [
        "b.c: 1.0 -> 2.0",
        "b.d: 'x' -> (absent)",
        "b.f: (absent) -> None",
        "e: True -> 1",
    ]


def test_text_has_one_sorted_line_a_leaf():
    """Golden texts of configs must not depend on the order of definition."""
    config = config_lib.ConfigDict({"b": {"y": (1, "a"), "x": 1e-4}, "a": None})
    assert config_lib.to_text(config) == "a = None\nb.x = 0.0001\nb.y = (1, 'a')\n"


# ---- the command line of train


def test_train_arguments(config_file):
    """`alm train` takes its flags in any order, with = or a space."""
    spec = f"{config_file}:tiny"
    argv = ["--config.optim.lr=1", "--workdir", "runs/x", f"--config={spec}", "config.name=n"]
    argv += ["--config.seed", "-3"]
    args = config_lib.parse_train_argv(argv)
    overrides = ("optim.lr=1", "name=n", "seed=-3")
    assert args == config_lib.TrainArgs(load(spec, *overrides), "runs/x", spec, overrides)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--config=c --wrokdir=x", "--workdir"),
        ("--config=c --workdir=x --wrokdir=x", "unknown flag --wrokdir; did you mean '--workdir'"),
        ("--config=c --work=x", "--workdir"),
        ("--workdir=x", "--config"),
        ("--config=c --workdir=x extra", "unexpected argument 'extra'"),
        ("--config=c --workdir=x --config.seed", "--config.seed has no value"),
        ("--config=c --workdir=x --config.seed --config.b=1", "--config.seed has no value"),
    ],
)
def test_wrong_train_flags_exit_with_the_closest_flag(argv, message, capsys):
    """A misspelt --workdir must not train into a folder nobody finds."""
    with pytest.raises(SystemExit) as caught:
        config_lib.parse_train_argv(argv.split())
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_what_a_model_was_trained_on():
    """Cards would name data, and its licences, that an imported model has never seen."""
    config = ConfigDict({"data": {"dir": "a", "mixture": ()}})
    assert config_lib.training_folders(config) == ["a"]
    config.data.mixture = (("b", 1.0), ("c", 2.0))  # evaluation reads a
    assert config_lib.training_folders(config) == ["b", "c"]
    config.data.dir, config.data.mixture = "", ()
    assert config_lib.training_folders(config) == []
    assert "Imported from an official checkpoint" in model_card._data(config, None)
