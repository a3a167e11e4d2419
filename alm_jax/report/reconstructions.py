"""What a masked autoencoder sees and what it makes of it: spectrogram, visible patches, whole.

Shapes: T frames, F mel bins, N patches, M dropped patches, P patch pixels.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib import image
from numpy.typing import NDArray

from alm_jax.audio.masking import MaskingConfig, mask_view
from alm_jax.audio.patches import PatchConfig, Patches
from alm_jax.inference.jitted import Inference
from alm_jax.interop.exported import read_model
from alm_jax.train_state import model_graph

COLOURS = "magma"


@dataclasses.dataclass(frozen=True)
class Panel:
    """One clip.

    Attributes:
      original: PNG data URI of the log-mel spectrogram, low frequencies at the bottom.
      visible: the same, with the dropped patches transparent.
      rebuilt: visible patches as they are, dropped ones as predicted.
      seconds: how much of the clip is shown.
      visible_patches: how many the encoder saw.
      patches: of how many.
      error: mean squared error of the dropped patches, in units of the normalised log-mel.
      mean_error: the error of predicting the mean of the dropped patches instead.
      patch_scaled: predictions were brought to each patch's true mean and deviation, because the
        model was trained on normalised patches.
    """

    original: str
    visible: str
    rebuilt: str
    seconds: float
    visible_patches: int
    patches: int
    error: float
    mean_error: float
    patch_scaled: bool


def panels(workdir: str, clips: Sequence[NDArray[np.int16]], *, seed: int = 0) -> list[Panel]:
    """Masks clips as in training and lets the run's masked autoencoder fill the gaps.

    All patches of a clip take part, also where training draws a subset (`masking.budget`).

    Args:
      workdir: of a stage-1 run.
      clips: int16 [S] at the model's sample rate; the first `data.max_seconds` are shown.
      seed: of the draw.
    """
    config, params, _ = read_model(workdir)
    graph, _ = model_graph(config, 0)
    inference = Inference(config, graph)
    masking = MaskingConfig(**(config.masking.to_dict() | {"budget": 0}))
    normalised = bool(config.objectives.reconstruction.normalize_target)
    size = round(config.data.max_seconds * config.data.sample_rate)
    audio = np.zeros((len(clips), size), np.int16)
    length = np.ones(len(clips), np.int32)
    for row, clip in enumerate(clips):
        length[row] = min(len(clip), size)
        audio[row, : length[row]] = clip[:size]
    patches = jax.jit(inference.patches)(jnp.asarray(audio), jnp.asarray(length))
    keys = jax.random.split(jax.random.key(seed), len(clips))
    visible, dropped = mask_view(keys, patches, masking)
    if dropped is None:
        raise ValueError(f"{workdir}: masking.ratio is 0, so there is nothing to reconstruct")
    predicted = np.asarray(inference.reconstruct(params, visible, dropped))
    shape = PatchConfig(**config.patches)
    rows = config_rows(patches)
    made = []
    for row in range(len(clips)):
        whole, seen, lost = (_row(part, row) for part in (patches, visible, dropped))
        truth, guess = lost.values, predicted[row][np.asarray(dropped.mask[row])]
        if normalised:
            deviation = np.sqrt(truth.var(-1, ddof=1, keepdims=True) + 1e-6)
            guess = guess * deviation + truth.mean(-1, keepdims=True)
        grid = _picture(whole, whole.values, shape, rows)
        limits = float(np.nanmin(grid)), float(np.nanmax(grid))
        rebuilt = _picture(seen, seen.values, shape, rows, like=grid)
        shown = rebuilt.copy()
        filled = _picture(lost, guess, shape, rows, like=grid)
        rebuilt = np.where(np.isnan(rebuilt), filled, rebuilt)
        frames = grid.shape[0]
        made.append(
            Panel(
                original=png(grid, limits),
                visible=png(shown, limits),
                rebuilt=png(rebuilt, limits),
                seconds=frames * inference.frontend.hop_length / inference.frontend.sample_rate,
                visible_patches=len(seen.values),
                patches=len(whole.values),
                # A clip of a single patch has nothing to predict.
                error=float(np.mean((guess - truth) ** 2)) if len(truth) else 0.0,
                mean_error=float(np.mean((truth - truth.mean(0)) ** 2)) if len(truth) else 0.0,
                patch_scaled=normalised,
            )
        )
    return made


def config_rows(patches: Patches) -> int:
    """Number of patches along frequency."""
    return int(np.asarray(patches.freq).max()) + 1


class _Row(NamedTuple):
    """The patches of one clip without padding: values [n, P], places [n]."""

    values: NDArray[np.float32]
    time: NDArray[np.int32]
    freq: NDArray[np.int32]


def _row(patches: Patches, row: int) -> _Row:
    mask = np.asarray(patches.mask[row])
    return _Row(*(np.asarray(part[row])[mask] for part in patches[:3]))


def _picture(
    patches: _Row,
    values: NDArray[np.float32],
    shape: PatchConfig,
    rows: int,
    like: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """[T, F] with patches in their places, their mean where they overlap, NaN elsewhere."""
    steps = shape.strides
    if like is None:
        columns = int(patches.time.max()) + 1
        size = (columns - 1) * steps[0] + shape.time, (rows - 1) * steps[1] + shape.freq
    else:
        size = like.shape
    total, count = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for value, time, freq in zip(values, patches.time, patches.freq, strict=True):
        start, low = time * steps[0], freq * steps[1]
        here = slice(start, start + shape.time), slice(low, low + shape.freq)
        total[here] += value.reshape(shape.time, shape.freq)
        count[here] += 1
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def png(grid: NDArray[np.float32], limits: tuple[float, float]) -> str:
    """A [T, F] array as a PNG data URI, F upwards; NaN becomes transparent."""
    low, high = limits
    share = np.clip((grid.T[::-1] - low) / max(high - low, 1e-6), 0.0, 1.0)
    pixels = matplotlib.colormaps[COLOURS](np.nan_to_num(share), bytes=True)
    pixels[np.isnan(share), 3] = 0
    file = io.BytesIO()
    image.imsave(file, pixels, format="png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
