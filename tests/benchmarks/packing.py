"""Train steps on clips of real lengths: several clips in a row of the transformer, or one a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from alm_jax.audio.frontend import LogMelConfig, num_frames
from alm_jax.audio.patches import PatchConfig
from alm_jax.config import load_config
from alm_jax.parallel.mesh import batch_sharding
from input_pipeline.loader import train_loader
from tests.benchmarks.jax_steps import Step
from tests.benchmarks.measure import Row, Way, compare

# Of 300 draws of 32 clips of OpenSounds' default tier, all had room in rows of 10 s of this share.
_SHARE, _CLIPS = 0.25, 32
_WORDS = {"quickstart:mae": "masked autoencoder", "quickstart": "contrastive and captioning"}


class _NoText:
    """Encodes every caption as the same tokens, so that no tokenizer has to be trained."""

    def encode(
        self, caption: str, max_length: int, *, sample_alpha: float = 0.0, seed: object = None
    ) -> tuple[np.ndarray, np.ndarray]:
        del caption, sample_alpha, seed
        return np.full(max_length, 7, np.int32), np.arange(max_length) < max_length // 2


def _config(spec: str, data: str, batch_size: int, share: float) -> ConfigDict:
    """The quickstart's model on 16 x 16 patches of up to 10 s, all of which take part."""
    return load_config(
        spec,
        [
            f"data.dir={data}",
            f"data.batch_size={batch_size}",
            "data.max_seconds=10.0",
            "patches.time=16",
            "patches.freq=16",
            "masking.budget=0",
            "model.audio.unroll=1",
            f"packing.share={share}",
            f"packing.clips={_CLIPS}",
        ],
    )


def _step(config: ConfigDict) -> Step:
    """A step on the first batch of the dataset."""
    step = Step(config)
    with train_loader(config.data, _NoText(), seed=0) as loader:
        step.batch = jax.device_put(next(loader), batch_sharding(step.mesh))
    return step


def _fill(step: Step) -> tuple[int, int]:
    """Patches of the batch's clips, and slots of its padded rows."""
    config = step.config
    patches, frontend = PatchConfig(**config.patches), LogMelConfig(**config.frontend)
    rows = patches.rows(frontend.num_mels)
    frames = num_frames(step.batch["audio_length"], frontend)
    longest = num_frames(np.asarray(step.batch["audio"].shape[1]), frontend)
    columns = np.maximum(np.asarray(patches.columns(frames)), 1)
    return int(columns.sum()) * rows, len(columns) * int(patches.columns(longest)) * rows


def rows(repeats: int, batch_size: int, data: str) -> Iterator[Row]:
    """Both stages of Cacophony's recipe."""
    for spec, name in _WORDS.items():
        packed, padded = (_step(_config(spec, data, batch_size, share)) for share in (_SHARE, 0.0))
        _, metrics = packed.function(jax.tree.map(lambda x: x.copy(), packed.state), packed.batch)
        if metrics["packing_lost"]:
            raise ValueError(f"{metrics['packing_lost']:.1%} of the patches found no room")
        row = compare(
            "packing",
            f"ViT 192 x 4, {name}, {batch_size} clips of OpenSounds, rows of 10 s",
            Way("packed", packed.run),
            Way("one clip a row", padded.run),
            repeats,
        )
        real, slots = _fill(packed)
        assert row.other is not None
        speeds = " and ".join(f"{real / value:,.0f}" for _, value in (row.ours, row.other))
        note = f"{real / slots:.0%} of the padded rows is sound; {speeds} patches/s"
        yield dataclasses.replace(row, note=note)
