"""Hugging Face's `ClapModel`: HTSAT, fused or not, and RoBERTa.

Source: transformers `modeling_clap.py`, `configuration_clap.py`. Fields that a config.json leaves
out have the defaults of `configuration_clap.py`, which are not those of the official models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alm_jax.errors import UserError
from alm_jax.interop.clap_text import text_links, text_sizes
from alm_jax.interop.htsat_links import HUGGING_FACE, htsat_links, htsat_sizes
from alm_jax.interop.importing import Checkpoint, Format, shipped_config
from alm_jax.interop.laion_clap import unused_scale
from alm_jax.interop.links import Buffer, Links, table, torch_linear
from alm_jax.models.htsat import HtsatConfig

_AUDIO, _TEXT = "audio_model.audio_encoder.", "text_model."
# What only one value of can be imported: (part of config.json, field) -> value.
_ONLY = {
    ("audio_config", "hidden_act"): "gelu",
    ("audio_config", "qkv_bias"): True,
    ("audio_config", "enable_patch_layer_norm"): True,
    ("audio_config", "flatten_patch_embeds"): True,
    ("audio_config", "patch_embed_input_channels"): 1,
    ("text_config", "hidden_act"): "gelu",
    ("text_config", "position_embedding_type"): "absolute",
    ("", "projection_hidden_act"): "relu",
}


def _configure(checkpoint: Checkpoint) -> ConfigDict:
    given: Mapping[str, Any] = checkpoint.config
    parts = {name: given.get(name) or {} for name in ("audio_config", "text_config")}
    for (part, field), only in _ONLY.items():
        for where in (parts[part], {}) if part else (given, *parts.values()):
            found = where.get(field)
            if found is not None and found != only:
                raise UserError(
                    f"{checkpoint.path}: config.json has {part or 'ClapConfig'}.{field}={found!r};"
                    f" only {only!r} can be imported"
                )
    audio_config, text_config = parts["audio_config"], parts["text_config"]
    fused = f"{_AUDIO}patch_embed.mel_conv2d.weight" in checkpoint.tensors
    config = shipped_config("laion_clap:fusion" if fused else "laion_clap")
    model = config.model
    model.dtype = "float32"
    htsat_sizes(model.audio, checkpoint, _AUDIO, HUGGING_FACE)
    model.audio.picture = int(audio_config.get("spec_size", model.audio.picture))
    model.audio.eps = float(audio_config.get("layer_norm_eps", model.audio.eps))
    model.audio.drop_path = float(audio_config.get("drop_path_rate", 0.0))
    _frontend(config, checkpoint, fused)
    told = tuple(audio_config.get("num_attention_heads", model.audio.heads))
    if told != model.audio.heads:
        raise UserError(
            f"{checkpoint.path}: config.json has audio_config.num_attention_heads={told}, but the"
            f" tensors have {model.audio.heads}"
        )
    text_sizes(config, checkpoint, _TEXT)
    text = model.text
    if "num_attention_heads" in text_config:
        text.heads = int(text_config["num_attention_heads"])
    elif text.width == 768:
        text.heads = 12
    text.eps = float(text_config.get("layer_norm_eps", 1e-12))
    text.position_offset = int(text_config.get("pad_token_id", 1)) + 1
    model.embed_dim = checkpoint.shape("audio_projection.linear2.weight")[0]
    return config


def _frontend(config: ConfigDict, checkpoint: Checkpoint, fused: bool) -> None:
    """The front end of the folder's feature extractor; the official one where there is none."""
    frontend = config.frontend
    mels = checkpoint.shape(f"{_AUDIO}batch_norm.weight")[0]
    frontend.num_mels = config.patches.freq = mels
    given = _extractor(checkpoint.path)
    wanted = {
        "truncation": "fusion" if fused else "rand_trunc",
        "padding": "repeatpad",
        "feature_size": mels,
    }
    for field, only in wanted.items():
        if given.get(field, only) != only:
            raise UserError(
                f"{checkpoint.path}: the feature extractor has {field}={given[field]!r}, but with"
                f" these tensors only {only!r} can be imported"
            )
    fft = int(given.get("fft_window_size", frontend.fft_length))
    rate = int(given.get("sampling_rate", frontend.sample_rate))
    seconds = float(given.get("max_length_s", 10.0))
    frontend.update(
        sample_rate=rate,
        window_length=fft,
        fft_length=fft,
        hop_length=int(given.get("hop_length", frontend.hop_length)),
        fmin=float(given.get("frequency_min", frontend.fmin)),
        fmax=float(given.get("frequency_max", frontend.fmax)),
        repeat_to_samples=round(seconds * rate),
    )
    config.data.sample_rate = rate
    config.model.audio.chunk_frames = frontend.repeat_to_samples // frontend.hop_length + 1
    if not fused:
        config.data.max_seconds = seconds
        config.eval.bucket_seconds = (seconds,)


def _extractor(path: Path) -> Mapping[str, Any]:
    """Fields of ClapFeatureExtractor in a folder, {} where it has none."""
    file = path / "preprocessor_config.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    file = path / "processor_config.json"  # transformers 5
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8")).get("feature_extractor") or {}
    return {}


def _links(config: ConfigDict) -> Links:
    links = htsat_links(_AUDIO, "audio", HtsatConfig(**config.model.audio), HUGGING_FACE)
    links += text_links(_TEXT, config)
    for side in ("audio", "text"):
        links += torch_linear(f"{side}_projection.linear1", f"{side}_proj.up")
        links += torch_linear(f"{side}_projection.linear2", f"{side}_proj.down")
    links += table("logit_scale_a", "logit_scale")
    links.append(unused_scale())
    rows = config.model.max_positions
    links.append(
        Buffer(f"{_TEXT}embeddings.position_ids", lambda: np.arange(rows, dtype=np.int64)[None])
    )
    links.append(Buffer(f"{_TEXT}embeddings.token_type_ids", lambda: np.zeros((1, rows), np.int64)))
    return links


FORMAT = Format(
    "hf_clap",
    "Hugging Face ClapModel folder (safetensors or .bin): HTSAT and RoBERTa",
    _configure,
    _links,
)
