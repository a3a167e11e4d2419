"""Cacophony stage 1 at the paper's size: masked autoencoder, 80 % of the patches dropped.

    alm train --config=cacophony_mae --workdir=DIR --config.data.dir=DATA

Sizes are the official ones (85.26 M encoder + 85.85 M decoder parameters). The paper's schedule is
not public: batch, learning rate, steps and decay are project choices after AudioMAE's recipe.
"""

from ml_collections import ConfigDict

from .common import base, stage1, transformer, vit


def get_config(arg: str = "") -> ConfigDict:
    """Takes no argument."""
    del arg
    c = base()
    c.name = "cacophony-mae"
    audio = vit(768, 12, 8, activation="silu", attention="fused", remat="full")
    decoder = transformer(768, 12, 8, activation="silu", attention="fused", remat="full")
    c = stage1(c, audio, decoder)
    c.masking.budget = 496  # patches of 10 s
    c.model.dtype = "bfloat16"
    c.mesh.fsdp = 1
    c.data.batch_size = 512  # project choice
    c.optim.lr = 2e-4  # project choice
    c.optim.warmup_steps = 12_000  # project choice
    c.optim.weight_decay = 1e-4  # project choice
    c.train.steps = 400_000  # project choice
    c.train.log_every_steps = 100
    c.train.save_every_steps = 5000
    c.train.keep = 2
    c.eval.every_steps = 5000
    c.eval.bucket_seconds = (2.5, 5.0, 10.0)
    return c
