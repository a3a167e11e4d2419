"""The quickstart: Cacophony's two stages, small enough for two CPU cores.

    alm train --config=quickstart:mae --workdir=runs/quickstart/mae
    alm train --config=quickstart --workdir=runs/quickstart/clap \
        --config.init_from.workdir=runs/quickstart/mae

Argument: words joined by commas. "mae" is stage 1, otherwise stage 2; "tiny" is a shorter run for
the tiny tier. Run time and results: docs/results.md.

What differs from the paper's recipe, and why (measured on the default tier's validation split after
the same 30,720 clips of stage 2 without stage 1, audio -> text R@10; more in docs/results.md):
- Patches of 4 frames x all 128 mel bins instead of 16 x 16: 55.4 instead of 42.1. Most clips here
  are words of about a second, and 160 ms is longer than a phoneme.
- Muon instead of AdamW: 68.9 instead of 55.4. So few steps must count.
- 240 steps of 128 clips instead of 120 of 256: 78.8 instead of 68.9.
"""

from ml_collections import ConfigDict

from .common import SILENCE, base, stage1, stage2, transformer, vit


def small() -> ConfigDict:
    """What both stages share."""
    c = base()
    c.data.eval_split = ""
    c.data.max_seconds = 3.0
    c.data.max_text_length = 32
    c.tokenizer.vocab_size = 1000  # small pieces: held-out captions are made of unseen words
    c.frontend.padding_log_value = SILENCE
    c.patches.time = 4
    c.patches.freq = 128
    c.patches.tail = "keep"
    c.eval.bucket_seconds = (1.0, 2.0, 3.0)
    c.optim.name = "muon"
    c.optim.lr = 3e-3
    c.optim.warmup_steps = 20
    c.train.save_every_steps = 50
    return c


def audio_tower() -> ConfigDict:
    """The tower that stage 1 hands to stage 2."""
    return vit(192, 4, 4, activation="silu", unroll=4)


def get_config(arg: str = "") -> ConfigDict:
    """Stage 1 with the word "mae", else stage 2; fewer steps with "tiny"."""
    words = set(filter(None, arg.split(",")))
    if unknown := words - {"mae", "tiny"}:
        raise ValueError(f"unknown argument {sorted(unknown)}; the words are 'mae' and 'tiny'")
    tiny = "tiny" in words
    c = small()
    c.data.dir = "data/opensounds/tiny" if tiny else "data/opensounds/default"
    c.data.batch_size = 64 if tiny else 128
    if "mae" in words:
        c.name = "quickstart-mae"
        c = stage1(c, audio_tower(), transformer(128, 2, 4, activation="silu", unroll=2))
        c.masking.budget = 64
        c.train.steps = 50 if tiny else 120
        return c
    c.name = "quickstart"
    text = transformer(192, 2, 4, causal=True, eps=1e-5, activation="gelu_tanh", unroll=2)
    decoder = transformer(192, 1, 4, causal=True, cross=True, eps=1e-5, activation="gelu_tanh")
    c = stage2(c, audio_tower(), text, decoder, pool_heads=4)
    c.model.max_positions = 32
    c.masking.budget = 32
    c.objectives.contrastive.ignore_same_caption = True
    c.objectives.captioning.reduction = "tokens"
    c.train.steps = 80 if tiny else 320
    return c
