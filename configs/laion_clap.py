"""LAION-CLAP: HTSAT-tiny and RoBERTa-base, contrastive, 48 kHz.

    alm import --format=htsat --checkpoint=HTSAT.ckpt --output=runs/htsat
    alm import --format=roberta --checkpoint=roberta-base --output=runs/roberta
    alm train --config=laion_clap --workdir=DIR --config.data.dir=DATA \
        --config.init_from.workdir=runs/htsat,runs/roberta

Argument "fusion": clips longer than 10 s have four views (`aff_2d`) and another mel filter bank, as
the released fused models do. The published runs start from an HTSAT trained on AudioSet at 48 kHz
and from RoBERTa. Values are those of the official training scripts (LAION-AI/CLAP
`experiment_scripts`, `clap_module/model_configs`); what no source confirms is a project choice.
"""

import dataclasses

from ml_collections import ConfigDict

from alm_jax.audio.frontend import FLAVOURS

from .common import base, contrastive, htsat, transformer


def get_config(arg: str = "") -> ConfigDict:
    """Unfused, or with "fusion"."""
    if arg not in ("", "fusion"):
        raise ValueError(f"unknown argument {arg!r}; it is 'fusion' or empty")
    fused = arg == "fusion"
    c = base()
    c.name = "laion-clap-fusion" if fused else "laion-clap"
    c.data.sample_rate = 48_000
    c.data.max_seconds = 10.0
    c.data.max_text_length = 77
    c.data.batch_size = 2304  # 24 GPUs with 96 each
    c.frontend = ConfigDict(
        dataclasses.asdict(FLAVOURS["laion_clap_fusion" if fused else "laion_clap"])
    )
    c.frontend.repeat_to_samples = 480_000  # "repeatpad"; longer clips are cropped at random
    c.patches.time = 1
    c.patches.freq = 64
    c.eval.bucket_seconds = (10.0,)
    audio = htsat(96, (2, 2, 6, 2), (4, 8, 16, 32), drop_path=0.1, attention="fused", remat="full")
    if fused:
        audio.fusion = "aff_2d"
        c.init_from.skip = (r"^audio\.(fusion|excerpt_embed)",)  # which no HTSAT has
        c.data.max_seconds = 30.0  # project choice: the official loader reads whole files
        c.eval.bucket_seconds = (10.0, 30.0)
    text = transformer(768, 12, 12, norm="post", eps=1e-5, init="bert", remat="full")
    text.dropout = text.attention_dropout = 0.1
    text.position_offset = 2
    c.model.audio = audio
    c.model.audio_pool = ConfigDict(dict(kind="mean"))
    c.model.text = text
    c.model.text_pool = ConfigDict(dict(kind="first_tanh"))
    c.model.max_positions = 514
    c.model.embed_dim = 512
    c.model.projection = "mlp"
    c.model.logit_scale_init = 2.6592600  # ln(1 / 0.07)
    # The official code draws stripes after its batch norm and fills them with its zero; here they
    # are drawn before it, and hold about what becomes zero there.
    c.augment.time_masks = 2
    c.augment.time_mask_frames = 64
    c.augment.time_mask_fraction = 1.0
    c.augment.frequency_masks = 2
    c.augment.frequency_mask_bins = 8
    c.augment.mask_value = -30.0  # dB; project choice
    c.objectives.contrastive = contrastive(reduction="mean", max_logit_scale=100.0)
    c.tokenizer.path = ""  # the published models have RoBERTa's tokenizer.json
    c.tokenizer.vocab_size = 50_265
    c.init_from.parts = ("audio", "text", "text_pool")
    c.optim.lr = 1e-4
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0
    c.optim.clip_norm = 0.0
    c.optim.warmup_steps = 3200
    c.seed = 3407
    # 45 epochs of LAION-Audio-630K, AudioCaps and Clotho, about 690,000 pairs: project choice.
    c.train.steps = 45 * 690_000 // 2304
    c.train.log_every_steps = 100
    c.train.save_every_steps = 300
    c.train.keep = 2
    c.eval.every_steps = 300
    return c
