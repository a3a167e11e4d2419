"""An hour and a half on one CPU core: what OpenSounds' default tier gives with regularisation.

    alm train --config=opensounds:mae --workdir=runs/opensounds/mae
    alm train --config=opensounds --workdir=runs/opensounds/clap \
        --config.init_from.workdir=runs/opensounds/mae

Argument "mae" is stage 1, otherwise stage 2. The quickstart's model, deeper, trained longer, with
what keeps it from learning 9,000 clips by heart: dropout, augmentation, subword sampling and an
average of the parameters. Results: docs/results.md.
"""

from ml_collections import ConfigDict

from .common import stage1, stage2, transformer, vit
from .quickstart import small


def get_config(arg: str = "") -> ConfigDict:
    """Stage 1 with "mae", else stage 2."""
    if arg not in ("", "mae"):
        raise ValueError(f"unknown argument {arg!r}; it is 'mae' or empty")
    c = small()
    c.data.eval_split = "validation"
    c.data.batch_size = 128
    c.optim.warmup_steps = 100
    c.train.save_every_steps = 200
    c.augment.gain_db = 6.0
    c.augment.time_stretch = 0.1
    c.augment.frequency_scale = 0.1
    c.augment.band_gain = 0.1
    audio = vit(192, 6, 4, activation="silu", unroll=6, dropout=0.1)
    if arg == "mae":
        c.name = "opensounds-mae"
        c = stage1(c, audio, transformer(128, 2, 4, activation="silu", unroll=2))
        c.masking.budget = 64
        c.train.steps = 300
        return c
    c.name = "opensounds"
    text = transformer(
        192, 3, 4, causal=True, eps=1e-5, activation="gelu_tanh", unroll=3, dropout=0.1
    )
    decoder = transformer(
        192, 1, 4, causal=True, cross=True, eps=1e-5, activation="gelu_tanh", dropout=0.1
    )
    c = stage2(c, audio, text, decoder, pool_heads=4)
    c.model.max_positions = 32
    c.masking.budget = 32
    c.data.text_sample_alpha = 0.3
    c.objectives.contrastive.ignore_same_caption = True
    c.objectives.captioning.reduction = "tokens"
    c.objectives.captioning.label_smoothing = 0.1
    c.optim.ema_decay = 0.995
    c.train.steps = 1200
    c.eval.every_steps = 200
    return c
