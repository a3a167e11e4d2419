"""`alm export --format=hf`: a folder that transformers' Auto classes load, without network.

Beside what --format=torch writes (and alm_jax reads again):

hf_alm.py                   `AlmConfig`, `AlmModel`: the parts of modeling_alm.py, wrapped
hf_alm_processing.py        `AlmFeatureExtractor`, `AlmProcessor`
hf_alm_tokenizer.py         `AlmTokenizer`, for a sentencepiece model
preprocessor_config.json, processor_config.json, tokenizer_config.json

A model that `ClapModel` computes is written for it instead (`clap_layout`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from alm_jax.interop.layouts import Exported, Layout, load_module, write_model
from alm_jax.interop.parity import Compare

_SOURCES = Path(__file__).parent / "hf_modelling"
_INTERNAL = "from alm_jax.interop.torch_modelling.model import"
_MARKS = ("bos", "eos", "unk", "pad")


def layout(config: ConfigDict) -> Layout:
    """The layout of a model: `ClapModel`'s where that computes it, else our own."""
    from alm_jax.interop import clap_layout

    return clap_layout.LAYOUT if clap_layout.fits(config) else LAYOUT


def write(folder: Path, model: Exported) -> None:
    """Fills an empty folder."""
    write_model(folder, model)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    head = {
        "model_type": "alm_jax",
        "architectures": ["AlmModel"],
        "auto_map": {"AutoConfig": "hf_alm.AlmConfig", "AutoModel": "hf_alm.AlmModel"},
        "dtype": "float32",
    }
    _write_json(path, head | config)
    files = ["hf_alm", "hf_alm_processing"]
    auto = {"AutoFeatureExtractor": "hf_alm_processing.AlmFeatureExtractor"}
    if model.tokenizer is not None:
        auto["AutoProcessor"] = "hf_alm_processing.AlmProcessor"
        processor = {"processor_class": "AlmProcessor"}
        _write_json(folder / "processor_config.json", processor | {"auto_map": auto})
        if model.config.export.tokenizer == "sentencepiece":
            files.append("hf_alm_tokenizer")
        write_tokenizer_config(folder, model)
    extractor = {
        "feature_extractor_type": "AlmFeatureExtractor",
        "sampling_rate": int(model.config.frontend.sample_rate),
        "feature_size": 1,
        "padding_value": 0.0,
        "auto_map": auto,
    }
    _write_json(folder / "preprocessor_config.json", extractor)
    for name in files:
        source = (_SOURCES / f"{name}.py").read_text(encoding="utf-8")
        source = source.replace(_INTERNAL, "from .modeling_alm import")
        (folder / f"{name}.py").write_text(source, encoding="utf-8")


def write_tokenizer_config(folder: Path, model: Exported) -> None:
    """tokenizer_config.json; a tokenizer.json is completed so that it puts bos and eos itself."""
    length = int(model.config.data.max_text_length)
    config: dict[str, Any] = {"model_max_length": length}
    if model.config.export.tokenizer == "sentencepiece":
        config["tokenizer_class"] = "AlmTokenizer"
        config["auto_map"] = {"AutoTokenizer": ["hf_alm_tokenizer.AlmTokenizer", None]}
    else:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        config |= complete_tokenizer(folder / "tokenizer.json", model)
    _write_json(folder / "tokenizer_config.json", config)


def complete_tokenizer(path: Path, model: Exported) -> dict[str, str]:
    """Makes a tokenizer.json put bos and eos around a text, and returns the names of its marks."""
    import tokenizers

    fast = tokenizers.Tokenizer.from_file(str(path))
    assert model.tokenizer is not None
    ids = {name: getattr(model.tokenizer, f"{name}_id") for name in _MARKS}
    marks = {name: str(fast.id_to_token(i)) for name, i in ids.items()}
    if [fast.encode("a").ids[i] for i in (0, -1)] != [ids["bos"], ids["eos"]]:
        fast.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{marks['bos']} $A {marks['eos']}",
            special_tokens=[(marks[name], ids[name]) for name in ("bos", "eos")],
        )
        fast.save(str(path))
    return {f"{name}_token": mark for name, mark in marks.items()}


def open_folder(folder: Path, model: Exported) -> Compare:
    """Loads model and processor as their user does, and compares both ways in: tensors and raw."""
    with remote_code():
        import transformers

        loading = dict(trust_remote_code=True, local_files_only=True)
        loaded = transformers.AutoModel.from_pretrained(folder, **loading)
        processor = transformers.AutoProcessor.from_pretrained(folder, **loading)
    module = load_module(folder)
    rate = int(model.config.frontend.sample_rate)

    def compare(golden: Mapping[str, np.ndarray]) -> dict[str, float]:
        import torch

        found = module.compare(loaded, golden)
        pairs = zip(golden["audio"], golden["audio_length"], strict=True)
        given: dict[str, Any] = {"audio": [row[:length] for row, length in pairs]}
        if model.tokenizer is not None:
            given["text"] = golden["strings"].tolist()
        with torch.inference_mode():
            out = loaded(**processor(**given, sampling_rate=rate))
        for side in ("audio", "text"):
            if (embeds := out.get(f"{side}_embeds")) is not None:
                wanted = golden[f"{side}_embedding"]
                name = f"processed_{side}_embedding"
                found[name] = module.relative_difference(wanted, embeds.numpy())
        return found

    return compare


@contextlib.contextmanager
def remote_code() -> Iterator[None]:
    """While it is open, transformers copies a folder's code to a place that is removed after.

    Otherwise each export would leave a copy in the user's cache.
    """
    from transformers import dynamic_module_utils

    kept, path = dynamic_module_utils.HF_MODULES_CACHE, list(sys.path)
    # The package that the copies are imported from remembers the place of its first import.
    modules = _remote_modules()
    with tempfile.TemporaryDirectory(prefix="alm_export_") as cache:
        dynamic_module_utils.HF_MODULES_CACHE = cache
        try:
            yield
        finally:
            dynamic_module_utils.HF_MODULES_CACHE = kept
            sys.path[:] = path
            _remote_modules()
            sys.modules.update(modules)


def _remote_modules() -> dict[str, ModuleType]:
    """Takes the modules of remote code out of those that are imported."""
    names = [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]
    importlib.invalidate_caches()
    return {name: sys.modules.pop(name) for name in names}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


LAYOUT = Layout("hf", ("torch", "transformers"), "hf", write, open_folder)
