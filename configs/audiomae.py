"""AudioMAE at the paper's size: a masked autoencoder on AudioSet, and its fine-tuned classifier.

    alm train --config=audiomae --workdir=DIR --config.data.dir=DATA

Argument: words joined by commas.

- none: as published: 80 % of the patches dropped, decoder of 16 window-attention layers (85.25 M
  encoder + 51.08 M decoder parameters);
- "plain_decoder": the decoder of 8 global-attention layers (25.75 M);
- "2d": whole columns and rows are dropped, at the rates of the official flags;
- "overlap": patches of 16 x 16 every 10 frames and bins (101 x 12 instead of 64 x 8);
- "ordered_positions": the table of positions in the order of the patches. The published one is made
  for 8 x 64 patches and read as 64 x 8;
- "finetune": the classifier (85.66 M) by the recipe of AudioSet's balanced split; with "as2m" of
  the full one. It is the config of imported fine-tuned checkpoints, and starts from a pretrained
  one, DIR/pretrained say, which `alm import --format=audiomae` or the first command made:

    alm train --config=audiomae:finetune --workdir=DIR/finetuned --config.data.dir=DATA \
        --config.init_from.workdir=DIR/pretrained

The hyper-parameters are those of the official scripts and their defaults. What differs: half
precision there is float16, here bfloat16; query, key and value matrices are initialised one by one
instead of as one, so their first values are 1.4 times as large. The shift of the waveform is left
out: the official code means to do it but always draws zero. Clips of the full AudioSet are drawn
with replacement, as the official run did: its flag `--replacement False` is read as true.
"""

import dataclasses

from ml_collections import ConfigDict

from alm_jax.audio.frontend import FLAVOURS

from .common import base, classification, transformer, vit

WORDS = ("plain_decoder", "2d", "overlap", "ordered_positions", "finetune", "as2m")
CLIPS = {"as2m": 2_000_000, "as20k": 20_000}  # project choice: what was left to download varies


def get_config(arg: str = "") -> ConfigDict:
    """Takes the words that the module's docstring explains."""
    words = set(filter(None, arg.split(",")))
    if unknown := words - set(WORDS):
        raise ValueError(f"unknown argument {sorted(unknown)}; the words are {list(WORDS)}")
    if "finetune" in words and words & {"plain_decoder", "2d"}:
        raise ValueError("'plain_decoder' and '2d' are about pretraining; leave out 'finetune'")
    if "as2m" in words and "finetune" not in words:
        raise ValueError("'as2m' says which data to fine-tune on; add 'finetune'")
    c = base()
    c.frontend = ConfigDict(dataclasses.asdict(FLAVOURS["kaldi_fbank"]))
    c.patches.frames = 1024
    if "overlap" in words:
        c.patches.time_stride = c.patches.freq_stride = 10
    c.model.dtype = "bfloat16"
    c.data.max_seconds = 10.255  # 1,024 frames
    c.eval.bucket_seconds = (10.255,)
    c.train.log_every_steps = 100
    c.optim.clip_norm = 0.0
    in_order = words & {"ordered_positions", "overlap"}  # those that overlap are in order there too
    positions = "sincos_2d" if in_order else "sincos_2d_official"
    c.model.audio = vit(
        768, 12, 12, positions=positions, class_token=True, final_norm=True, init="xavier"
    )
    c.model.audio.attention = "fused"
    c.model.audio.remat = "dots"
    if "finetune" in words:
        return finetuned(c, "as2m" in words)
    return pretrained(c, words, positions)


def pretrained(c: ConfigDict, words: set[str], positions: str) -> ConfigDict:
    """The recipe of `submit_pretrain_audioset2M.sh`: 8 x 64 clips, base rate 2e-4 per 256."""
    c.name = "audiomae-plain" if "plain_decoder" in words else "audiomae"
    if "plain_decoder" in words:
        c.model.mae_decoder = transformer(
            512, 8, 16, init="xavier", remat="full", decoder="vit", positions=positions
        )
        c.model.mae_decoder.attention = "fused"
    else:
        c.model.mae_decoder = ConfigDict(
            dict(
                decoder="swin",
                width=512,
                depth=16,
                heads=16,
                mlp_dim=2048,
                activation="gelu",
                eps=1e-6,
                window=(6, 6) if "overlap" in words else (4, 4),
                shift=(2, 0),  # in time only; the paper's text can be read as both axes
                bias_hidden=384,
                bias_dropout=0.1,
                init="xavier",
                attention="fused",
                remat="full",  # less memory and no slower, see docs/scale.md
                unroll=1,
                positions=positions,
            )
        )
    if "2d" in words:
        c.masking.kind = "random_2d"
        c.masking.time_ratio = 0.7
        c.masking.freq_ratio = 0.3
    else:
        c.masking.ratio = 0.8
    c.objectives.reconstruction = ConfigDict(dict(weight=1.0, normalize_target=True))
    c.augment.gain_beta = 10.0
    c.data.batch_size = 512
    epoch = CLIPS["as2m"] // c.data.batch_size
    c.optim.lr = 4e-4
    c.optim.warmup_steps = 3 * epoch
    c.optim.weight_decay = 1e-4
    c.train.steps = 33 * epoch
    c.train.save_every_steps = epoch  # project choice
    c.train.keep = 2  # project choice
    c.eval.every_steps = epoch  # project choice
    return c


def finetuned(c: ConfigDict, as2m: bool) -> ConfigDict:
    """The recipes of `ft_as.sh` (base rate 1e-3 per 256, batch 32) and `submit_ft_mask_bal.sh`."""
    c.name = "audiomae-finetune"
    c.objectives.classification = classification("binary")
    c.data.labels = "labels"
    c.data.mixup_probability = 0.5
    c.augment.mixup_beta = 10.0
    c.data.sampling = "balanced" if as2m else "uniform"
    c.model.audio.final_norm = False
    c.model.audio.drop_path = 0.1
    c.model.classifier = ConfigDict(dict(classes=527, pool="mean", eps=1e-6, init_std=2e-5))
    c.masking.kind = "random_2d"
    c.masking.time_ratio = 0.2
    c.masking.freq_ratio = 0.2
    c.augment.gain_beta = 10.0
    c.augment.time_masks = c.augment.frequency_masks = 1
    c.augment.time_mask_frames = 192
    c.augment.time_mask_fraction = 1.0
    c.augment.frequency_mask_bins = 48
    # Masked cells are zero before the official normalisation.
    c.augment.mask_value = -c.frontend.mean / (c.frontend.std * c.frontend.std_multiple)
    c.init_from.skip = (r"^audio\.norm\.",)  # the pretrained encoder's last norm is not used
    c.optim.b2 = 0.999
    c.optim.weight_decay = 5e-4
    c.optim.layer_decay = 0.75
    c.optim.not_decayed = ("class_token$",)
    c.data.batch_size = 256 if as2m else 32
    c.optim.lr = 2e-4 if as2m else 1.25e-4
    c.optim.end_factor = 1e-6 / c.optim.lr
    # An epoch of the full recipe is 200,000 clips, drawn so that rare labels come as often.
    epoch = (200_000 if as2m else CLIPS["as20k"]) // c.data.batch_size
    c.optim.warmup_steps = (10 if as2m else 4) * epoch
    c.train.steps = (100 if as2m else 60) * epoch
    c.train.save_every_steps = epoch  # project choice
    c.eval.every_steps = epoch  # project choice
    return c
