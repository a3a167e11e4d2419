"""The panels of masked and reconstructed spectrograms."""

import base64
import io

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

from alm_jax.audio.masking import MaskingConfig, example_keys, mask_view
from alm_jax.audio.patches import PatchConfig, cut
from alm_jax.report.reconstructions import _picture, _row, config_rows, panels, png
from tests.model_fixtures import mae_workdir


def _pixels(uri: str) -> np.ndarray:
    return matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])), "png")


SHAPE = PatchConfig(8, 16, "keep")
OVERLAP = PatchConfig(8, 16, time_stride=5, freq_stride=8)


def test_patches_are_put_back_where_they_were() -> None:
    """The picture of a spectrogram would be scrambled, transposed or shifted."""
    import jax

    mel = np.random.default_rng(0).standard_normal((2, 48, 32)).astype(np.float32)
    patches = cut(jnp.asarray(mel), jnp.asarray([48, 30]), SHAPE)
    rows = config_rows(patches)
    assert rows == 2
    first, second = _row(patches, 0), _row(patches, 1)
    np.testing.assert_array_equal(_picture(first, first.values, SHAPE, rows), mel[0])
    np.testing.assert_array_equal(_picture(second, second.values, SHAPE, rows), mel[1, :32])
    keys = example_keys(jax.random.key(0), jnp.arange(2))
    visible, dropped = mask_view(keys, patches, MaskingConfig(ratio=0.75))
    assert dropped is not None
    seen, lost = _row(visible, 0), _row(dropped, 0)
    whole = _picture(first, first.values, SHAPE, rows)
    some = _picture(seen, seen.values, SHAPE, rows, like=whole)
    rest = _picture(lost, lost.values, SHAPE, rows, like=whole)
    assert np.isnan(some).mean() == pytest.approx(0.75)
    np.testing.assert_array_equal(np.where(np.isnan(some), rest, some), mel[0])


def test_overlapping_patches_are_averaged() -> None:
    """The picture would show the last patch over all others, or be longer than the clip."""
    mel = np.random.default_rng(0).standard_normal((1, 48, 32)).astype(np.float32)
    patches = cut(jnp.asarray(mel), jnp.asarray([48]), OVERLAP)
    row = _row(patches, 0)
    picture = _picture(row, row.values, OVERLAP, config_rows(patches))
    np.testing.assert_allclose(picture, mel[0], rtol=1e-6)  # (48 - 8) / 5 and (32 - 16) / 8: whole


def test_png_shows_low_frequencies_below_and_gaps_transparent() -> None:
    """The spectrogram would stand on its head, or a gap look like a value."""
    grid = np.zeros((3, 2), np.float32)  # 3 frames, 2 bands
    grid[:, 0] = 1.0
    grid[2, 1] = np.nan
    image = _pixels(png(grid, (0.0, 1.0)))
    assert image.shape == (2, 3, 4)
    assert image[1, :, :3].mean() > 0.8 > 0.1 > image[0, :2, :3].mean()
    assert image[0, 2, 3] == 0.0 and image[0, 0, 3] == 1.0


def test_panels_of_a_run() -> None:
    """The report's section on stage 1 would fail or show something else than the clip."""
    rng = np.random.default_rng(0)
    clips = [(3000 * rng.standard_normal(n)).astype(np.int16) for n in (30000, 9000, 200)]
    made = panels(str(mae_workdir()), clips)
    assert [panel.visible_patches for panel in made] == [
        max(1, int(panel.patches * 0.2 + 1e-4)) for panel in made
    ]
    assert made[0].seconds > made[1].seconds > made[2].seconds > 0
    for panel in made:
        original, visible, rebuilt = map(_pixels, (panel.original, panel.visible, panel.rebuilt))
        seen = visible[..., 3] == 1.0
        assert 0 < seen.mean() < 0.5 or panel.patches <= 2
        np.testing.assert_array_equal(original[seen], visible[seen])
        np.testing.assert_array_equal(original[seen], rebuilt[seen])
        assert (rebuilt[..., 3] == 1.0).all()
        assert np.isfinite(panel.error)
