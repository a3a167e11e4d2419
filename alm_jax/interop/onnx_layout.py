"""`alm export --format=onnx`: waveform -> embedding and tokens -> embedding, for onnxruntime.

audio.onnx    waveform float32 [B, S] in [-1, 1], lengths int64 [B] -> embedding float32 [B, J];
              front end included; any B and S, one window a row
text.onnx     tokens int64 [B, L], mask bool [B, L] -> embedding float32 [B, J]
config.json   the experiment's config with the group `export`, in which `tokens` are the marks
tokenizer.model or tokenizer.json, README.md, golden.npz, alm_export.json

The graphs are traced from the model of modeling_alm.py by PyTorch's exporter (`dynamo=True`).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.config import save_config
from alm_jax.interop.exported import EXPORT_MARK
from alm_jax.interop.layouts import Exported, Layout, load_module, write_model, write_tokenizer
from alm_jax.interop.parity import Compare

OPSET = 20


def write(folder: Path, model: Exported) -> None:
    """Fills an empty folder."""
    import torch

    with tempfile.TemporaryDirectory() as made:
        write_model(Path(made), model)
        module = load_module(Path(made))
        loaded = module.AudioTextModel.from_pretrained(made)
    spare = spare_samples(model)

    class Audio(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded

        def forward(self, waveform: Any, lengths: Any) -> Any:
            # Padding changes no result, and with it no clip is too short for the graph's shapes.
            waveform = torch.nn.functional.pad(waveform, (0, spare))
            heard = self.model.listen(waveform, lengths)
            return self.model.audio_embedding(heard.hidden, heard.mask)

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded

        def forward(self, tokens: Any, mask: Any) -> Any:
            return self.model.text_embedding(tokens, mask)

    size = min(loaded.window, 3 * loaded.sample_rate)
    lengths = torch.tensor([size, size // 2, size // 3])
    _trace(Audio(), {"waveform": torch.zeros(3, size), "lengths": lengths}, "samples", folder)
    if model.config.model.text is not None:
        length = min(7, int(model.config.data.max_text_length))
        tokens = torch.full((3, length), int(model.config.export.tokens.eos))
        mask = torch.ones(3, length, dtype=torch.bool)
        _trace(Text(), {"tokens": tokens, "mask": mask}, "tokens", folder)
    save_config(model.config, folder / "config.json")
    write_tokenizer(folder, model)
    mark = {"format": "onnx", "alm_jax_version": model.config.export.alm_jax_version}
    (folder / EXPORT_MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")


def spare_samples(model: Exported) -> int:
    """Zeros behind every waveform, so that the shortest has as many frames as a patch needs."""
    frontend, patches = model.config.frontend, model.config.patches
    least = frontend.window_length + (int(patches.time) + 1) * frontend.hop_length
    return int(max(least, frontend.get("repeat_to_samples") or 0))


def _trace(module: Any, inputs: Mapping[str, Any], length: str, folder: Path) -> None:
    """Writes audio.onnx or text.onnx: batch and `length` of the inputs [B, length] are free."""
    import torch

    batch, long = torch.export.Dim("batch", min=1), torch.export.Dim(length, min=1)
    shapes = {n: {0: batch, 1: long} if x.ndim == 2 else {0: batch} for n, x in inputs.items()}
    name = "audio.onnx" if "waveform" in inputs else "text.onnx"
    with torch.inference_mode(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            kwargs=dict(inputs),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=["embedding"],
            optimize=True,
            verbose=False,
        )
        assert program is not None
        # Above 1.5 GB the weights lie beside the graph: a protobuf holds no more than 2 GB.
        program.save(str(folder / name), external_data=_bytes(module) > 1_500_000_000)


def _bytes(module: Any) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress and its warnings about itself are none of the user's business."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def open_folder(folder: Path, model: Exported) -> Compare:
    """Runs the graphs in onnxruntime on the CPU."""
    import onnxruntime

    def session(name: str) -> Any:
        return onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])

    audio = session("audio.onnx")
    text = session("text.onnx") if model.config.model.text is not None else None

    def compare(golden: Mapping[str, np.ndarray]) -> dict[str, float]:
        lengths = golden["audio_length"].astype(np.int64)
        waveform = golden["audio"].astype(np.float32) * np.float32(1 / 32767)
        # All at once, and each alone and as long as it is: another batch size and length.
        (rows,) = audio.run(None, {"waveform": waveform, "lengths": lengths})
        found = {"audio_embedding": _difference(golden["audio_embedding"], rows)}
        alone = [
            audio.run(None, {"waveform": waveform[i : i + 1, :n], "lengths": lengths[i : i + 1]})[0]
            for i, n in enumerate(lengths)
        ]
        found["audio_embedding_alone"] = _difference(
            golden["audio_embedding"], np.concatenate(alone)
        )
        if text is not None:
            given = {"tokens": golden["text"].astype(np.int64), "mask": golden["text_mask"]}
            (rows,) = text.run(None, given)
            found["text_embedding"] = _difference(golden["text_embedding"], rows)
        return found

    return compare


def _difference(wanted: np.ndarray, found: np.ndarray) -> float:
    """Largest difference of a row relative to its norm."""
    error = np.linalg.norm(found.astype(np.float64) - wanted, axis=1)
    return float((error / np.linalg.norm(wanted, axis=1)).max())


LAYOUT = Layout("onnx", ("torch", "onnx", "onnxscript", "onnxruntime"), "onnx", write, open_folder)
