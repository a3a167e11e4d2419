"""Train steps at the papers' sizes: against PyTorch, and masked against unmasked (FLAP's point)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import torch
from ml_collections import ConfigDict

from alm_jax.config import load_config
from tests.benchmarks import torch_models
from tests.benchmarks.jax_steps import Step
from tests.benchmarks.measure import Row, Way, compare


def _config(
    name: str, dtype: str, batch_size: int, parts: tuple[str, ...], *overrides: str
) -> ConfigDict:
    """A shipped config with another batch and precision; nothing is recomputed, as in PyTorch."""
    settings = [f"model.dtype={dtype}", f"data.batch_size={batch_size}", *overrides]
    settings += [f"model.{part}.remat=none" for part in parts]
    return load_config(name, settings)


def _patches(batch_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    grid = torch_models.GRID
    return torch.randn(batch_size, grid[0] * grid[1], torch_models.PIXELS, generator=generator)


def _name(step: Step) -> str:
    return f"JAX on {jax.devices()[0].device_kind}"


def audiomae(batch_size: int, repeats: int, dtype: str) -> Row:
    """AudioMAE ViT-B with the window decoder."""
    step = Step(_config("audiomae", dtype, batch_size, ("audio", "mae_decoder")))
    half = dtype == "bfloat16"
    other = torch_models.step_of(torch_models.AudioMAE(), (_patches(batch_size),), half)
    row = compare(
        "training",
        f"AudioMAE ViT-B step, 16-block window decoder, batch {batch_size}, {dtype}",
        Way(_name(step), step.run),
        Way(f"PyTorch on {torch_models.device()}", other),
        repeats,
        aim="2.5" if dtype == "float32" else "1",
        again=True,
    )
    return _with_mfu(row, step)


def audio_text(batch_size: int, repeats: int, dtype: str) -> Row:
    """A contrastive ViT-B + RoBERTa that sees a quarter of the patches."""
    step = Step(_flap(batch_size, dtype, 0.75))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 50_000, (batch_size, 77), generator=generator)
    inputs = (_patches(batch_size), tokens)
    other = torch_models.step_of(torch_models.AudioText(0.25), inputs, dtype == "bfloat16")
    row = compare(
        "training",
        f"ViT-B + RoBERTa contrastive step, 25% of the patches, batch {batch_size}, {dtype}",
        Way(_name(step), step.run),
        Way(f"PyTorch on {torch_models.device()}", other),
        repeats,
        aim="2.5" if dtype == "float32" else "1",
        again=True,
    )
    return _with_mfu(row, step)


def masked(batch_size: int, repeats: int, dtype: str) -> Row:
    """The same step on a quarter of the patches and on all of them."""
    some, everything = (Step(_flap(batch_size, dtype, ratio)) for ratio in (0.75, 0.0))
    return compare(
        "training",
        f"ViT-B + RoBERTa contrastive step, batch {batch_size}, {dtype}: masked, not masked",
        Way("25% of the patches", some.run),
        Way("all patches", everything.run),
        repeats,
        aim="4.9",
        again=True,
    )


def _flap(batch_size: int, dtype: str, ratio: float) -> ConfigDict:
    return _config(
        "flap:1d,no_reconstruction",
        dtype,
        batch_size,
        ("audio", "text"),
        f"masking.ratio={ratio}",
    )


def _with_mfu(row: Row, step: Step) -> Row:
    return dataclasses.replace(row, note=step.mfu(row.ours[1]))


def rows(repeats: int, batch_size: int) -> Iterator[Row]:
    """All rows; each frees its models before the next."""
    for dtype in ("float32", "bfloat16"):
        yield audiomae(batch_size, repeats, dtype)
    yield audio_text(batch_size, repeats, "float32")
    yield masked(batch_size, repeats, "float32")
