"""AudioMAE in PyTorch: class token, fixed positions, window and plain decoder, classifier."""

from __future__ import annotations

import numpy as np
import pytest

from alm_jax.config import load_config
from alm_jax.interop.exported import read_export
from alm_jax.interop.layouts import load_module
from alm_jax.interop.torch_export import export_params
from alm_jax.train_state import model_graph
from tests import random_params

_AUDIO = [
    *(f"model.audio.{field}" for field in ("width=32", "depth=2", "heads=2", "mlp_dim=64")),
    *("patches.frames=80", "data.max_seconds=1.0", "eval.bucket_seconds=(1.0,)"),
]
_DECODER = [f"model.mae_decoder.{field}" for field in ("width=32", "depth=2", "heads=2")]
_MODELS = {
    # 5 x 8 patches: windows of 4 x 4 do not divide the columns.
    "audiomae": [*_DECODER, "model.mae_decoder.mlp_dim=64", "model.mae_decoder.bias_hidden=8"],
    "audiomae:plain_decoder": [*_DECODER, "model.mae_decoder.mlp_dim=64"],
    "audiomae:finetune,overlap": ["model.classifier.classes=7", "model.audio.positions=table"],
}


@pytest.mark.slow
@pytest.mark.parametrize("spec", _MODELS)
def test_goes_out(spec, tmp_path, real_clips):
    """Who exports an AudioMAE would get another model, or none. On 20 recordings, as promised."""
    config = load_config(spec, [*_AUDIO, *_MODELS[spec]])
    _, abstract = model_graph(config, 0)
    params = random_params.draw(abstract)
    if spec == "audiomae":  # temperatures near zero would multiply rounding by 100
        attention = params["mae_decoder"]["transformer"]["blocks"]["attention"]
        attention["tau"] = np.abs(attention["tau"]) + 0.5
    report = export_params(config, params, None, tmp_path / "out", clips=real_clips)
    extra = "class_logits" if "finetune" in spec else "mae_prediction"
    assert set(report.differences) == {"log_mel", "audio_embedding", extra}
    assert len(real_clips) == 20
    assert max(v for name, v in report.differences.items() if name != "log_mel") <= 1e-5, report
    _, back, _ = read_export(tmp_path / "out")
    np.testing.assert_array_equal(back["audio"]["class_token"], params["audio"]["class_token"])
    model = load_module(tmp_path / "out").AudioTextModel.from_pretrained(tmp_path / "out")
    if "finetune" in spec:
        assert model.classify(real_clips[:4], 16000).shape == (4, 7)
