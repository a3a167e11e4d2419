"""The audio towers that `config.model.audio.tower` can name.

A tower is three things, and nothing else in the project knows which one a config chose:

- a dataclass of the fields of `config.model.audio`, with `width` (of the states) and `init`;
- a function that makes of log-mel the `Patches` it reads: sets of patches for a ViT, whole frames
  (patches of 1 x F) for towers that look at a picture;
- a module `(patches, key) -> states [B, N', D]` with a method `state_mask(patches)`, [B, N'] bool:
  which states belong to the clip. N' need not be the number of patches.

Shapes: B batch, T frames, F mel bins, N patches, N' states, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.audio.frontend import LogMelConfig
from alm_jax.audio.patches import PatchConfig, Patches, cut
from alm_jax.errors import UserError
from alm_jax.models.audio_vit import AudioViT, VitConfig
from alm_jax.models.htsat import Htsat, HtsatConfig, htsat_patches
from alm_jax.models.patch_positions import PatchShape


class AudioTower(Protocol):
    """What the rest of the model asks of a tower."""

    def __call__(self, patches: Patches, key: jax.Array | None = None) -> jax.Array:
        """States [B, N', D] of patches; a key for dropout, None in evaluation."""
        ...

    def state_mask(self, patches: Patches) -> jax.Array:
        """[B, N'] bool, True for the states that belong to the clip."""
        ...


class TowerConfig(Protocol):
    """What the rest of the model reads of a tower's fields, which are a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def width(self) -> int:
        """D of the states."""
        ...

    @property
    def init(self) -> str:
        """A key of `layers.INITIALIZERS`, also for what is put on the tower."""
        ...


class TowerKind(NamedTuple):
    """One entry of `TOWERS`.

    Attributes:
      config: the dataclass of `config.model.audio`, `tower` left out or in.
      build: (fields, experiment config, mel bins, dtype, rngs) -> the module.
      patches: (mel [B, T, F], frames [B], fields, experiment config, front end, keys) -> `Patches`;
        keys [B] are the examples' own in training, None in evaluation.
      maskable: whether the module reads any subset of its patches, as masking gives it.
    """

    config: Callable[..., Any]
    build: Callable[..., nnx.Module]
    patches: Callable[..., Patches]
    maskable: bool


def patch_shape(config: ConfigDict, num_mels: int) -> PatchShape:
    """Pixels, frequency rows and columns of the patches that `config.patches` cuts."""
    patches = PatchConfig(**config.patches)
    return PatchShape(patches.pixels, patches.rows(num_mels), patches.fixed_columns)


def _build_vit(
    fields: VitConfig, config: ConfigDict, num_mels: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> AudioViT:
    return AudioViT(fields, patch_shape(config, num_mels), dtype=dtype, rngs=rngs)


def _vit_patches(
    mel: jax.Array,
    frames: jax.Array,
    fields: VitConfig,
    config: ConfigDict,
    frontend: LogMelConfig,
    keys: jax.Array | None,
) -> Patches:
    del fields, keys
    return cut(mel, frames, PatchConfig(**config.patches), silence=frontend.silence)


TOWERS: dict[str, TowerKind] = {
    "vit": TowerKind(VitConfig, _build_vit, _vit_patches, maskable=True),
    "htsat": TowerKind(HtsatConfig, Htsat, htsat_patches, maskable=False),
}


def tower_kind(config: ConfigDict) -> TowerKind:
    """The kind that `config.model.audio.tower` names; "vit" where it is absent (older runs).

    Raises:
      UserError: an unknown name.
    """
    name = config.model.audio.get("tower", "vit")
    if name not in TOWERS:
        raise UserError(f"model.audio.tower={name!r}: must be one of {list(TOWERS)}")
    return TOWERS[name]


def tower_config(config: ConfigDict) -> TowerConfig:
    """`config.model.audio` as the tower's own dataclass, defaults filled in.

    Raises:
      UserError: an unknown tower, or a field that it does not have.
    """
    kind = tower_kind(config)
    given = dict(config.model.audio)
    if unknown := given.keys() - {field.name for field in dataclasses.fields(kind.config)}:  # type: ignore[arg-type]
        raise UserError(
            f"model.audio has the fields {sorted(unknown)}, which the tower"
            f" {given.get('tower', 'vit')!r} does not know; remove them"
        )
    return kind.config(**given)


def build_tower(
    config: ConfigDict, num_mels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
) -> AudioTower:
    """The audio tower of an experiment.

    Args:
      config: the whole experiment config; `model`, `patches` and `masking` are read.
      num_mels: mel bins of the front end.
      dtype: of matmul inputs.
      rngs: source of the initial parameters.

    Raises:
      UserError: an unknown tower or field, or patches dropped for a tower that needs all of them.
    """
    kind = tower_kind(config)
    if not kind.maskable:
        _refuse_masking(config)
    return kind.build(tower_config(config), config, num_mels, dtype, rngs)  # type: ignore[return-value]


def tower_patches(
    mel: jax.Array,
    frames: jax.Array,
    config: ConfigDict,
    frontend: LogMelConfig,
    keys: jax.Array | None = None,
) -> Patches:
    """What the tower of an experiment reads of log-mel.

    Args:
      mel: float32 [B, T, F].
      frames: int32 [B], frames that belong to each clip.
      config: the experiment.
      frontend: what made `mel`.
      keys: [B] PRNG keys of the examples in training, None in evaluation.
    """
    kind = tower_kind(config)
    return kind.patches(mel, frames, tower_config(config), config, frontend, keys)


def _refuse_masking(config: ConfigDict) -> None:
    tower = config.model.audio.tower
    masking = config.get("masking") or {}
    for name in ("ratio", "budget", "time_ratio", "freq_ratio"):
        if masking.get(name):
            raise UserError(
                f"masking.{name}={masking[name]} drops patches, but the tower {tower!r} reads whole"
                " spectrograms; set it to 0, or take model.audio.tower='vit'"
            )
    if config.model.get("mae_decoder") is not None:
        raise UserError(
            f"model.mae_decoder predicts dropped patches, but the tower {tower!r} reads whole"
            " spectrograms; take model.audio.tower='vit'"
        )
