"""`alm export --format=onnx`: waveform -> embedding and tokens -> embedding, for onnxruntime.

audio.onnx    waveform float32 [B, S] in [-1, 1], lengths int64 [B] -> embedding float32 [B, J], and
              class_logits [B, Y] of a classifier, states [B, N, D] and states_mask [B, N] for
              captions; front end included; any B and S, one window a row
text.onnx     tokens int64 [B, L], mask bool [B, L] -> embedding float32 [B, J]
caption.onnx  tokens, mask, states, states_mask -> logits [B, L, V] of the token after each
mae.onnx      waveform, lengths, and which patches are visible int64 [B, K] and dropped int64 [B, M]
              -> prediction [B, M, P] of the dropped, the clip's own patches [B, N, P] and
              patches_mask [B, N], False behind its end
weights.data  of large models: the weights of all graphs, which refer to it
config.json   the experiment's config with the group `export`, in which `tokens` are the marks
tokenizer.model or tokenizer.json, README.md, golden.npz, alm_export.json

The graphs are traced from the model of modeling_alm.py by PyTorch's exporter (onnx_tracing.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.config import save_config
from alm_jax.interop.exported import EXPORT_MARK, WEIGHTS_NAME
from alm_jax.interop.layouts import Exported, Layout, load_module, write_model, write_tokenizer
from alm_jax.interop.onnx_tracing import Weights, trace
from alm_jax.interop.parity import Compare

BESIDE = 200_000_000  # bytes of weights that lie beside the graphs rather than in each
WEIGHTS = "weights.data"
_SLOTS = ("visible", "dropped")
_TORCH = "torch"  # folder that is there until the graphs are


def write(folder: Path, model: Exported) -> None:
    """Everything but the graphs; the weights for them in `_TORCH`."""
    save_config(model.config, folder / "config.json")
    write_tokenizer(folder, model)
    mark = {"format": "onnx", "alm_jax_version": model.config.export.alm_jax_version}
    (folder / EXPORT_MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")
    (folder / _TORCH).mkdir()
    write_model(folder / _TORCH, model)


def complete(folder: Path, model: Exported) -> None:
    """Traces the graphs from the PyTorch model, one after another."""
    import torch

    loaded = load_module(folder / _TORCH).AudioTextModel.from_pretrained(folder / _TORCH)
    # A protobuf holds no more than 2 GB, and is in memory three times while it is written.
    large = (folder / _TORCH / WEIGHTS_NAME).stat().st_size > BESIDE
    weights = Weights(folder / WEIGHTS, loaded.state_dict()) if large else None
    shutil.rmtree(folder / _TORCH)
    decodes = model.config.model.text is not None and bool(model.config.model.caption_decoder)
    classifies = model.config.model.get("classifier") is not None

    def padded(waveform: Any) -> Any:
        # Padding changes no result, and with it no clip is too short for the graph's shapes.
        return torch.nn.functional.pad(waveform, (0, spare_samples(model)))

    def audio(waveform: Any, lengths: Any) -> Any:
        heard = loaded.listen(padded(waveform), lengths)
        found = [loaded.audio_embedding(heard.hidden, heard.mask)]
        if classifies:
            found.append(loaded.classifier(heard.hidden, heard.mask))
        return (*found, heard.hidden, heard.mask) if decodes else tuple(found)

    size = min(loaded.window, 3 * loaded.sample_rate)
    lengths = torch.tensor([size, size // 2, size // 3])
    outputs = ["embedding", *(["class_logits"] if classifies else [])]
    outputs += ["states", "states_mask"] if decodes else []
    inputs = {"waveform": torch.zeros(3, size), "lengths": lengths}
    sizes = {"waveform": "samples"}
    trace(audio, loaded, weights, inputs, sizes, outputs, folder / "audio.onnx")
    if model.config.model.get("mae_decoder") is not None:
        inputs |= {name: torch.arange(6).expand(3, -1)[:, i::2] for i, name in enumerate(_SLOTS)}

        def mae(waveform: Any, lengths: Any, visible: Any, dropped: Any) -> Any:
            made, patches = loaded.reconstruct(padded(waveform), lengths, visible, dropped)
            return made, patches.values, patches.mask

        outputs = ["prediction", "patches", "patches_mask"]
        slots = {name: name for name in _SLOTS}
        trace(mae, loaded, weights, inputs, sizes | slots, outputs, folder / "mae.onnx")
    if model.config.model.text is None:
        return
    length = min(7, int(model.config.data.max_text_length))
    tokens = torch.full((3, length), int(model.config.export.tokens.eos))
    text = {"tokens": tokens, "mask": torch.ones(3, length, dtype=torch.bool)}
    sizes = dict.fromkeys(text, "tokens")
    embed = loaded.text_embedding
    trace(embed, loaded, weights, text, sizes, ["embedding"], folder / "text.onnx")
    if decodes:
        with torch.inference_mode():
            *_, states, mask = audio(**inputs)
        heard = {"states": states.clone(), "states_mask": mask.clone()}
        sizes |= dict.fromkeys(heard, "states")

        def caption(tokens: Any, mask: Any, states: Any, states_mask: Any) -> Any:
            return loaded.caption_logits(tokens, mask, states, states_mask)

        inputs = text | heard
        trace(caption, loaded, weights, inputs, sizes, ["logits"], folder / "caption.onnx")


def spare_samples(model: Exported) -> int:
    """Zeros behind every waveform, so that the shortest has as many frames as a patch needs."""
    frontend, patches = model.config.frontend, model.config.patches
    least = frontend.window_length + (int(patches.time) + 1) * frontend.hop_length
    return int(max(least, frontend.get("repeat_to_samples") or 0))


def open_folder(folder: Path, model: Exported) -> Compare:
    """Runs the graphs in onnxruntime on the CPU."""
    import onnxruntime

    # Memory counts more than speed: no second, rearranged copy of the weights, nothing that is kept
    # from run to run, and one graph open at a time.
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")

    def run(name: str, *given: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        session = onnxruntime.InferenceSession(
            folder / name, options, providers=["CPUExecutionProvider"]
        )
        names = [output.name for output in session.get_outputs()]
        return [dict(zip(names, session.run(None, inputs), strict=True)) for inputs in given]

    def paired(name: str, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        # Two rows at a time: enough to be a batch, and half the memory of four.
        starts = range(0, len(next(iter(given.values()))), 2)
        parts = run(name, *({n: rows[i : i + 2] for n, rows in given.items()} for i in starts))
        return {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}

    def compare(golden: Mapping[str, np.ndarray]) -> dict[str, float]:
        lengths = golden["audio_length"].astype(np.int64)
        waveform = golden["audio"].astype(np.float32) * np.float32(1 / 32767)
        found = {}
        # Together, and some alone and as long as they are: another batch size and other lengths.
        clips = {"waveform": waveform, "lengths": lengths}
        together = paired("audio.onnx", clips)
        short = np.argsort(lengths)[: len(lengths) // 2]
        single = (
            {"waveform": waveform[i : i + 1, : lengths[i]], "lengths": lengths[i : i + 1]}
            for i in short
        )
        alone = run("audio.onnx", *single)
        for name, output in (("audio_embedding", "embedding"), ("class_logits", "class_logits")):
            if (wanted := golden.get(name)) is not None:
                found[name] = _difference(wanted, together[output])
                each = np.concatenate([one[output] for one in alone])
                found[f"{name}_alone"] = _difference(wanted[short], each)
        if "mae_prediction" in golden:
            wanted = golden["mae_prediction"]
            slots = {n: np.tile(golden[n].astype(np.int64), (len(wanted), 1)) for n in _SLOTS}
            some = {n: rows[: len(wanted)] for n, rows in clips.items()}
            made = paired("mae.onnx", some | slots)
            mask = np.take_along_axis(made["patches_mask"], slots["dropped"], 1)
            wanted = wanted[mask]
            found["mae_prediction"] = _difference(wanted, made["prediction"][mask])
        if model.config.model.text is not None:
            mask = golden["text_mask"]
            given = {"tokens": golden["text"].astype(np.int64), "mask": mask}
            rows = paired("text.onnx", given)["embedding"]
            found["text_embedding"] = _difference(golden["text_embedding"], rows)
            if "caption_logits" in golden:
                given |= {name: together[name] for name in ("states", "states_mask")}
                logits = paired("caption.onnx", given)["logits"][mask]
                found["caption_logits"] = _difference(golden["caption_logits"][mask], logits)
        return found

    return compare


def _difference(wanted: np.ndarray, found: np.ndarray) -> float:
    """Largest difference of a row relative to its norm."""
    error = np.linalg.norm(found.astype(np.float64) - wanted, axis=1)
    return float((error / np.linalg.norm(wanted, axis=1)).max())


LAYOUT = Layout(
    "onnx", ("torch", "onnx", "onnxscript", "onnxruntime"), "onnx", write, open_folder, complete
)
