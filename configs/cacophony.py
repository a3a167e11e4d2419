"""Cacophony stage 2 at the paper's size: contrastive + captioning from the stage-1 encoder.

    alm train --config=cacophony --workdir=DIR --config.data.dir=DATA \
        --config.init_from.workdir=STAGE1

Sizes are the official ones (85.26 M audio, 125.24 M text, 76.46 M decoder parameters at the RoBERTa
vocabulary of 50,265); the tokenizer here is sentencepiece. The paper's schedule is not public:
batch, learning rate, steps and decay are project choices.
"""

from ml_collections import ConfigDict

from .common import base, stage2, transformer, vit


def get_config(arg: str = "") -> ConfigDict:
    """Takes no argument."""
    del arg
    c = base()
    c.name = "cacophony"
    # Recomputed whole: less memory and no slower, see docs/scale.md.
    audio = vit(768, 12, 8, activation="silu", attention="fused", remat="full")
    roberta = dict(norm="post", eps=1e-5, causal=True, init="bert", remat="dots")
    roberta |= dict(dropout=0.1, attention_dropout=0.1)
    text = transformer(768, 12, 12, **roberta)
    decoder = transformer(768, 4, 12, cross=True, **roberta)
    c = stage2(c, audio, text, decoder, pool_heads=8)
    c.model.max_positions = 514  # rows of RoBERTa's table
    c.masking.budget = 496  # patches_seq_len of 10 s, random patch drop for longer clips
    c.model.dtype = "bfloat16"
    c.data.max_text_length = 77
    c.data.generated_probability = 0.8  # synthetic_prob, where the data has captions of both kinds
    c.tokenizer.vocab_size = 32_000  # project choice
    c.data.batch_size = 1024  # project choice
    c.optim.lr = 1e-4  # project choice
    c.optim.warmup_steps = 2000  # project choice
    c.optim.weight_decay = 1e-4  # project choice
    c.train.steps = 100_000  # project choice
    c.train.log_every_steps = 100
    c.train.save_every_steps = 2000
    c.train.keep = 2
    c.eval.every_steps = 2000
    c.eval.bucket_seconds = (2.5, 5.0, 10.0)
    return c
