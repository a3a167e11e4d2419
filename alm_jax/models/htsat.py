"""HTS-AT: a Swin transformer over the spectrogram folded into a square picture.

The tower reads whole frames (patches of 1 frame x F mel bins). They are normalised per mel bin by a
batch norm, stretched in time to a fixed length, cut into quarters (64 mel bins) that are stacked
along frequency, and seen in patches of 4 x 4. Its states are the last grid, put back into order of
time and frequency. With `fusion`, long clips have four views (`audio.fusion`), of which the three
excerpts are joined with the whole by attentional feature fusion.

Source: HTS-AT `model/htsat.py` (arXiv 2202.00874), LAION-CLAP `clap_module/htsat.py` (arXiv
2211.06687), Hugging Face `modeling_clap.py`.
Shapes: B batch, V views, T frames, F mel bins, N patches, N' states, D width, C channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.audio.frontend import LogMelConfig
from alm_jax.audio.fusion import VIEWS, fusion_views
from alm_jax.audio.patches import Patches
from alm_jax.audio.picture import fold, picture_patches, stretch
from alm_jax.errors import UserError
from alm_jax.models.batch_norm import BatchNorm
from alm_jax.models.feature_fusion import AttentionalFusion
from alm_jax.models.layers import layer_norm, linear
from alm_jax.models.swin import PatchMerging, SwinStage, SwinStageConfig

FUSIONS = ("none", "aff_2d")
LOCAL_PATCH = (4, 12)  # rows and columns: three excerpts side by side are as wide as the whole


@dataclasses.dataclass(frozen=True)
class HtsatConfig:
    """Fields of `config.model.audio` of this tower; the defaults are HTSAT-tiny.

    Attributes:
      tower: its name in `towers.TOWERS`.
      dim: width of the first stage; each later one doubles it.
      depths: blocks of each stage, even numbers.
      heads: heads of each stage.
      window: patches along a side of a window.
      mlp_ratio: hidden width of an MLP as a multiple of the stage's width.
      picture: side of the folded spectrogram; a multiple of the mel bins.
      patch: side of a patch.
      eps: LayerNorm epsilon.
      drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
      fusion: "none", or "aff_2d": clips longer than `chunk_frames` have four views.
      chunk_frames: frames of a view.
      init: a key of `layers.INITIALIZERS`.
      attention: see `TransformerConfig`.
      remat: what the backward pass recomputes, see `TransformerConfig`.
      unroll: pairs of blocks a turn of a stage's scan.
    """

    tower: str = "htsat"
    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8
    mlp_ratio: int = 4
    picture: int = 256
    patch: int = 4
    eps: float = 1e-5
    drop_path: float = 0.0
    fusion: str = "none"
    chunk_frames: int = 1001
    init: str = "bert"
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.heads):
            raise UserError(
                f"model.audio.depths={self.depths} and heads={self.heads}: one of each a stage"
            )
        if odd := [depth for depth in self.depths if depth % 2]:
            raise UserError(f"model.audio.depths={self.depths}: {odd[0]} is odd; blocks alternate")
        for stage, heads in enumerate(self.heads):
            if self.stage_width(stage) % heads:
                raise UserError(
                    f"model.audio.heads={self.heads}: {heads} does not divide the width"
                    f" {self.stage_width(stage)} of stage {stage}"
                )
        side = self.picture // self.patch
        if self.picture % self.patch or side % 2 ** (len(self.depths) - 1):
            raise UserError(
                f"model.audio.picture={self.picture}: with patch={self.patch} and"
                f" {len(self.depths)} stages it must be a multiple of"
                f" {self.patch * 2 ** (len(self.depths) - 1)}"
            )
        if self.fusion not in FUSIONS:
            raise UserError(f"model.audio.fusion={self.fusion!r}: must be one of {FUSIONS}")

    def stage_width(self, stage: int) -> int:
        """Width of a stage, the first being 0."""
        return self.dim * 2**stage

    @property
    def width(self) -> int:
        """D of the states."""
        return self.stage_width(len(self.depths) - 1)

    @property
    def last_side(self) -> int:
        """Side of the last grid."""
        return self.picture // self.patch // 2 ** (len(self.depths) - 1)


def htsat_patches(
    mel: jax.Array,
    frames: jax.Array,
    fields: HtsatConfig,
    config: ConfigDict,
    frontend: LogMelConfig,
    keys: jax.Array | None,
) -> Patches:
    """Whole frames of log-mel [B, T, F]: N = T, or with fusion the frames of the four views.

    With fusion the first `chunk_frames` slots hold the clip, the others its excerpts; the latter
    are padding where the clip fits.

    Raises:
      UserError: the spectrogram is longer or shorter than the tower reads.
    """
    del config
    batch, total, mels = mel.shape
    longest = fields.picture * (fields.picture // mels)
    valid = jnp.arange(total) < frames[:, None]
    if fields.fusion == "none":
        if total > longest:
            raise UserError(
                f"{total} frames are more than the {longest} that the tower 'htsat' reads: lower"
                " data.max_seconds, or take model.audio.fusion='aff_2d'"
            )
        time = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32), (batch, total))
        return _frames(mel, time, valid)
    chunk = fields.chunk_frames
    if total < chunk:
        raise UserError(
            f"{total} frames are fewer than model.audio.chunk_frames={chunk}: set"
            f" frontend.repeat_to_samples to {(chunk - 1) * frontend.hop_length}, so that short"
            " clips are repeated"
        )
    views = fusion_views(jnp.where(valid[..., None], mel, 0.0), frames, chunk, keys)
    time = jnp.tile(jnp.arange(chunk, dtype=jnp.int32), VIEWS)
    excerpt = jnp.arange(VIEWS * chunk) >= chunk
    mask = (time < views.frames[:, None]) & (views.longer[:, None] | ~excerpt)
    values = views.values.reshape(batch, VIEWS * chunk, mels)
    return _frames(values, jnp.broadcast_to(time, mask.shape), mask)


def _frames(values: jax.Array, time: jax.Array, mask: jax.Array) -> Patches:
    return Patches(
        values=jnp.where(mask[..., None], values, 0.0),
        time=jnp.where(mask, time, 0),
        freq=jnp.zeros_like(time),
        mask=mask,
    )


class Htsat(nnx.Module):
    """The tower; see the module docstring."""

    excerpt_embed: nnx.Linear | None = None
    fusion: AttentionalFusion | None = None

    def __init__(
        self,
        config: HtsatConfig,
        experiment: ConfigDict,
        num_mels: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the tower.

        Args:
          config: its fields.
          experiment: the whole config; `patches` must be whole frames.
          num_mels: F.
          dtype: of matmul inputs.
          rngs: source of the initial parameters.

        Raises:
          UserError: the patches are no whole frames, or the mel bins do not divide the picture.
        """
        c = config
        patches = experiment.patches
        if (patches.time, patches.freq) != (1, num_mels):
            raise UserError(
                f"the tower 'htsat' reads whole frames: set patches.time=1 (it is {patches.time})"
                f" and patches.freq={num_mels} (it is {patches.freq})"
            )
        if c.picture % num_mels:
            raise UserError(
                f"model.audio.picture={c.picture} is no multiple of the {num_mels} mel bins"
            )
        self.config = c
        self.dtype = dtype
        self.parts = c.picture // num_mels
        few: dict[str, Any] = dict(init=c.init, dtype=dtype, rngs=rngs)
        self.input_norm = BatchNorm(num_mels)
        self.embed = linear(c.patch**2, c.dim, ("patch", "embed"), **few)
        self.embed_norm = layer_norm(c.dim, eps=c.eps, rngs=rngs)
        if c.fusion != "none":
            pixels = LOCAL_PATCH[0] * LOCAL_PATCH[1]
            self.excerpt_embed = linear(pixels, c.dim, ("patch", "embed"), **few)
            self.fusion = AttentionalFusion(c.dim, **few)
        side = c.picture // c.patch
        for number, (depth, heads) in enumerate(zip(c.depths, c.heads, strict=True)):
            width = c.stage_width(number)
            stage = SwinStageConfig(
                width=width,
                depth=depth,
                heads=heads,
                mlp_dim=c.mlp_ratio * width,
                eps=c.eps,
                window=c.window,
                init=c.init,
                attention=c.attention,
                remat=c.remat,
                unroll=c.unroll,
            )
            setattr(self, f"stage{number}", SwinStage(stage, side, dtype=dtype, rngs=rngs))
            if number + 1 < len(c.depths):
                merge = PatchMerging(width, eps=c.eps, **few)
                setattr(self, f"merge{number}", merge)
                side //= 2
        self.norm = layer_norm(c.width, eps=c.eps, rngs=rngs)

    def state_mask(self, patches: Patches) -> jax.Array:
        """[B, N'] bool, all True: the picture is full whatever the clip's length."""
        return jnp.ones((patches.mask.shape[0], self.config.last_side**2), bool)

    def __call__(self, patches: Patches, key: jax.Array | None = None) -> jax.Array:
        """Encodes whole frames.

        Args:
          patches: what `htsat_patches` made.
          key: PRNG key for stochastic depth; None in evaluation.

        Returns:
          [B, N', D] states in the model's dtype: time outermost, frequency innermost.
        """
        c = self.config
        x = self.embed_norm(self.embed_pictures(patches)).astype(self.dtype)
        rates = jnp.linspace(0.0, c.drop_path, sum(c.depths))
        keys = [None] * len(c.depths) if key is None else jax.random.split(key, len(c.depths))
        first = 0
        for number, depth in enumerate(c.depths):
            stage_rates = rates[first : first + depth]
            x = getattr(self, f"stage{number}")(x, keys[number], stage_rates)
            first += depth
            if number + 1 < len(c.depths):
                x = getattr(self, f"merge{number}")(x)
        return self._in_order(self.norm(x).astype(self.dtype))

    def embed_pictures(self, patches: Patches) -> jax.Array:
        """[B, H, W, C] embedded patches of the folded, fused and normalised spectrograms."""
        c = self.config
        views, valid = self._views(patches)
        factor, summand = self.input_norm.coefficients(views, valid[..., None])
        frames = valid.sum(axis=-1)
        # The norm is linear in each mel bin and the stretch's weights sum to one, so they commute;
        # this way no gradient goes through the stretch.
        stretched = stretch(views, frames, c.picture * self.parts) * factor + summand
        pictures = fold(stretched, self.parts)
        x = self.embed(picture_patches(pictures[:, 0], c.patch, c.patch))
        if self.fusion is None or self.excerpt_embed is None:
            return x
        excerpts = self.excerpt_embed(picture_patches(pictures[:, 1:], *LOCAL_PATCH))
        batch, _, rows, _, channels = excerpts.shape
        excerpts = excerpts.transpose(0, 2, 1, 3, 4).reshape(batch, rows, -1, channels)
        missing = x.shape[2] - excerpts.shape[2]
        excerpts = jnp.pad(excerpts, ((0, 0), (0, 0), (0, missing), (0, 0)))
        longer = patches.mask[:, -1]
        fused = self.fusion(x, excerpts, longer)
        return jnp.where(longer[:, None, None, None], fused, x)

    def _views(self, patches: Patches) -> tuple[jax.Array, jax.Array]:
        """Values [B, V, T, F] and mask [B, V, T]; a clip that fits has itself as every view."""
        if self.config.fusion == "none":
            return patches.values[:, None], patches.mask[:, None]
        batch, slots, mels = patches.values.shape
        values = patches.values.reshape(batch, VIEWS, slots // VIEWS, mels)
        mask = patches.mask.reshape(batch, VIEWS, slots // VIEWS)
        longer = mask[:, -1:, -1:]
        return (
            jnp.where(longer[..., None], values, values[:, :1]),
            jnp.where(longer, mask, mask[:, :1]),
        )

    def _in_order(self, x: jax.Array) -> jax.Array:
        """The last grid [B, side, side, D] -> [B, N', D]: unfolds the picture's parts in time."""
        batch, side, _, width = x.shape
        parts = self.parts if side % self.parts == 0 else 1
        x = x.reshape(batch, parts, side // parts, side, width)
        return x.transpose(0, 1, 3, 2, 4).reshape(batch, -1, width)
