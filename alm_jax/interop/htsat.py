"""HTS-AT's AudioSet checkpoints as the audio tower of a model that is yet to be trained.

    alm import --format=htsat --checkpoint=HTSAT-fullset-imagenet.ckpt --output=runs/htsat
    alm train --config=laion_clap --config.init_from.workdir=runs/htsat,runs/roberta ...

The file does not say at which sample rate it was trained (32 kHz as published, 48 kHz for
LAION-CLAP); the training config does.
Source: RetroCirce/HTS-Audio-Transformer `model/htsat.py`.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from alm_jax.interop.htsat_links import OFFICIAL, htsat_links, htsat_sizes, moved_masks
from alm_jax.interop.importing import Checkpoint, Format, shipped_config
from alm_jax.interop.links import Buffer, Links
from alm_jax.models.htsat import HtsatConfig

# The classifier, and the front end that lies inside the official model.
_KEPT = (
    *(f"{name}.{leaf}" for name in ("tscam_conv", "head") for leaf in ("weight", "bias")),
    "spectrogram_extractor.stft.conv_real.weight",
    "spectrogram_extractor.stft.conv_imag.weight",
    "logmel_extractor.melW",
)


def _configure(checkpoint: Checkpoint) -> ConfigDict:
    config = shipped_config("laion_clap")
    config.model.dtype = "float32"
    htsat_sizes(config.model.audio, checkpoint, "", OFFICIAL)
    config.frontend.num_mels = config.patches.freq = checkpoint.shape("bn0.weight")[0]
    return config


def _links(config: ConfigDict) -> Links:
    audio = HtsatConfig(**config.model.audio)
    links = htsat_links("", "audio", audio, OFFICIAL) + moved_masks("", audio)
    return links + [Buffer(name) for name in _KEPT]


FORMAT = Format(
    "htsat",
    "audio tower from an AudioSet checkpoint of HTS-AT (.ckpt), for init_from",
    _configure,
    _links,
    parts=("audio",),
    wrapper=r"sed_model\.",
)
