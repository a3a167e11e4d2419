"""The quickstart: Cacophony's two stages, small enough for two CPU cores.

    alm train --config=quickstart:mae --workdir=runs/quickstart/mae
    alm train --config=quickstart --workdir=runs/quickstart/clap \
        --config.init_from.workdir=runs/quickstart/mae

Argument: "mae" for stage 1, "" for stage 2. Run time and results: docs/results.md.
"""

from common import base, stage1, stage2, transformer
from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Stage 1 with arg "mae", else stage 2."""
    c = base()
    c.data.max_seconds = 4.0
    c.data.max_text_length = 48
    c.tokenizer.vocab_size = 1000
    c.eval.bucket_seconds = (1.0, 2.0, 4.0)
    c.frontend.padding_log_value = -11.5
    c.patches.tail = "keep"
    c.masking.budget = 64
    audio = transformer(192, 6, 4, activation="silu")
    c.optim.warmup_steps = 50
    c.optim.clip_norm = 1.0
    if arg == "mae":
        c.name = "quickstart-mae"
        c = stage1(c, audio, transformer(128, 2, 4, activation="silu"))
        c.train.steps = 300
        return c
    c.name = "quickstart"
    text = transformer(192, 4, 4, causal=True, eps=1e-5)
    decoder = transformer(192, 2, 4, causal=True, cross=True, eps=1e-5)
    c = stage2(c, audio, text, decoder, pool_heads=4)
    c.objectives.contrastive.ignore_same_caption = True
    c.objectives.captioning.reduction = "tokens"
    c.train.steps = 500
    return c
