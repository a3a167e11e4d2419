"""The best model that 2.5 hours on two CPU cores give on OpenSounds' default tier.

    alm train --config=opensounds:mae --workdir=runs/opensounds/mae
    alm train --config=opensounds --workdir=runs/opensounds/clap \
        --config.init_from.workdir=runs/opensounds/mae

Argument "mae" is stage 1, otherwise stage 2. The quickstart's model, wider and trained longer, with
what keeps it from learning 9,000 clips by heart: dropout, augmentation, masking and an average of
the parameters. Results: docs/results.md.
"""

from ml_collections import ConfigDict

from .common import stage1, stage2, transformer, vit
from .quickstart import small


def get_config(arg: str = "") -> ConfigDict:
    """Stage 1 with "mae", else stage 2."""
    if arg not in ("", "mae"):
        raise ValueError(f"unknown argument {arg!r}; it is 'mae' or empty")
    c = small()
    c.data.max_seconds = 4.0
    c.data.max_text_length = 40
    c.data.eval_split = "validation"
    c.eval.bucket_seconds = (1.0, 2.0, 4.0)
    c.optim.lr = 1e-3
    c.optim.warmup_steps = 100
    c.optim.weight_decay = 0.1
    c.train.save_every_steps = 200
    c.augment.gain_db = 6.0
    c.augment.time_stretch = 0.15
    c.augment.frequency_scale = 0.1
    c.augment.band_gain = 0.1
    audio = vit(256, 6, 4, activation="silu", unroll=6, dropout=0.1)
    if arg == "mae":
        c.name = "opensounds-mae"
        c = stage1(c, audio, transformer(192, 2, 4, activation="silu", unroll=2))
        c.masking.budget = 80
        c.train.steps = 1000
        return c
    c.name = "opensounds"
    text = transformer(
        256, 3, 4, causal=True, eps=1e-5, activation="gelu_tanh", unroll=3, dropout=0.1
    )
    decoder = transformer(
        256, 2, 4, causal=True, cross=True, eps=1e-5, activation="gelu_tanh", unroll=2, dropout=0.1
    )
    c = stage2(c, audio, text, decoder, pool_heads=4)
    c.model.max_positions = 40
    c.masking.budget = 40
    c.data.text_sample_alpha = 0.3
    c.objectives.contrastive.ignore_same_caption = True
    c.objectives.captioning.reduction = "tokens"
    c.objectives.captioning.label_smoothing = 0.1
    c.optim.ema_decay = 0.998
    c.train.steps = 1800
    c.eval.every_steps = 300
    return c
