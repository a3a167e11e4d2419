"""Fields that every experiment has, with their units; a config starts from here and changes some.

Sizes end in their unit: `_steps`, `_seconds`. Everything that is drawn follows from `seed`.
"""

import dataclasses

from ml_collections import ConfigDict

from alm_jax.audio.augment import AugmentConfig
from alm_jax.audio.frontend import FLAVOURS
from alm_jax.audio.packing import PackingConfig
from alm_jax.models.htsat import HtsatConfig

SILENCE = -11.5  # log(0 + 1e-5), what the Cacophony front end gives for digital silence


def base() -> ConfigDict:
    """The defaults; not an experiment by itself: `model` and `objectives` are empty."""
    c = ConfigDict()
    c.name = ""
    c.seed = 0

    c.data = ConfigDict()
    c.data.dir = "data/opensounds/default"  # a TFDS dataset made by `alm prepare`
    # Several to train on, (("data/a", 3.0), ("data/b", 1.0)); evaluation reads data.dir.
    c.data.mixture = ()
    c.data.mixture_unit = "share"  # what a weight is: "share" of a batch, or relative "epochs"
    c.data.mixture_temperature = 1.0  # above 1: shares closer to equal ones
    c.data.train_split = "train"
    c.data.eval_split = "validation"  # "" for no evaluation during training
    c.data.batch_size = 256  # clips in a global batch
    c.data.sample_rate = 16000  # Hz
    c.data.max_seconds = 10.0  # longer clips are cropped
    c.data.max_text_length = 64  # tokens, with bos and eos
    c.data.generated_probability = 0.0  # of a generated caption, where a clip has both kinds
    c.data.concat_probability = 0.0  # of a second clip after the first, "... followed by ..."
    c.data.text_sample_alpha = 0.0  # subword sampling in training (Tokenizer.encode); 0: off
    # Classes of the clips, for objectives.classification; see input_pipeline.labels.
    c.data.labels = ""  # feature that holds their names, such as "labels"; "": batches have none
    c.data.classes = ()  # the names in the order of the classifier's outputs; (): see below
    c.data.classes_file = ""  # or a file, a name a line; "": the labels that occur, sorted
    c.data.unlabelled = "error"  # clips without a class: "drop" leaves them out, "keep": none true
    c.data.sampling = "uniform"  # or "balanced": clips of rare classes are drawn more often
    c.data.mixup_probability = 0.0  # of training clips that are mixed with a second one
    c.data.read_threads = 2
    c.data.num_workers = 0  # processes; 0 reads in threads of the main one

    c.tokenizer = ConfigDict()
    c.tokenizer.path = ""  # a sentencepiece model; "" trains one on the training captions
    c.tokenizer.model_type = "unigram"
    c.tokenizer.vocab_size = 8000
    c.tokenizer.character_coverage = 0.9995

    # Every field of alm_jax.audio.frontend_config.LogMelConfig, documented there.
    c.frontend = ConfigDict(dataclasses.asdict(FLAVOURS["cacophony"]))
    c.patches = ConfigDict()
    c.patches.time = 16  # frames
    c.patches.freq = 16  # mel bins
    c.patches.tail = "drop"  # frames that fill no patch: "drop" (official) or "keep"
    c.patches.time_stride = 0  # frames between the starts of two patches; 0: side by side
    c.patches.freq_stride = 0  # mel bins between the starts of two patches; 0: side by side
    c.patches.frames = 0  # length that all clips are cut or padded to; 0: each its own
    c.masking = ConfigDict()
    c.masking.kind = "random"
    c.masking.ratio = 0.0  # share of patches dropped in training
    c.masking.budget = 0  # patches a clip takes part with in training; 0: all
    c.masking.time_ratio = 0.0  # share of time columns dropped, kind "random_2d"
    c.masking.freq_ratio = 0.0  # share of frequency rows dropped, kind "random_2d"
    c.masking.views = 1  # masks drawn for each clip; FLAP contrasts each with the caption
    # Every field of alm_jax.audio.packing.PackingConfig, documented there; off.
    c.packing = ConfigDict(dataclasses.asdict(PackingConfig()))
    # Every field of alm_jax.audio.augment.AugmentConfig, documented there; all off.
    c.augment = ConfigDict(dataclasses.asdict(AugmentConfig()))

    c.model = ConfigDict()
    c.model.dtype = "float32"  # matmul inputs; parameters are float32
    c.model.audio = None
    c.model.mae_decoder = None  # see alm_jax.models.mae_decoders
    c.model.classifier = None  # labels: classes, pool, eps, init_std
    c.model.text = None
    c.model.caption_decoder = None
    c.model.logit_bias_init = None  # added to the logits of the sigmoid loss; SigLIP starts at -10

    c.objectives = ConfigDict()

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # or "muon": orthogonalised momentum for hidden matrices
    c.optim.lr = 1e-3
    c.optim.schedule = "cosine"
    c.optim.warmup_steps = 100
    c.optim.end_factor = 0.0  # last learning rate as a share of lr
    c.optim.b1 = 0.9
    c.optim.b2 = 0.95
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.05
    c.optim.clip_norm = 1.0  # 0: no clipping
    c.optim.ema_decay = 0.0  # 0: evaluate the last parameters, not their average
    c.optim.lr_multipliers = ()  # (("^audio", 0.5), ...): first match counts
    c.optim.layer_decay = 1.0  # rate of an audio layer as a share of the next one's; 1: off
    c.optim.frozen = ()  # names that are not trained, regular expressions: ("^audio",) for a probe
    c.optim.not_decayed = ()  # more names without weight decay, regular expressions

    # Devices within a slice, that is, with fast links; one size may be -1, what is left.
    c.mesh = ConfigDict()
    c.mesh.data = -1  # each has rows of the batch
    c.mesh.fsdp = 1  # each has rows of the batch and a share of the parameters
    c.mesh.tensor = 1  # each has a share of the heads and hidden units
    # Slices (TPU), or processes of a GPU cluster, over which the axes go on; one may be -1.
    c.mesh.dcn_data = -1
    c.mesh.dcn_fsdp = 1
    c.mesh.dcn_tensor = 1

    # Several processes, see alm_jax.parallel.cluster; a single machine needs none of it.
    c.distributed = ConfigDict()
    c.distributed.coordinator_address = ""  # host:port of process 0; "": as the cluster says
    c.distributed.process_count = 0  # that must take part; 0: as the cluster says
    c.distributed.process_id = -1  # of this process; -1: as the cluster says
    c.distributed.connect_seconds = 300  # that processes wait for each other at the start
    c.distributed.heartbeat_seconds = 10  # of silence after which a process is taken for dead

    c.init_from = ConfigDict()
    c.init_from.workdir = ""
    c.init_from.parts = ("audio",)
    c.init_from.skip = ()  # names to leave out, regular expressions

    c.train = ConfigDict()
    c.train.steps = 1000
    c.train.microbatches = (
        1  # parts a batch is computed in, for memory; the gradient stays the same
    )
    c.train.log_every_steps = 10
    c.train.save_every_steps = 500
    c.train.keep = 1  # checkpoints kept
    c.train.keep_best = ""  # metric whose best parameters stay in WORKDIR/best; "": none
    c.train.nonfinite = "stop"  # a step whose loss or gradients are not finite: "stop" or "skip"
    c.train.health_every_steps = 500  # between lines that compare losses with chance; 0: none
    c.train.stall_seconds = 3600.0  # longest step or evaluation before stacks are shown; 0: any

    c.eval = ConfigDict()
    c.eval.every_steps = 0  # 0: only after the last step
    c.eval.batch_size = 128
    c.eval.bucket_seconds = (10.0,)  # clips are padded to the shortest that fits
    return c


