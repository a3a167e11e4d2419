"""An exported model behind the interfaces of HEAR, X-ARES and MTEB.

This file needs PyTorch, numpy and a folder that `alm export` wrote, and nothing else of alm_jax: it
can be copied into the environment that a benchmark asks for (Python 3.10 or newer).

* HEAR: the functions `load_model`, `get_scene_embeddings` and `get_timestamp_embeddings`.
* X-ARES: `AlmEncoder`, a module from waveform [B, S] to states [B, T, D]; the environment variable
  ALM_MODEL names the folder, since X-ARES makes encoders without arguments.
* MTEB: `MtebModel(FOLDER)`, for its audio tasks and, with a text side, the audio-text ones.

Clips longer than the model's window are cut into windows, as everywhere. Shapes: n clips, S
samples, T columns of patches in time, D width of the audio tower, J joint width.

Sources: HEAR 2021 common API; X-ARES README, "Notes on Encoder implementation"; MTEB
`models_protocols.EncoderProtocol` and `clap_models.py`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_MODULE = "modeling_alm.py"


class ExportedAudio(nn.Module):
    """An exported model that gives embeddings of clips, and of moments in them.

    Attributes:
      sample_rate: Hz that waveforms must have.
      scene_embedding_size: J, or D of a model without text.
      timestamp_embedding_size: D.
    """

    def __init__(self, folder: str | Path):
        """Loads the model.

        Args:
          folder: what `alm export --model=DIR --output=FOLDER` wrote, or a file in it.
        """
        super().__init__()
        path = Path(folder).expanduser()
        path = path.parent if path.is_file() else path
        if not (path / _MODULE).is_file():
            raise ValueError(
                f"{path} holds no {_MODULE}: give a folder that `alm export --model=DIR` wrote"
            )
        # By its own name, so that two folders can be open at a time.
        name = f"modeling_alm_{abs(hash(str(path.resolve())))}"
        spec = importlib.util.spec_from_file_location(name, path / _MODULE)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        self.model = module.AudioTextModel.from_pretrained(path)
        self.sample_rate = int(self.model.sample_rate)
        self.scene_embedding_size = int(self.model.embed_dim)
        self.timestamp_embedding_size = int(self.model.audio.width)

    def rounded(self, audio: Tensor) -> Tensor:
        """Float waveform in [-1, 1] at the 16 bits that the model was trained on."""
        audio = audio.to(self.model.device).float().clamp(-1.0, 1.0)
        return (audio * 32767.0).round() * float(np.float32(1 / 32767))

    @torch.no_grad()
    def scenes(self, audio: Tensor) -> Tensor:
        """Unit-norm embeddings [n, J] of waveforms [n, S]: the model's `embed_audio`."""
        return self.model.embed_clips(list(self.rounded(audio))).float()

    @torch.no_grad()
    def moments(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """The audio tower's states in time, averaged over frequency.

        Args:
          audio: waveforms [n, S] of one length.

        Returns:
          States [n, T, D] float32, and the middles [n, T] of their columns of patches in
          milliseconds, rising.
        """
        states, middles = [], []
        for first in range(0, audio.shape[1], self.model.window):
            part = self.rounded(audio[:, first : first + self.model.window])
            found, place = self._window(part)
            states.append(found)
            middles.append(place + 1000.0 * first / self.sample_rate)
        times = torch.cat(middles).to(states[0])
        return torch.cat(states, 1), times.expand(len(audio), -1)

    def _window(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        """States [n, T, D] of one window, and their middles [T] in milliseconds."""
        samples = waveform.shape[1]
        lengths = torch.full((len(waveform),), samples, device=waveform.device)
        heard = self.model.listen(waveform, lengths)
        fields = self.model.fields["frontend"]
        hop = fields["hop_length"]
        if self.model.fields["model"]["audio"]["tower"] == "htsat":
            # Frames are stretched over the whole picture, however many they are.
            parts, side = self.model.audio.parts, self.model.audio.side
            columns = side * (parts if side % parts == 0 else 1)
            frames = int(heard.mel.shape[1])
            middles = (torch.arange(columns) + 0.5) * frames * hop / columns
            states = heard.hidden.unflatten(1, (columns, -1)).mean(2)
        else:
            patches = heard.patches
            hidden = heard.hidden[:, heard.hidden.shape[1] - patches.mask.shape[1] :]
            # Time is outermost, and clips of one length have the same patches.
            rows = int(((patches.time[0] == 0) & patches.mask[0]).sum())
            columns = max(int(patches.mask[0].sum()) // rows, 1)
            states = hidden[:, : columns * rows].unflatten(1, (columns, rows)).mean(2)
            shape = self.model.fields["patches"]
            stride = shape.get("time_stride") or shape["time"]
            frame = torch.arange(columns) * stride + (shape["time"] - 1) / 2
            centred = fields["framing"] == "centre_reflect"
            middles = frame * hop + (0 if centred else fields["window_length"] / 2)
        # What lies behind the clip is padding, or the clip once more; a short clip keeps a column.
        inside = max(int((middles < samples).sum()), 1)
        middles = middles[:inside].clamp(max=samples)
        return states[:, :inside].float(), 1000.0 * middles / self.sample_rate

    def hop_milliseconds(self) -> float:
        """Milliseconds from one column to the next, in a whole window."""
        with torch.no_grad():
            _, middles = self._window(torch.zeros(1, self.model.window, device=self.model.device))
        return float(middles[1] - middles[0]) if len(middles) > 1 else 1000.0 * self.seconds

    @property
    def seconds(self) -> float:
        """Of a window."""
        return self.model.window / self.sample_rate


# HEAR ---------------------------------------------------------------------------------------------


def load_model(model_file_path: str = "", *_: Any) -> ExportedAudio:
    """The model in the folder (or of the file in it) that HEAR's --model names."""
    model = ExportedAudio(model_file_path or os.environ.get("ALM_MODEL", "."))
    return model.to("cuda") if torch.cuda.is_available() else model


def get_scene_embeddings(audio: Tensor, model: ExportedAudio) -> Tensor:
    """Embeddings [n, scene_embedding_size] of waveforms [n, S] in [-1, 1]."""
    return model.scenes(_checked(audio))


def get_timestamp_embeddings(audio: Tensor, model: ExportedAudio) -> tuple[Tensor, Tensor]:
    """States [n, T, timestamp_embedding_size] of waveforms [n, S], and times [n, T] in ms."""
    return model.moments(_checked(audio))


def _checked(audio: Tensor) -> Tensor:
    if audio.ndim != 2:
        raise ValueError(f"audio must be [n_sounds, n_samples], got {list(audio.shape)}")
    return audio


# X-ARES -------------------------------------------------------------------------------------------


class AlmEncoder(nn.Module):
    """From waveform [B, S] or [S] at `sampling_rate` to states [B, T, output_dim]."""

    def __init__(self, folder: str | Path | None = None):
        """Loads the model.

        Args:
          folder: an export; by default what the environment variable ALM_MODEL names.
        """
        super().__init__()
        self.exported = ExportedAudio(folder or os.environ["ALM_MODEL"])
        self.sampling_rate = self.exported.sample_rate
        self.output_dim = self.exported.timestamp_embedding_size
        self.hop_size_in_ms = self.exported.hop_milliseconds()

    def forward(self, audio: Tensor) -> Tensor:
        """States of audio of any length."""
        return self.exported.moments(audio[None] if audio.ndim == 1 else audio)[0]


# MTEB ---------------------------------------------------------------------------------------------


class MtebModel:
    """MTEB's encoder protocol: `mteb.evaluate(MtebModel(FOLDER), mteb.get_tasks(...))`."""

    def __init__(self, model_name: str, revision: str | None = None, **_: Any):
        """Loads the model.

        Args:
          model_name: the exported folder.
          revision: shown in MTEB's results.
        """
        self.folder, self.revision = Path(model_name), revision or "no_revision"
        self.exported = ExportedAudio(model_name)

    def encode(self, inputs: Any, **_: Any) -> np.ndarray:
        """Embeddings [n, J] of a DataLoader of audio or texts; of both, their sum as MTEB's CLAP.

        Args:
          inputs: its dataset's features name what there is: `audio`, `text`.
        """
        # By name: this package neither needs MTEB nor is tested with it.
        collators = importlib.import_module("mteb.models.modality_collators")
        features = inputs.dataset.features
        model, found = self.exported.model, []
        if "text" in features:
            if not model.has_text:
                raise ValueError(f"{self.folder} has no text side: choose tasks of audio alone")
            texts = [text for batch in inputs for text in batch["text"]]
            found.append(model.embed_text(texts).cpu().numpy())
        if "audio" in features:
            rate = self.exported.sample_rate
            inputs.collate_fn = collators.AudioCollator(target_sampling_rate=rate)
            rows = [
                model.embed_audio([np.asarray(clip["array"]) for clip in batch["audio"]], rate)
                for batch in inputs
            ]
            found.append(torch.cat(rows).cpu().numpy())
        if not found:
            raise ValueError(f"neither audio nor text among {list(features)}")
        return sum(found[1:], found[0])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [n, m]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [n] of corresponding rows."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What MTEB writes beside the results."""
        model = self.exported.model
        count = sum(parameter.numel() for parameter in model.parameters())
        return importlib.import_module("mteb.models").ModelMeta(
            loader=MtebModel,
            name=f"alm_jax/{self.folder.resolve().name}",
            revision=self.revision,
            release_date=None,
            languages=None,
            modalities=["audio", "text"] if model.has_text else ["audio"],
            n_parameters=count,
            memory_usage_mb=round(4 * count / 2**20),
            max_tokens=model.fields["data"]["max_text_length"],
            embed_dim=model.embed_dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            reference=None,
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
        )


def _unit(embeddings: Any) -> Tensor:
    rows = torch.atleast_2d(torch.as_tensor(np.asarray(embeddings)).float())
    return nn.functional.normalize(rows, dim=-1)
