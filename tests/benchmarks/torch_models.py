"""The same systems in PyTorch, of the layers that transformers ships; for their time alone.

They get ready-made log-mel patches, where the JAX step makes them of the waveform.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from transformers import RobertaConfig, RobertaModel, Swinv2Config, ViTConfig
from transformers.models.swinv2.modeling_swinv2 import Swinv2Layer
from transformers.models.vit.modeling_vit import ViTLayer

GRID = (64, 8)
PIXELS = 256


def device() -> torch.device:
    """Where both sides compute: the GPU, if PyTorch has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_random(x: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Kept tokens [B, K, D], the order back [B, N], and the mask of the dropped ones [B, N]."""
    batch, tokens, width = x.shape
    kept = int(tokens * share)
    order = torch.rand(batch, tokens, device=x.device).argsort(1)
    back = order.argsort(1)
    chosen = x.gather(1, order[:, :kept, None].expand(-1, -1, width))
    mask = torch.ones(batch, tokens, device=x.device)
    mask[:, :kept] = 0
    return chosen, back, mask.gather(1, back)


class Encoder(nn.Module):
    """ViT-B/16 over the patches that are kept."""

    def __init__(self, width: int = 768, depth: int = 12, heads: int = 12):
        super().__init__()
        config = ViTConfig(
            hidden_size=width,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            attn_implementation="sdpa",
        )
        self.embed = nn.Linear(PIXELS, width)
        self.positions = nn.Buffer(torch.randn(1, GRID[0] * GRID[1], width) * 0.02)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, patches: torch.Tensor, share: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """States [B, 1 + K, D], the order back and the mask of the dropped patches."""
        x, back, mask = keep_random(self.embed(patches) + self.positions, share)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x), back, mask


class AudioMAE(nn.Module):
    """ViT-B encoder on a fifth of the patches, 16 window-attention blocks on all of them."""

    def __init__(self, width: int = 512, depth: int = 16, heads: int = 16):
        super().__init__()
        config = Swinv2Config(window_size=4, mlp_ratio=4.0)
        self.encoder = Encoder()
        self.embed = nn.Linear(768, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Buffer(torch.randn(1, GRID[0] * GRID[1], width) * 0.02)
        self.layers = nn.ModuleList(
            Swinv2Layer(config, width, GRID, heads, shift_size=2 * (i % 2)) for i in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, PIXELS)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Squared error of the dropped patches, each normalised by its own statistics."""
        x, back, mask = self.encoder(patches, 0.2)
        x = self.embed(x[:, 1:])
        missing = self.mask_token.to(x.dtype).expand(len(x), back.shape[1] - x.shape[1], -1)
        x = torch.cat([x, missing], 1).gather(1, back[..., None].expand(-1, -1, x.shape[-1]))
        x = x + self.positions
        for layer in self.layers:
            x = layer(x, GRID)[0]
        predicted = self.head(self.norm(x)).float()
        target = functional.layer_norm(patches, (PIXELS,))
        return ((predicted - target).square().mean(-1) * mask).sum() / mask.sum()


class AudioText(nn.Module):
    """ViT-B and RoBERTa-base, mean pooling, two-layer projections, InfoNCE both ways."""

    def __init__(self, share: float, joint: int = 512):
        super().__init__()
        self.share = share
        self.encoder = Encoder()
        self.text = RobertaModel(
            RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1)
        )
        self.audio_head, self.text_head = (
            nn.Sequential(nn.Linear(768, joint), nn.ReLU(), nn.Linear(joint, joint))
            for _ in range(2)
        )
        self.scale = nn.Parameter(torch.tensor(2.659))

    def forward(self, patches: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The mean of both directions' cross-entropies."""
        audio = self.audio_head(self.encoder(patches, self.share)[0][:, 1:].mean(1))
        text = self.text_head(self.text(tokens).pooler_output)
        audio, text = (functional.normalize(x.float(), dim=-1) for x in (audio, text))
        logits = self.scale.exp() * audio @ text.T
        target = torch.arange(len(logits), device=logits.device)
        return (
            functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
        ) / 2


def step_of(model: nn.Module, inputs: tuple[torch.Tensor, ...], half: bool) -> Callable[[], None]:
    """Forward, backward and AdamW; `half` under bfloat16 autocast."""
    place = device()
    model = model.to(place).train()
    arrays = tuple(x.to(place) for x in inputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(place.type, torch.bfloat16, enabled=half):
            loss = model(*arrays)
        loss.backward()
        optimizer.step()
        loss.item()

    return step
