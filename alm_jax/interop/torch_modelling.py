"""An audio-language model in PyTorch, as one file that needs only torch and numpy.

Text also needs sentencepiece. Every parameter bears the name it has in model.safetensors, and the
numbers equal those of the JAX model that was exported: `python modeling_alm.py FOLDER` compares
them with golden.npz.

    from modeling_alm import AudioTextModel
    model = AudioTextModel.from_pretrained("FOLDER")
    audio = model.embed_audio([waveform], sample_rate=16000)    # [1, J], unit norm
    text = model.embed_text(["a dog barks"])                    # [1, J], unit norm
    print(audio @ text.T, model.caption([waveform], sample_rate=16000))

Shapes: B batch, S samples, T frames, F mel bins, N patches, P patch pixels, L text length, D width,
H heads, J joint width, V vocabulary. The padding of a batch never changes a result.
"""
# ruff: noqa: D102  (what a layer does stands at its class)

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

FORMAT_VERSION = 1
PAD, BOS, EOS, UNK = 0, 1, 2, 3
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "relu": functional.relu,
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file: 8 bytes of header length, a JSON header, then raw float32."""
    raw = np.memmap(path, np.uint8, "r")
    start = 8 + int(raw[:8].view("<u8")[0])
    if start > len(raw):
        raise ValueError(f"{path} is cut short or is not a safetensors file; export again")
    header = json.loads(raw[8:start].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        if entry["dtype"] != "F32" or last > len(raw):
            raise ValueError(f"{path}: {name} is no float32 tensor or is cut short; export again")
        values = np.array(raw[first:last]).view("<f4").reshape(entry["shape"])
        tensors[name] = torch.from_numpy(values)
    return tensors


# ---------------------------------------------------------------------------- front end


def hz_to_mel(hz: Any, scale: str) -> np.ndarray:
    """Mels of frequencies in Hz: "htk", or "slaney" (linear to 1 kHz, logarithmic above)."""
    hz = np.asarray(hz, np.float64)
    if scale == "htk":
        return 1127.0 * np.log1p(hz / 700.0)
    logarithmic = 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
    return np.where(hz < 1000, hz * 3 / 200, logarithmic)


def mel_to_hz(mel: np.ndarray, scale: str) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    if scale == "htk":
        return 700.0 * np.expm1(mel / 1127.0)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) / 27 * np.log(6.4)))


def mel_filters(c: Mapping[str, Any]) -> np.ndarray:
    """Triangular weights [fft_length // 2 + 1, F] float64; the row of 0 Hz is zero."""
    scale, rate = c["mel_scale"], c["filter_sample_rate"] or c["sample_rate"]
    mels = np.linspace(hz_to_mel(c["fmin"], scale), hz_to_mel(c["fmax"], scale), c["num_mels"] + 2)
    bins = np.arange(c["fft_length"] // 2 + 1) * (rate / c["fft_length"])
    in_mel = c["triangle"] == "mel"  # else the sides of a triangle are straight over Hz
    place, edges = (hz_to_mel(bins, scale), mels) if in_mel else (bins, mel_to_hz(mels, scale))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising = (place[:, None] - left) / (centre - left)
    falling = (right - place[:, None]) / (right - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[0] = 0.0
    if c["filter_norm"] == "slaney":
        edges_hz = mel_to_hz(mels, scale)
        weights *= 2.0 / (edges_hz[2:] - edges_hz[:-2])
    return weights


class LogMel(nn.Module):
    """The log-mel front end; `c` is the group "frontend" of config.json."""

    cosine: Tensor
    sine: Tensor
    filters: Tensor

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.c = c
        filters = mel_filters(c)
        used = np.flatnonzero(filters.any(axis=1))
        bins = np.arange(used[0], used[-1] + 1)
        # The DFT as the JAX model computes it, to the same float32 rounding: time zero lies in the
        # middle of the Hann window, whose two halves then share one cosine and one sine matrix.
        self.period = c["window_length"] - (c["window"] == "hann_symmetric")
        self.middle = (self.period + 1) // 2
        n = np.arange(self.middle, c["window_length"])[:, None]
        window = 0.5 - 0.5 * np.cos(2 * np.pi * n / self.period)
        angle = 2 * np.pi / c["fft_length"] * (n - self.period / 2) * bins
        cosine, sine = np.cos(angle) * window, np.sin(angle) * window
        if self.period % 2 == 0:
            cosine[0] *= 0.5  # the middle sample belongs to both halves
        for name, value in (("cosine", cosine), ("sine", sine), ("filters", filters[bins])):
            value = torch.from_numpy(value.astype(np.float32))
            self.register_buffer(name, value, persistent=False)

    def num_frames(self, samples: int, *, padded: bool = False) -> int:
        """Frames of a clip; `padded` counts those that `forward` returns for rows of that size."""
        c = self.c
        if c["fixed_samples"]:
            samples = c["fixed_samples"] if padded else min(samples, c["fixed_samples"])
        if c["framing"] == "snip_edges":
            return max(0, 1 + (samples - c["window_length"]) // c["hop_length"])
        centred = c["framing"] == "centre_reflect"
        whole = c["fixed_samples"] and c["drop_last_frame"] and not padded
        if not centred or whole:
            return -(-samples // c["hop_length"])
        return samples // c["hop_length"] + (not c["drop_last_frame"])

    def normalise(self, x: Any) -> Any:
        """(x - mean) / (std * std_multiple)."""
        return (x - self.c["mean"]) / (self.c["std"] * self.c["std_multiple"])

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-mel [B, T, F] of waveform [B, S] in [-1, 1] with `lengths` [B] valid samples."""
        rows = [len(row) for row in waveform] if lengths is None else lengths.tolist()
        total = self.num_frames(waveform.shape[1], padded=True)
        shape = (len(rows), total, self.c["num_mels"])
        out = waveform.new_full(shape, self.c["padding_log_value"], dtype=torch.float32)
        for row, (samples, length) in enumerate(zip(waveform, rows, strict=True)):
            values = self.log_values(samples[:length].float())
            out[row, : len(values)] = values
        return self.normalise(out)

    def log_values(self, x: Tensor) -> Tensor:
        """[T, F] of one unpadded clip [S], before normalisation."""
        c = self.c
        total = self.num_frames(len(x), padded=True)
        if c["quantise_int16"]:
            x = torch.trunc(x.clamp(-1.0, 1.0) * 32767.0) / 32767.0
        if c["fixed_samples"]:
            x = x[: c["fixed_samples"]]
        if c["subtract_waveform_mean"]:
            x = x - x.mean()
        if c["fixed_samples"]:
            x = functional.pad(x, (0, c["fixed_samples"] - len(x)))
        if c["framing"] == "centre_reflect":
            half, last = c["fft_length"] // 2, len(x) - 1
            place = torch.arange(-half, len(x) + half, device=x.device) % max(2 * last, 1)
            x = x[torch.minimum(place, 2 * last - place).clamp(0, last)]
            if c["window_position"] == "centre":
                x = x[(c["fft_length"] - c["window_length"]) // 2 :]
        if total == 0:
            return x.new_zeros(0, c["num_mels"])
        needed = (total - 1) * c["hop_length"] + c["window_length"]
        x = functional.pad(x, (0, max(0, needed - len(x))))
        frames = x.unfold(0, c["window_length"], c["hop_length"])[:total]
        if c["remove_frame_mean"]:
            frames = frames - frames.mean(1, keepdim=True)
        if c["preemphasis"]:
            before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
            frames = frames - c["preemphasis"] * before
        right = frames[:, self.middle :]
        first = self.period - c["window_length"] + 1
        left = frames[:, first : self.period - self.middle + 1].flip(-1)
        power = ((right + left) @ self.cosine).square() + ((right - left) @ self.sine).square()
        mel = (power.sqrt() if c["power"] == 1 else power) @ self.filters
        mel = mel + c["floor"] if c["floor_mode"] == "add" else mel.clamp(min=c["floor"])
        values = mel.log() if c["log"] == "ln" else mel.log10() * (10 if c["log"] == "db" else 1)
        if c["dynamic_range"] is not None:
            values = values.clamp(min=float(values.max()) - c["dynamic_range"])
        return values


class Patches(NamedTuple):
    """Patches of a batch of clips: values [B, N, P], places time and freq [B, N], mask [B, N]."""

    values: Tensor
    time: Tensor
    freq: Tensor
    mask: Tensor

    def take(self, index: Any) -> Patches:
        """The slots `index` (a sequence of int) of every clip."""
        return Patches(*(part[:, list(index)] for part in self))


# ---------------------------------------------------------------------------- layers


class Attention(nn.Module):
    """Multi-head attention of x [B, L, D] to a context [B, K, D]; mask [B, 1, 1 or L, K]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, activation: str):
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))


class Block(nn.Module):
    """Self-attention, cross-attention where the stack has it, MLP; pre- or post-LayerNorm."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.pre, self.has_cross = c["norm"] == "pre", c["cross"]
        self.attention = Attention(c["width"], c["heads"])
        self.attention_norm = nn.LayerNorm(c["width"], c["eps"])
        if self.has_cross:
            self.cross = Attention(c["width"], c["heads"])
            self.cross_norm = nn.LayerNorm(c["width"], c["eps"])
        self.mlp = Mlp(c["width"], c["mlp_dim"], c["activation"])
        self.mlp_norm = nn.LayerNorm(c["width"], c["eps"])

    def residual(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        return x + branch(norm(x)) if self.pre else norm(x + branch(x))

    def forward(self, x, mask, context=None, context_mask=None):
        x = self.residual(x, self.attention_norm, lambda h: self.attention(h, h, mask))
        if self.has_cross:
            cross = lambda h: self.cross(h, context, context_mask)  # noqa: E731
            x = self.residual(x, self.cross_norm, cross)
        return self.residual(x, self.mlp_norm, self.mlp)


class Transformer(nn.Module):
    """A stack of blocks; masks are [B, L] and [B, K] bool, True where attention may look."""

    def __init__(self, c: Mapping[str, Any]):
        super().__init__()
        self.causal = c["causal"]
        self.blocks = nn.ModuleList(Block(c) for _ in range(c["depth"]))

    def forward(self, x, mask, context=None, context_mask=None):
        mask = mask[:, None, None, :]
        if self.causal:
            mask = mask & torch.ones(x.shape[1], x.shape[1], device=x.device).tril().bool()
        if context_mask is not None:
            context_mask = context_mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask, context, context_mask)
        return x


class PatchPositions(nn.Module):
    """Fixed sin/cos place in time plus a learned place in frequency."""

    def __init__(self, width: int, rows: int):
        super().__init__()
        self.freq = nn.Parameter(torch.empty(rows, width))

    def forward(self, time: Tensor, freq: Tensor) -> Tensor:
        width = self.freq.shape[1]
        steps = torch.arange(width // 2, device=time.device, dtype=torch.float32)
        angle = time[..., None] * torch.exp(steps * (-2.0 * math.log(10000.0) / width))
        return torch.cat([angle.sin(), angle.cos()], -1) + self.freq[freq]


class AudioViT(nn.Module):
    """Patches -> hidden states [B, N, D]."""

    def __init__(self, c: Mapping[str, Any], pixels: int, rows: int):
        super().__init__()
        self.embed = nn.Linear(pixels, c["width"])
        self.positions = PatchPositions(c["width"], rows)
        self.transformer = Transformer(c)
        self.norm = nn.LayerNorm(c["width"], c["eps"])

    def forward(self, patches: Patches) -> Tensor:
        x = self.embed(patches.values) + self.positions(patches.time, patches.freq)
        return self.norm(self.transformer(x, patches.mask))


class MaeDecoder(nn.Module):
    """Pixels [B, M, P] of M dropped patches from the hidden states of the visible ones."""

    def __init__(self, c: Mapping[str, Any], pixels: int, rows: int, encoder_width: int):
        super().__init__()
        self.embed = nn.Linear(encoder_width, c["width"])
        self.positions = PatchPositions(c["width"], rows)
        self.restore = nn.Parameter(torch.empty(c["width"]))
        self.transformer = Transformer(c)
        self.norm = nn.LayerNorm(c["width"], c["eps"])
        self.predict = nn.Linear(c["width"], pixels)

    def forward(self, hidden: Tensor, visible: Patches, dropped: Patches) -> Tensor:
        states = self.embed(hidden) + self.positions(visible.time, visible.freq)
        restore = self.restore + self.positions(dropped.time, dropped.freq)
        mask = torch.cat([visible.mask, dropped.mask], 1)
        x = self.transformer(torch.cat([states, restore], 1), mask)
        return self.predict(self.norm(x[:, visible.mask.shape[1] :]))


class Pooler(nn.Module):
    """Hidden states [B, N, D] with mask [B, N] -> [B, D]: learned query, mean or first state."""

    def __init__(self, c: Mapping[str, Any], width: int):
        super().__init__()
        self.kind, self.heads = c["kind"], c["heads"]
        if self.kind == "attention":
            self.query = nn.Parameter(torch.empty(1, width))
            self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
            self.out = nn.Linear(width, width) if c["output"] else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.kind == "first":
            return x[:, 0]
        if self.kind == "mean":
            return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query.expand(len(x), 1, -1), self.key(x), self.value(x))
        )
        mask = mask[:, None, None, :]
        return self.out(functional.scaled_dot_product_attention(q, k, v, mask).flatten(1))


class TextRoberta(nn.Module):
    """Token ids [B, L] with mask [B, L] -> hidden states [B, L, D]."""

    def __init__(self, c: Mapping[str, Any], vocab_size: int, max_positions: int):
        super().__init__()
        self.words = nn.Parameter(torch.empty(vocab_size, c["width"]))
        self.positions = nn.Parameter(torch.empty(max_positions, c["width"]))
        self.token_type = nn.Parameter(torch.empty(1, c["width"]))
        self.embed_norm = nn.LayerNorm(c["width"], c["eps"])
        self.transformer = Transformer(c)
        pre = c["norm"] == "pre"
        self.final_norm = nn.LayerNorm(c["width"], c["eps"]) if pre else nn.Identity()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.words[tokens] + self.positions[: tokens.shape[1]] + self.token_type
        return self.final_norm(self.transformer(self.embed_norm(x), mask))


class CaptionDecoder(nn.Module):
    """Text states [B, L, D] that look at audio states -> next-token logits [B, L, V]."""

    def __init__(self, c: Mapping[str, Any], audio_width: int, vocab_size: int):
        super().__init__()
        width = c["width"]
        same = audio_width == width
        self.context = nn.Identity() if same else nn.Linear(audio_width, width)
        self.transformer = Transformer(c)
        self.final_norm = nn.LayerNorm(width, c["eps"]) if c["norm"] == "pre" else nn.Identity()
        self.predict = nn.Linear(width, vocab_size)

    def forward(self, text: Tensor, mask: Tensor, audio: Tensor, audio_mask: Tensor) -> Tensor:
        x = self.transformer(text, mask, self.context(audio), audio_mask)
        return self.predict(self.final_norm(x))


class Tokenizer:
    """tokenizer.model (sentencepiece): text <-> [bos] pieces [eos], padded with 0."""

    def __init__(self, path: Path):
        import sentencepiece  # only text needs it

        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """Ids [B, L] and mask [B, L]; a text that is too long loses pieces, never its eos."""
        valid = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        rows = [[BOS, *self.pieces.EncodeAsIds(t)[: max_length - 2], EOS] for t in valid]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(longest) < lengths[:, None]

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first eos."""
        ids = list(ids)
        ids = ids[: ids.index(EOS)] if EOS in ids else ids
        known = [i if i < self.pieces.GetPieceSize() else UNK for i in ids if i not in (PAD, BOS)]
        return self.pieces.DecodeIds(known) if known else ""


# ---------------------------------------------------------------------------- the model


class AudioTextModel(nn.Module):
    """Front end, towers, poolers and decoders; a part the config leaves out does not exist.

    Attributes:
      config: config.json.
      sample_rate: Hz that waveforms must have.
      window: samples of the longest clip that is embedded in one piece.
      has_text: whether there is a text side; a masked autoencoder has none.
      embed_dim: width J of the embeddings.
    """

    tokenizer: Tokenizer | None = None

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        version = config["export"]["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"config.json has format {version}, this file reads {FORMAT_VERSION}")
        self.config = config
        model, patches = config["model"], config["patches"]
        vocab_size = config["export"]["vocab_size"]
        self.sample_rate = config["frontend"]["sample_rate"]
        self.window = round(config["data"]["max_seconds"] * self.sample_rate)
        self.has_text = bool(model["text"])
        self.embed_dim = model["embed_dim"] if self.has_text else model["audio"]["width"]
        self.frontend = LogMel(config["frontend"])
        pixels = patches["time"] * patches["freq"]
        rows = config["frontend"]["num_mels"] // patches["freq"]
        audio, text = model["audio"], model["text"]
        self.audio = AudioViT(audio, pixels, rows)
        if model["mae_decoder"]:
            self.mae_decoder = MaeDecoder(model["mae_decoder"], pixels, rows, audio["width"])
        if not self.has_text:
            return
        joint = self.embed_dim
        self.audio_pool = Pooler(model["audio_pool"], audio["width"])
        same = audio["width"] == joint
        self.audio_proj = nn.Identity() if same else nn.Linear(audio["width"], joint)
        self.text = TextRoberta(text, vocab_size, model["max_positions"])
        self.text_pool = Pooler(model["text_pool"], text["width"])
        self.text_proj = nn.Linear(text["width"], joint)
        self.logit_scale = nn.Parameter(torch.empty(()))
        if model["caption_decoder"]:
            self.caption_decoder = CaptionDecoder(
                model["caption_decoder"], audio["width"], vocab_size
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> AudioTextModel:
        """The model of an exported folder, on the CPU, in evaluation mode."""
        folder = Path(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with torch.device("meta"):  # the file brings the memory
            model = cls(config)
        model.load_state_dict(read_safetensors(folder / "model.safetensors"), assign=True)
        if (folder / "tokenizer.model").exists():
            model.tokenizer = Tokenizer(folder / "tokenizer.model")
        return model.eval().requires_grad_(False)

    def needs(self, name: str) -> Tokenizer:
        """The tokenizer, or an error if the model has no part of that name."""
        if not self.config["model"][name] or self.tokenizer is None:
            raise ValueError(f"this model was trained without {name} (see config.json)")
        return self.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.audio.embed.weight.device

    def log_mel(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Log-mel [B, T, F] of float waveform [B, S] in [-1, 1], valid up to `lengths` [B]."""
        return self.frontend(waveform, lengths)

    def patchify(self, mel: Tensor, frames: Tensor) -> Patches:
        """Patches of log-mel [B, T, F] with `frames` [B] valid: time outermost, then frequency."""
        c = self.config["patches"]
        rows, keep = mel.shape[2] // c["freq"], c["tail"] == "keep"
        columns = max(1, (mel.shape[1] + (c["time"] - 1 if keep else 0)) // c["time"])
        missing = max(0, columns * c["time"] - mel.shape[1])
        silence = self.frontend.normalise(self.frontend.c["padding_log_value"])
        mel = functional.pad(mel, (0, 0, 0, missing), value=silence)[:, : columns * c["time"]]
        grid = mel.unflatten(2, (rows, c["freq"])).unflatten(1, (columns, c["time"]))
        values = grid.transpose(2, 3).flatten(3).flatten(1, 2)
        whole = (frames + (c["time"] - 1 if keep else 0)) // c["time"]
        time = torch.arange(columns, device=mel.device).repeat_interleave(rows)
        freq = torch.arange(rows, device=mel.device).repeat(columns)
        mask = time < whole.clamp(1, columns)[:, None]
        return Patches(values * mask[..., None], time * mask, freq * mask, mask)

    def patches(self, waveform: Tensor, lengths: Tensor) -> Patches:
        """Patches of float waveform [B, S] with `lengths` [B] valid samples."""
        frames = [max(1, self.frontend.num_frames(n)) for n in lengths.tolist()]
        mel = self.log_mel(waveform, lengths)
        return self.patchify(mel, torch.tensor(frames, device=mel.device))

    def audio_embedding(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Unit-norm embeddings [B, J] of the audio tower's states [B, N, D] with mask [B, N].

        A model without a text side has no joint space: it gives the mean of its states.
        """
        if self.has_text:
            return normalize(self.audio_proj(self.audio_pool(hidden, mask)))
        weight = mask[..., None] / mask.sum(1)[:, None, None]
        return normalize((hidden * weight).sum(1))

    def text_embedding(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Unit-norm embeddings [B, J] of token ids [B, L] with mask [B, L]."""
        return normalize(self.text_proj(self.text_pool(self.text(tokens, mask), mask)))

    def caption_logits(
        self, tokens: Tensor, mask: Tensor, audio: Tensor, audio_mask: Tensor
    ) -> Tensor:
        """Next-token logits [B, L, V] from tokens [B, L] and audio states [B, N, D]."""
        return self.caption_decoder(self.text(tokens, mask), mask, audio, audio_mask)

    def caption_ids(self, waveform: Tensor, lengths: Tensor, max_length: int) -> Tensor:
        """Greedy captions: ids [B, max_length] after bos, zeros after eos."""
        patches = self.patches(waveform, lengths)
        audio = self.audio(patches)
        tokens = torch.full((len(audio), 1), BOS, device=audio.device)
        ended = torch.zeros(len(audio), dtype=torch.bool, device=audio.device)
        while tokens.shape[1] <= max_length and not ended.all():
            every = torch.ones_like(tokens, dtype=torch.bool)
            logits = self.caption_logits(tokens, every, audio, patches.mask)[:, -1]
            token = logits.argmax(-1).masked_fill(ended, PAD)
            ended |= token == EOS
            tokens = torch.cat([tokens, token[:, None]], 1)
        return functional.pad(tokens[:, 1:], (0, max_length + 1 - tokens.shape[1]))

    def windows(self, audio: Any, sample_rate: int) -> list[list[np.ndarray]]:
        """Every clip as a list of windows int16 [S] of at most `data.max_seconds`.

        A last window shorter than a tenth of the others is dropped, unless it is the only one.
        """
        if sample_rate != self.sample_rate:
            raise ValueError(f"the audio has {sample_rate} Hz: resample it to {self.sample_rate}")
        clips = []
        for number, clip in enumerate([audio] if getattr(audio, "ndim", 0) == 1 else audio):
            x = np.asarray(clip)
            is_audio = x.dtype == np.int16 or (x.dtype.kind == "f" and np.isfinite(x).all())
            if not is_audio or x.ndim != 1 or not x.size:
                raise ValueError(
                    f"clip {number} must be mono samples [S], S > 0, int16 or finite floats in "
                    f"[-1, 1]; got {x.dtype} {list(x.shape)}"
                )
            if x.dtype != np.int16:
                x = np.rint(np.clip(np.float32(x), -1.0, 1.0) * 32767.0).astype(np.int16)
            parts = [x[i : i + self.window] for i in range(0, len(x), self.window)]
            short = len(parts) > 1 and len(parts[-1]) < 0.1 * self.window
            clips.append(parts[:-1] if short else parts)
        return clips

    def batch(self, clips: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Zero-padded float waveform [B, S] in [-1, 1] and lengths [B] of int16 clips."""
        pcm = np.zeros((len(clips), max(map(len, clips))), np.int16)
        for row, clip in zip(pcm, clips, strict=True):
            row[: len(clip)] = clip
        lengths = torch.tensor([len(clip) for clip in clips], device=self.device)
        return self.to_float(pcm), lengths

    def to_float(self, pcm: np.ndarray) -> Tensor:
        """float32 [B, S] in [-1, 1] of int16 [B, S]."""
        # The float32 nearest to 1 / 32767, as in JAX.
        return torch.from_numpy(pcm).to(self.device).float() * float(np.float32(1 / 32767))

    @torch.inference_mode()
    def embed_audio(self, audio: Any, sample_rate: int = 16000, batch_size: int = 16) -> Tensor:
        """Unit-norm embeddings of clips.

        Args:
          audio: one clip [S], or several: a list of clips or an array [n, S]; int16 or float.
          sample_rate: Hz; must be the model's.
          batch_size: windows that are computed at once.

        Returns:
          [n, J] float32. A clip longer than `data.max_seconds` gets the mean over its windows,
          weighted by their duration, at unit norm.
        """
        clips = self.windows(audio, sample_rate)
        sizes = [sum(map(len, parts)) for parts in clips]
        flat = [(part, clip) for clip, parts in enumerate(clips) for part in parts]
        flat.sort(key=lambda item: len(item[0]))  # alike lengths together: less padding
        mean = torch.zeros(len(clips), self.embed_dim, device=self.device)
        for first in range(0, len(flat), batch_size):
            parts, owner = zip(*flat[first : first + batch_size], strict=True)
            waveform, lengths = self.batch(parts)
            share = lengths / lengths.new_tensor([sizes[clip] for clip in owner])
            patches = self.patches(waveform, lengths)
            weighted = self.audio_embedding(self.audio(patches), patches.mask) * share[:, None]
            mean.index_add_(0, lengths.new_tensor(owner), weighted)
        return normalize(mean)

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Unit-norm embeddings [n, J] of n strings, cut at `data.max_text_length` tokens."""
        tokenizer = self.needs("text")
        texts = [texts] if isinstance(texts, str) else list(texts)
        out = [torch.zeros(0, self.embed_dim, device=self.device)]
        for first in range(0, len(texts), batch_size):
            part = texts[first : first + batch_size]
            tokens, mask = tokenizer.encode(part, self.config["data"]["max_text_length"])
            out.append(self.text_embedding(tokens.to(self.device), mask.to(self.device)))
        return torch.cat(out)

    @torch.inference_mode()
    def caption(self, audio: Any, sample_rate: int = 16000, max_length: int = 0) -> list[str]:
        """Greedy captions of clips (see `embed_audio`); of a long clip, of its first window.

        `max_length` counts tokens, 0 is `data.max_text_length`.
        """
        tokenizer = self.needs("caption_decoder")
        max_length = max_length or self.config["data"]["max_text_length"]
        captions = []
        for parts in self.windows(audio, sample_rate):
            ids = self.caption_ids(*self.batch(parts[:1]), max_length)
            text = tokenizer.decode(ids[0].tolist())
            captions.append(" ".join("".join(c if c.isprintable() else " " for c in text).split()))
        return captions

    @torch.inference_mode()
    def similarity(self, audio: Tensor, text: Tensor) -> Tensor:
        """Logits [n, m] of embeddings [n, J] and [m, J]: cosines times exp(logit_scale)."""
        return self.logit_scale.exp() * audio @ text.T


def normalize(x: Tensor) -> Tensor:
    """Rows of x [B, J] at unit norm."""
    return x / torch.linalg.vector_norm(x + 1e-10, dim=-1, keepdim=True)


def relative_difference(wanted: np.ndarray, found: np.ndarray) -> float:
    """Largest difference over the rows of [..., n], relative to the row's norm or maximum."""
    wanted, error = np.abs(np.float64(wanted)), np.abs(np.float64(found) - wanted)
    by_norm = np.linalg.norm(error, axis=-1) / np.maximum(np.linalg.norm(wanted, axis=-1), 1e-30)
    by_maximum = error.max(axis=-1) / np.maximum(wanted.max(axis=-1), 1e-30)
    return float(max(by_norm.max(), by_maximum.max()))


@torch.inference_mode()
def compare(model: AudioTextModel, golden: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Relative difference of what the model computes from each output in golden.npz.

    The entries `audio`, `audio_length`, `text`, `text_mask`, `visible`, `dropped` are inputs.
    `caption_ids` is judged by how far its tokens are from being the most likely ones.
    """
    waveform = model.to_float(golden["audio"])
    lengths = torch.tensor(golden["audio_length"], device=model.device)
    mel = model.log_mel(waveform, lengths)
    patches = model.patches(waveform, lengths)
    hidden = model.audio(patches)
    embedding = model.audio_embedding(hidden, patches.mask)
    found = {
        "log_mel": (golden["log_mel"].reshape(len(mel), -1), mel.flatten(1)),
        "audio_embedding": (golden["audio_embedding"], embedding),
    }
    if "mae_prediction" in golden:
        visible, dropped = patches.take(golden["visible"]), patches.take(golden["dropped"])
        x = model.mae_decoder(model.audio(visible), visible, dropped)
        found["mae_prediction"] = (golden["mae_prediction"][dropped.mask], x[dropped.mask])
    if model.has_text:
        tokens, mask = (
            torch.from_numpy(golden[name]).to(model.device) for name in ("text", "text_mask")
        )
        found["text_embedding"] = (golden["text_embedding"], model.text_embedding(tokens, mask))
    if "caption_logits" in golden:
        logits = model.caption_logits(tokens, mask, hidden, patches.mask)
        found["caption_logits"] = (golden["caption_logits"][golden["text_mask"]], logits[mask])
    if "caption_ids" in golden:
        ids = torch.tensor(golden["caption_ids"], device=model.device).long()
        before = torch.cat([torch.full_like(ids[:, :1], BOS), ids[:, :-1]], 1)
        logits = model.caption_logits(before, torch.ones_like(before).bool(), hidden, patches.mask)
        best = logits.amax(-1)[ids != PAD]
        chosen = logits.gather(-1, ids[..., None])[..., 0][ids != PAD]
        found["caption_ids"] = (best[:, None].numpy(force=True), chosen[:, None])
    return {n: relative_difference(a, b.numpy(force=True)) for n, (a, b) in found.items()}


def main(folder: Path) -> None:
    """Prints how far the model in `folder` is from golden.npz."""
    model = AudioTextModel.from_pretrained(folder)
    with np.load(folder / "golden.npz") as golden:
        for name, difference in compare(model, dict(golden)).items():
            print(f"{name:16s} differs by {difference:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
