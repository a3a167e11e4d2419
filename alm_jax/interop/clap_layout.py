"""`alm export --format=hf` of a LAION-CLAP: the folder of transformers' own `ClapModel`.

config.json, model.safetensors    `ClapModel`
preprocessor_config.json          `ClapFeatureExtractor`
tokenizer.json, tokenizer_config.json
alm_export.json                   which version of alm_jax wrote it
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alm_jax.audio.frontend_config import FLAVOURS, LogMelConfig
from alm_jax.errors import UserError
from alm_jax.interop.exported import EXPORT_MARK, WEIGHTS_NAME
from alm_jax.interop.layouts import Exported, Layout, write_tokenizer
from alm_jax.interop.parity import Compare

# Fields of the front end that `ClapFeatureExtractor` has too, or that decide nothing there.
_FREE = (
    *("sample_rate", "window_length", "fft_length", "hop_length", "num_mels", "fmin", "fmax"),
    *("repeat_to_samples", "padding_log_value", "window_position"),
)


def fits(config: ConfigDict) -> bool:
    """Whether `ClapModel` and `ClapFeatureExtractor` compute what the model computes."""
    model = config.model
    if model.audio.tower != "htsat" or model.text is None or model.get("caption_decoder"):
        return False
    if model.get("classifier") or config.export.tokenizer == "sentencepiece":
        return False
    text = model.text
    kinds = (model.projection, model.audio_pool.kind, model.text_pool.kind)
    if kinds != ("mlp", "mean", "first_tanh"):
        return False
    if (text.norm, text.activation, text.causal, text.cross) != ("post", "gelu", False, False):
        return False
    if text.position_offset != config.export.tokens.pad + 1:
        return False
    fused = model.audio.fusion != "none"
    flavour = FLAVOURS["laion_clap_fusion" if fused else "laion_clap"]
    frontend = LogMelConfig(**config.frontend)
    free = {name: getattr(frontend, name) for name in _FREE}
    length = frontend.repeat_to_samples or 0
    frames = length // frontend.hop_length + 1
    return (
        dataclasses.replace(flavour, **free) == frontend
        and frontend.window_length == frontend.fft_length
        and length > 0
        and length % frontend.sample_rate == 0
        and (not fused or model.audio.chunk_frames == frames)
    )


def clap_config(config: ConfigDict) -> dict[str, Any]:
    """The fields of `ClapConfig`."""
    audio, text = config.model.audio, config.model.text
    joint, marks = int(config.model.embed_dim), config.export.tokens
    fused = audio.fusion != "none"
    return {
        "projection_dim": joint,
        "audio_config": {
            "window_size": audio.window,
            "num_mel_bins": int(config.frontend.num_mels),
            "spec_size": audio.picture,
            "patch_size": audio.patch,
            "patch_stride": [audio.patch, audio.patch],
            "patch_embeds_hidden_size": audio.dim,
            "hidden_size": audio.dim * 2 ** (len(audio.depths) - 1),
            "depths": list(audio.depths),
            "num_attention_heads": list(audio.heads),
            "num_hidden_layers": len(audio.depths),
            "mlp_ratio": float(audio.mlp_ratio),
            "layer_norm_eps": audio.eps,
            "drop_path_rate": audio.drop_path,
            "enable_fusion": fused,
            "fusion_type": audio.fusion if fused else None,
            "projection_dim": joint,
        },
        "text_config": {
            "vocab_size": int(config.export.vocab_size),
            "hidden_size": text.width,
            "num_hidden_layers": text.depth,
            "num_attention_heads": text.heads,
            "intermediate_size": text.mlp_dim,
            "max_position_embeddings": int(config.model.max_positions),
            "layer_norm_eps": text.eps,
            "projection_dim": joint,
            **{f"{name}_token_id": int(marks[name]) for name in ("pad", "bos", "eos")},
        },
    }


def write(folder: Path, model: Exported) -> None:
    """Fills an empty folder."""
    import transformers

    from alm_jax.interop.checkpoint_files import write_safetensors
    from alm_jax.interop.hf_clap import FORMAT
    from alm_jax.interop.hf_layout import complete_tokenizer
    from alm_jax.interop.importing import from_alm

    config = model.config
    fields = clap_config(config)
    hf_config = transformers.ClapConfig(**fields)
    hf_config.architectures, hf_config.dtype = ["ClapModel"], "float32"
    hf_config.save_pretrained(folder)

    def tensors() -> dict[str, np.ndarray]:
        plain = ConfigDict(config.to_dict())
        plain.tokenizer.vocab_size = config.export.vocab_size
        return dict(from_alm(FORMAT, plain, model.params))

    found = tensors()
    listed = [(name, array.shape, array.dtype) for name, array in found.items()]
    write_safetensors(folder / WEIGHTS_NAME, listed, iter(found.items()))
    frontend = config.frontend
    fused = config.model.audio.fusion != "none"
    transformers.ClapFeatureExtractor(
        feature_size=frontend.num_mels,
        sampling_rate=frontend.sample_rate,
        hop_length=frontend.hop_length,
        fft_window_size=frontend.window_length,
        max_length_s=frontend.repeat_to_samples // frontend.sample_rate,
        frequency_min=frontend.fmin,
        frequency_max=frontend.fmax,
        truncation="fusion" if fused else "rand_trunc",
        padding="repeatpad",
        processor_class="ClapProcessor",
    ).save_pretrained(folder)
    if model.tokenizer is not None:
        write_tokenizer(folder, model)
        marks = complete_tokenizer(folder / "tokenizer.json", model)
        content = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "ClapProcessor",
            "model_max_length": int(config.data.max_text_length),
            "model_input_names": ["input_ids", "attention_mask"],
            **marks,
        }
        text = json.dumps(content, indent=1) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    mark = {"format": "hf", "alm_jax_version": config.export.alm_jax_version}
    (folder / EXPORT_MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")


def open_folder(folder: Path, model: Exported) -> Compare:
    """Loads model and processor as their user does; compares the embeddings of clips and texts.

    A clip longer than the model's length is left out: the processor takes random parts of it.
    """
    import torch
    import transformers

    both: Any = transformers.ClapModel.from_pretrained(
        folder, local_files_only=True, output_loading_info=True
    )
    loaded, report = both
    if report["missing_keys"] or report["mismatched_keys"] or report["unexpected_keys"]:
        raise UserError(
            f"ClapModel of transformers {transformers.__version__} does not take the tensors that "
            f"were written: {report}; report it with this version"
        )
    extractor = transformers.ClapFeatureExtractor.from_pretrained(folder)
    tokenizer = None
    if model.tokenizer is not None:
        processor = transformers.ClapProcessor.from_pretrained(folder)
        extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    frontend = model.config.frontend

    def compare(golden: Mapping[str, np.ndarray]) -> dict[str, float]:
        lengths = golden["audio_length"]
        rows = np.flatnonzero(lengths <= frontend.repeat_to_samples)
        found = {}
        with torch.inference_mode():
            if len(rows):
                clips = [golden["audio"][i, : lengths[i]] / np.float32(32767) for i in rows]
                rate = frontend.sample_rate
                given = extractor(clips, sampling_rate=rate, return_tensors="pt")
                # Not what it says, which for short clips is drawn at random.
                given["is_longer"] = torch.zeros(len(rows), 1, dtype=torch.bool)
                embeds = loaded.get_audio_features(**given).pooler_output
                wanted = golden["audio_embedding"][rows]
                found["audio_embedding"] = _difference(wanted, embeds)
            ids, mask = golden["text"], golden["text_mask"]
            tensors = torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
            embeds = loaded.get_text_features(*tensors).pooler_output
            found["text_embedding"] = _difference(golden["text_embedding"], embeds)
            if tokenizer is not None:
                given = tokenizer(
                    golden["strings"].tolist(), padding=True, truncation=True, return_tensors="pt"
                )
                embeds = loaded.get_text_features(**given).pooler_output
                wanted = golden["text_embedding"]
                found["processed_text_embedding"] = _difference(wanted, embeds)
        return found

    return compare


def _difference(wanted: np.ndarray, found: Any) -> float:
    """Largest difference of a row relative to its norm, of unit-norm rows."""
    rows = found.numpy().astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return float(np.linalg.norm(rows - wanted, axis=1).max())


LAYOUT = Layout("clap", ("torch", "transformers"), "hf", write, open_folder)