def transformer(width, depth, heads, **fields) -> ConfigDict:
    """A stack; see alm_jax.models.transformer.TransformerConfig for the other fields."""
    c = ConfigDict(dict(width=width, depth=depth, heads=heads, mlp_dim=4 * width))
    c.activation = "gelu"
    c.norm = "pre"
    c.eps = 1e-6
    c.causal = False
    c.cross = False
    c.dropout = 0.0
    c.attention_dropout = 0.0
    c.drop_path = 0.0
    c.init = "lecun"
    c.attention = "xla"
    c.remat = "none"
    c.unroll = 1
    c.update(fields)
    return c


def vit(width, depth, heads, **fields) -> ConfigDict:
    """An audio tower of the kind "vit"; see alm_jax.models.audio_vit.VitConfig."""
    own = dict(positions="sincos_time", class_token=False, final_norm=True)
    return transformer(width, depth, heads, tower="vit", **(own | fields))


def htsat(dim, depths, heads, **fields) -> ConfigDict:
    """An audio tower of the kind "htsat", its fields documented in alm_jax.models.htsat."""
    c = ConfigDict(dataclasses.asdict(HtsatConfig(dim=dim, depths=depths, heads=heads)))
    c.update(fields)
    return c


def contrastive(**fields) -> ConfigDict:
    """The contrastive objective; its fields are documented there."""
    c = ConfigDict(dict(weight=1.0, loss="info_nce", reduction="sum", max_logit_scale=0.0))
    c.ignore_same_caption = False
    c.label_smoothing = 0.0
    c.update(fields)
    return c


def classification(loss, **fields) -> ConfigDict:
    """The classification objective: "binary" for any number of classes a clip, else "softmax"."""
    return ConfigDict(dict(weight=1.0, loss=loss, label_smoothing=0.0) | fields)


def stage1(c: ConfigDict, audio: ConfigDict, decoder: ConfigDict) -> ConfigDict:
    """Turns c into a masked autoencoder (Cacophony's stage 1): 80 % of the patches dropped."""
    c.model.audio = audio
    c.model.mae_decoder = decoder
    c.masking.ratio = 0.8
    c.objectives.reconstruction = ConfigDict(dict(weight=1.0, normalize_target=False))
    return c


def stage2(
    c: ConfigDict, audio: ConfigDict, text: ConfigDict, decoder: ConfigDict, pool_heads: int
) -> ConfigDict:
    """Turns c into contrastive + captioning (Cacophony's stage 2)."""
    c.model.audio = audio
    c.model.audio_pool = ConfigDict(dict(kind="attention", heads=pool_heads, output=True))
    c.model.text = text
    c.model.text_pool = ConfigDict(dict(kind="attention", heads=1, output=False))
    c.model.max_positions = 512
    c.model.embed_dim = audio.width
    c.model.projection = "linear"  # pooled states to the joint space; or "mlp", LAION-CLAP's
    c.model.logit_scale_init = 2.0  # log space; no clamp in the official code
    c.model.caption_decoder = decoder
    c.objectives.contrastive = contrastive()
    c.objectives.captioning = ConfigDict(
        dict(weight=1.0, reduction="positions", label_smoothing=0.0)
    )
    return c
