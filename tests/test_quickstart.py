"""The quickstart's own logic; that it runs as a whole is tests/e2e/test_quickstart.py."""

from pathlib import Path

import pytest

from alm_jax import cli
from alm_jax.config import ConfigError, save_config
from alm_jax.errors import UserError
from alm_jax.quickstart import quickstart, stage_config


def test_overrides_reach_the_stage_they_name() -> None:
    """`--config.mae.train.steps=7` would shorten stage 2 as well, or nothing."""
    overrides = ["data.batch_size=16", "mae.train.steps=7", "clap.train.steps=9"]
    mae = stage_config("quickstart", "mae", "default", overrides, ["data.dir=D"])
    clap = stage_config("quickstart", "clap", "default", overrides, ["data.dir=D"])
    assert (mae.train.steps, clap.train.steps) == (7, 9)
    assert mae.data.batch_size == clap.data.batch_size == 16
    assert mae.data.dir == clap.data.dir == "D"
    assert mae.model.text is None and clap.model.text is not None


def test_a_user_may_override_what_the_quickstart_sets() -> None:
    """Stage 2 could not be started from another stage 1."""
    given = ["clap.init_from.workdir=elsewhere"]
    clap = stage_config("quickstart", "clap", "default", given, ["init_from.workdir=here"])
    assert clap.init_from.workdir == "elsewhere"


def test_tiny_is_shorter() -> None:
    """`make quickstart TIER=tiny` would take as long as the default tier."""
    for stage in ("mae", "clap"):
        tiny = stage_config("quickstart", stage, "tiny", [], [])
        assert tiny.train.steps < stage_config("quickstart", stage, "default", [], []).train.steps


def test_misspelt_override() -> None:
    """A typing mistake would train a quarter of an hour with the wrong setting."""
    with pytest.raises(ConfigError, match=r"train\.steps"):
        stage_config("quickstart", "mae", "tiny", ["mae.train.stepps=7"], [])


def test_another_tier_in_the_same_folder_is_refused_at_once(tmp_path: Path) -> None:
    """It would fetch 325 MB and only then refuse to mix two runs."""
    config = stage_config("quickstart", "mae", "default", [], ["data.dir=data/opensounds/default"])
    (tmp_path / "mae").mkdir()
    save_config(config, tmp_path / "mae" / "config.json")
    with pytest.raises(UserError, match="--output"):
        quickstart("tiny", tmp_path, tmp_path / "data")


def test_missing_packages_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network and with a wrong folder a person would read a traceback."""
    arguments = ["--tier=tiny", f"--output={tmp_path}", f"--data={tmp_path}", "--packages=nowhere"]
    status = cli.main(["quickstart", *arguments])
    assert status == 2
    assert "nowhere" in capsys.readouterr().err
