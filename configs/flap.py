"""FLAP: contrastive learning on what is left of a clip after masking, and the rest reconstructed.

    alm import --format=audiomae --checkpoint=pretrained.pth --output=runs/audiomae
    alm import --format=roberta --checkpoint=roberta-base --output=runs/roberta
    alm train --config=flap --workdir=DIR --config.data.dir=DATA \
        --config.init_from.workdir=runs/audiomae,runs/roberta \
        --config.init_from.parts=audio,text,text_pool

Argument: words joined by commas.

- none: whole columns and rows of patches are dropped ("2-D"), one view a clip, and the dropped
  patches are reconstructed from the states of the visible ones;
- "1d": patches are dropped one by one, with the same share;
- "two_views": two masks a clip, each contrasted with the caption;
- "no_reconstruction": the contrastive loss alone.

There is no official code (arXiv 2311.01615). The paper's abstract and surveys give the parts: a
ViT-B/16 from self-supervised learning on AudioSet, RoBERTa, 1-D and 2-D masks, several views,
contrastive learning on the visible tokens, reconstruction of the masked spectrogram. Everything
else is a project choice and says so; captions enriched by a language model are a matter of the
dataset.
"""

import dataclasses

from ml_collections import ConfigDict

from alm_jax.audio.frontend import FLAVOURS

from .common import base, contrastive, transformer, vit

WORDS = ("1d", "two_views", "no_reconstruction")


def get_config(arg: str = "") -> ConfigDict:
    """Takes the words that the module's docstring explains."""
    words = set(filter(None, arg.split(",")))
    if unknown := words - set(WORDS):
        raise ValueError(f"unknown argument {sorted(unknown)}; the words are {list(WORDS)}")
    c = base()
    c.name = "flap"
    # AudioMAE's input and encoder, so that its checkpoints are the start: project choice, where the
    # paper has the audio branch of MAViL, which was never published.
    c.frontend = ConfigDict(dataclasses.asdict(FLAVOURS["kaldi_fbank"]))
    c.patches.frames = 1024
    c.data.max_seconds = 10.255  # 1,024 frames
    c.eval.bucket_seconds = (10.255,)
    c.model.dtype = "bfloat16"
    positions = "sincos_2d_official"
    c.model.audio = vit(768, 12, 12, positions=positions, class_token=True, init="xavier")
    c.model.audio.attention, c.model.audio.remat = "fused", "full"
    c.model.audio.drop_path = 0.0  # project choice
    c.model.audio_pool = ConfigDict(dict(kind="mean"))  # project choice
    text = transformer(768, 12, 12, norm="post", eps=1e-5, init="bert", remat="dots")
    text.dropout = text.attention_dropout = 0.1  # RoBERTa's
    text.position_offset = 2
    c.model.text = text
    c.model.text_pool = ConfigDict(dict(kind="first_tanh"))  # project choice, as LAION-CLAP
    c.model.max_positions = 514
    c.model.embed_dim = 512  # project choice, as LAION-CLAP
    c.model.projection = "mlp"  # project choice, as LAION-CLAP
    c.model.logit_scale_init = 2.6592600  # ln(1 / 0.07); project choice
    c.tokenizer.vocab_size = 50_265  # RoBERTa's

    # Half of the patches are dropped: project choice.
    if "1d" in words:
        c.masking.ratio = 0.475
    else:
        c.masking.kind = "random_2d"
        c.masking.time_ratio = 0.3
        c.masking.freq_ratio = 0.25
    c.masking.views = 2 if "two_views" in words else 1  # project choice

    c.objectives.contrastive = contrastive(
        reduction="mean",  # project choice
        max_logit_scale=100.0,  # project choice
    )
    if "no_reconstruction" in words:
        c.name = "flap-no-reconstruction"
    else:
        # AudioMAE's plain decoder: size, target and weight are project choices. Only dropped
        # patches count.
        c.model.mae_decoder = transformer(
            512, 8, 16, init="xavier", remat="dots", decoder="vit", positions=positions
        )
        c.model.mae_decoder.attention = "fused"
        c.objectives.reconstruction = ConfigDict(dict(weight=1.0, normalize_target=True))

    c.data.max_text_length = 77  # project choice
    c.data.batch_size = 2304  # project choice, as LAION-CLAP
    c.optim.lr = 1e-4  # project choice
    c.optim.b2 = 0.999  # project choice
    c.optim.weight_decay = 0.0  # project choice
    c.optim.clip_norm = 1.0  # project choice
    c.optim.warmup_steps = 1000  # project choice
    # 45 epochs of about 690,000 pairs (AudioCaps, Clotho, LAION-Audio-630K): project choice.
    c.train.steps = 45 * 690_000 // c.data.batch_size
    c.train.log_every_steps = 100
    c.train.save_every_steps = 300  # project choice
    c.train.keep = 2
    c.eval.every_steps = 300  # project choice
    return c
