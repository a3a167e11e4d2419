"""Writes a page about a dataset: hours, lengths, captions, licences, and clips to hear.

    alm inspect DATASET [--output=FILE.html] [--config=CONFIG]

The page is one HTML file that loads nothing from anywhere: share it, or keep it beside the dataset.
With the front end of a config it also states the mean and the deviation of the log-mel features.
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alm_jax import __version__, cli
from alm_jax.arguments import ArgumentParser
from alm_jax.config import load_config
from alm_jax.errors import UserError
from input_pipeline.sources import Source, resolve_version

if TYPE_CHECKING:
    from alm_jax.audio.frontend_config import LogMelConfig
    from alm_jax.report.dataset_page import Features, Sample

_SECONDS = 10.0
_BATCH = 8


def open_all(directory: str) -> list[Source]:
    """Opens every split of a dataset that has clips, train first.

    Raises:
      UserError: no dataset there.
    """
    from input_pipeline.recordings import open_splits

    folder = resolve_version(directory)
    opened = {
        source.split: source
        for held_out in (False, True)
        for source in open_splits(folder, held_out=held_out)
    }
    return list(opened.values())


def front_end(spec: str, overrides: Sequence[str], sample_rate: int) -> LogMelConfig | None:
    """The front end of a config at the dataset's rate; None where the config has another rate.

    Raises:
      UserError: no such config.
    """
    from alm_jax.audio.frontend_config import LogMelConfig

    cfg = LogMelConfig(**load_config(spec, overrides).frontend)
    return cfg if cfg.sample_rate == sample_rate else None


def log_mels(clips: Sequence[np.ndarray], cfg: LogMelConfig) -> Iterator[np.ndarray]:
    """Log-mel spectrograms before normalisation, float32 [T, F] of the valid frames.

    Args:
      clips: int16 [S]; of longer ones the first ten seconds.
      cfg: the front end.
    """
    import jax
    import jax.numpy as jnp

    from alm_jax.audio import frontend

    raw = dataclasses.replace(cfg, mean=0.0, std=1.0, std_multiple=1.0)
    size = round(_SECONDS * cfg.sample_rate)
    compute = jax.jit(lambda pcm, n: frontend.log_mel(frontend.pcm_to_float(pcm), raw, length=n))
    for first in range(0, len(clips), _BATCH):
        some = clips[first : first + _BATCH]
        pcm, length = np.zeros((_BATCH, size), np.int16), np.ones(_BATCH, np.int32)
        for row, clip in enumerate(some):
            length[row] = max(1, min(len(clip), size))
            pcm[row, : length[row]] = clip[:size][: length[row]]
        mel = np.asarray(compute(jnp.asarray(pcm), jnp.asarray(length)))
        frames = np.maximum(np.asarray(frontend.num_frames(jnp.asarray(length), raw)), 1)
        yield from (mel[row, : frames[row]] for row in range(len(some)))


def features(source: Source, spec: str, cfg: LogMelConfig, clips: int) -> Features:
    """Mean and deviation of the log-mel features of some clips, drawn at random."""
    from alm_jax.report.dataset_page import Features

    chosen = _draw(len(source), clips)
    total = np.zeros((3, cfg.num_mels))
    for mel in log_mels([source[int(i)]["audio"] for i in chosen], cfg):
        wide = mel.astype(np.float64)
        total += (np.full(cfg.num_mels, len(mel)), wide.sum(0), np.square(wide).sum(0))
    count, first, second = total.sum(1)
    mean = first / count
    std = float(np.sqrt(max(second / count - mean**2, 0.0)))
    by_bin = (total[1] / total[0]).tolist()
    return Features(spec, float(mean), std, by_bin, len(chosen), (cfg.mean, cfg.std))


def samples(sources: Sequence[Source], rate: int, cfg: LogMelConfig, count: int) -> list[Sample]:
    """Clips to show, drawn at random over all splits."""
    from alm_jax.report.dataset_page import Sample
    from alm_jax.report.reconstructions import png
    from alm_jax.report.sounds import data_uri

    places = [(source, i) for source in sources for i in _draw(len(source), count)]
    examples = [(source.split, source[int(i)]) for source, i in places]
    chosen = [examples[int(i)] for i in _draw(len(examples), count)]
    clips = [example["audio"] for _, example in chosen]
    made = []
    for (split, example), mel in zip(chosen, log_mels(clips, cfg), strict=True):
        pcm, text = example.pop("audio"), example.pop("text")
        # The quietest fifth is one colour: its differences are rounding, whatever the log's base.
        spectrum = png(mel, (float(np.percentile(mel, 20)), float(mel.max())))
        fields = {name: _shown(value) for name, value in example.items()}
        captions = (text,) if isinstance(text, str) else text
        sound = data_uri(pcm, rate, max_seconds=_SECONDS)
        made.append(Sample(split, captions, len(pcm) / rate, spectrum, sound, fields))
    return made


def _draw(size: int, count: int) -> np.ndarray:
    """Up to `count` positions below `size`, in order; the same each time."""
    return np.sort(np.random.default_rng(0).permutation(size)[:count])


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def main(argv: list[str] | None = None) -> int:
    """Runs `alm inspect`.

    Returns:
      0.

    Raises:
      UserError: no such dataset or config.
    """
    parser = ArgumentParser(prog="alm inspect", description=__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="folder of a prepared dataset")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: NAME.html here")
    parser.add_config_argument(default="quickstart")
    parser.add_argument("--clips", type=int, default=24, help="shown (default %(default)s)")
    parser.add_argument(
        "--feature-clips", type=int, default=512, help="for mean and deviation (default 512)"
    )
    options = parser.parse_args(argv)
    for name in ("clips", "feature_clips"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}: must be at least 1")
    sources = open_all(options.dataset)
    rate = sources[0].sample_rate
    if rate is None:
        raise UserError(
            f"{sources[0].directory} does not state its sample rate: build it with `alm prepare`"
        )
    cfg = front_end(options.config, options.overrides, rate)
    # Here, not at the top: a wrong folder is said at once.
    from alm_jax.audio.frontend_config import LogMelConfig
    from alm_jax.report import dataset, dataset_page

    found = None
    if cfg is None:
        print(
            f"no features: the front end of {options.config} is not for {rate} Hz; name a config"
            " that is with --config=..."
        )
    else:
        found = features(sources[0], options.config, cfg, options.feature_clips)
        print(
            f"log-mel features of {options.config}: mean {found.mean:.4f}, deviation"
            f" {found.std:.4f} (the config has {found.used[0]:g}, {found.used[1]:g})"
        )
    # Whatever the config, clips are shown with a front end for their rate.
    shown = cfg or LogMelConfig(
        sample_rate=rate,
        window_length=rate // 40,
        fft_length=1 << (rate // 40 - 1).bit_length(),
        hop_length=rate // 100,
        fmax=rate / 2,
    )
    splits = dataset.survey(sources, rate)
    clips = samples(sources, rate, shown, options.clips)
    content = dataset_page.content(sources[0].directory, splits, clips, found)
    for split in splits:
        print(
            f"{split.name}: {len(split.seconds):,} clips, {split.hours:.2f} h,"
            f" {split.captions.total():,} captions ({len(split.captions):,} distinct)"
        )
    output = options.output or Path(f"{content['title']}.html")
    made = f"{datetime.date.today():%Y-%m-%d} · version {__version__}"
    print(f"written to {dataset_page.write(content, made, output)}")
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main, prog="alm inspect"))
