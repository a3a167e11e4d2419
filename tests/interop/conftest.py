"""Exports of the tiny models, made once, and sounds to try them on."""

from __future__ import annotations

import pytest

from alm_jax.export import real_examples
from alm_jax.inference.model import Model
from alm_jax.interop import torch_export
from alm_jax.interop.exported import read_model
from alm_jax.interop.model_card import DataSummary
from alm_jax.interop.parity import Reference
from tests import model_fixtures
from tests.interop.sounds import sound


@pytest.fixture(scope="session")
def clips():
    """One sample to six windows of 2 s; of 4.15 s the rest is dropped, of 4.5 s kept."""
    seconds = (0.0, 0.01, 0.3, 1.0, 2.0, 2.1, 4.15, 4.5, 12.0)
    return [sound(length, seed) for seed, length in enumerate(seconds)]


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """Parent folder of the exports; what else lies in it was left behind."""
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="session")
def references():
    """The compiled JAX models of the session's exports, by name of the experiment."""
    return {}


@pytest.fixture(scope="session")
def export(exports, references, clips):
    """Function: name, workdir -> (export, report); keeps the compiled reference."""

    def run(name, workdir, **arguments):
        class Kept(Reference):
            def __init__(self, *parts):
                super().__init__(*parts)
                references[name] = self

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch_export, "Reference", Kept)
            report = torch_export.export_torch(workdir, exports / name, **arguments)
        return exports / name, report

    return run


@pytest.fixture(scope="session")
def real_clips(tiny_dataset):
    """20 recordings of differing lengths, int16 [S]."""
    clips, _ = real_examples(str(tiny_dataset), "test", 16000)
    return clips


@pytest.fixture(scope="session")
def clap(export, clips, real_clips):
    """(export of the stage-2 workdir, its report)."""
    results = {
        "eval/retrieval/audio_to_text/R@10": {
            "value": 0.53, "chance": 0.012, "unit": "fraction", "protocol": "p", "n_clips": 840,
            "n_captions": 820, "prompt": "the caption as written",
        }
    }  # fmt: skip
    data = DataSummary("opensounds/tiny/1.0.0", "train", 700, 0.25, {"CC0-1.0": 600, "": 100}, 9)
    return export(
        "clap", model_fixtures.clap_workdir(),
        clips=[*clips, *real_clips], captions=model_fixtures.CAPTIONS, results=results, data=data,
    )  # fmt: skip


@pytest.fixture(scope="session")
def mae(export):
    """(export of the stage-1 workdir, its report), compared on synthetic waves only."""
    return export("mae", model_fixtures.mae_workdir())


@pytest.fixture
def compiled(clap, references, monkeypatch):
    """Lets exports of the stage-2 model reuse the compiled reference, with their own parameters."""
    kept = references["clap"]

    def reuse(config, params, tokenizer):
        kept.params = params
        return kept

    old = kept.params
    monkeypatch.setattr(torch_export, "Reference", reuse)
    yield
    kept.params = old


@pytest.fixture(scope="session")
def torch_clap(clap):
    """The stage-2 model in PyTorch."""
    return torch_export.load_module(clap[0]).AudioTextModel.from_pretrained(clap[0])


@pytest.fixture(scope="session")
def jax_clap():
    """The stage-2 model in JAX, with one bucket, so that it compiles once for all clips."""
    config, params, tokenizer = read_model(model_fixtures.clap_workdir())
    config = config.copy_and_resolve_references()
    config.eval.bucket_seconds = (config.data.max_seconds,)
    return Model(config, params, tokenizer, "the test's workdir")
