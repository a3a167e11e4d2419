"""Classes of OpenSounds on a CPU: an encoder fine-tuned on labels, or a linear probe of it.

    alm train --config=opensounds_labels --workdir=runs/labels/finetuned \
        --config.init_from.workdir=runs/quickstart/mae
    alm train --config=opensounds_labels:probe --workdir=runs/labels/probe \
        --config.init_from.workdir=runs/quickstart/mae

The encoder is the quickstart's, of either stage. Argument: words joined by commas. "probe" trains
the classifier alone, on states of the frozen encoder; "effects" takes the 44 effect classes instead
of the 128 General MIDI instruments. Without `init_from`, fine-tuning starts from random parameters.
Run time and results: docs/finetuning.md. AudioMAE's recipe (mixup, layer decay, drop path, clips
drawn by class) with rates for few clips, which are project choices.
"""

from ml_collections import ConfigDict

from input_pipeline.opensounds import index

from .common import classification
from .quickstart import audio_tower, small


def get_config(arg: str = "") -> ConfigDict:
    """Takes the words "probe" and "effects"."""
    words = set(filter(None, arg.split(",")))
    if unknown := words - {"probe", "effects"}:
        raise ValueError(f"unknown argument {sorted(unknown)}; the words are 'probe' and 'effects'")
    probe, effects = "probe" in words, "effects" in words
    c = small()
    kind = "probe" if probe else "finetune"
    c.name = f"opensounds-{'effects' if effects else 'instruments'}-{kind}"
    c.data.dir = "data/opensounds/tiny"  # instruments are the same in every tier
    c.data.eval_split = "validation"
    c.data.batch_size = 64
    c.data.labels = "zeroshot_label"
    rows = [row for row in index.rows() if row.zeroshot_label and row.is_note != effects]
    c.data.classes = tuple(sorted({row.zeroshot_label for row in rows}))
    c.data.unlabelled = "drop"
    c.data.sampling = "balanced"
    c.model.audio = audio_tower()
    c.model.classifier = ConfigDict(
        dict(classes=len(c.data.classes), pool="mean", eps=1e-6, init_std=2e-5)
    )
    c.objectives.classification = classification("softmax")
    c.optim.name = "adamw"
    c.optim.b2 = 0.999
    c.optim.warmup_steps = 20
    c.train.steps = 300
    c.train.save_every_steps = 100
    c.eval.every_steps = 100
    if probe:
        c.optim.frozen = ("^audio",)
        c.optim.lr = 5e-2
        c.optim.weight_decay = 0.0
        return c
    c.model.audio.drop_path = 0.1
    c.data.mixup_probability = 0.5
    c.augment.gain_beta = 10.0
    c.objectives.classification.label_smoothing = 0.1
    c.optim.lr = 2e-3
    c.optim.layer_decay = 0.75
    return c
