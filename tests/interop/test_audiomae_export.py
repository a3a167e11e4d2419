"""AudioMAE in PyTorch: class token, fixed positions, window and plain decoder, classifier."""

from __future__ import annotations

import numpy as np
import pytest

from alm_jax.interop.exported import read_export
from alm_jax.interop.layouts import load_module
from alm_jax.interop.torch_export import export_params
from tests.interop import mae_models


@pytest.mark.slow
@pytest.mark.parametrize("spec", mae_models.MODELS)
def test_goes_out(spec, tmp_path, real_clips):
    """Who exports an AudioMAE would get another model, or none. On 20 recordings, as promised."""
    config, params = mae_models.audiomae(spec)
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
