"""What `alm eval --protocol=NAME` measures: one declarative entry a protocol.

A protocol fixes what a number depends on besides the model: which clips, which prompts or captions,
which gallery, how it is counted. A change of any of these is a new version; rows of another version
are not comparable. How each kind is computed is in `caption_sets`, `zero_shot`, `tagging`,
`caption_metrics` and `compositional`; `protocol_runs` joins them with a model and a dataset.

Numbers of clips and classes are those that the corpora publish. Papers often have fewer, since
videos disappear: Cacophony's VGGSound has 12,722 of the 15,446 test clips. A dataset with other
numbers is scored, and its rows say so.
"""

from __future__ import annotations

import dataclasses

from alm_jax.errors import UserError, did_you_mean
from alm_jax.evaluators.metrics.zero_shot import TEMPLATES


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to measure, by name and version.

    Attributes:
      name: what `--protocol` calls it, and the start of its numbers' names.
      title: one line for people.
      layout: the `alm prepare` format whose datasets it is for; "" for any dataset.
      split: of the prepared dataset.
      clips: of that split as published; 0 for no one's published set.
      papers: who reports it, and what they do otherwise.
      version: counts up with every change of what is measured.
      text: whether the model must have a text side.
    """

    name: str
    title: str
    layout: str = ""
    split: str = "test"
    clips: int = 0
    papers: str = ""
    version: int = 1
    text: bool = True

    @property
    def tag(self) -> str:
        """Name with version."""
        return f"{self.name}-v{self.version}"

    def with_argument(self, argument: str) -> Protocol:
        """The protocol with what stands behind the colon of `NAME:ARGUMENT`."""
        raise UserError(f"--protocol={self.name}:{argument}: {self.name} takes no argument")


@dataclasses.dataclass(frozen=True)
class HeldOut(Protocol):
    """The quickstart's: retrieval on distinct captions, OpenSounds' classes, caption scores."""


@dataclasses.dataclass(frozen=True)
class Ridge(Protocol):
    """Retrieval by a linear baseline fitted on the dataset's training split."""


@dataclasses.dataclass(frozen=True)
class Retrieval(Protocol):
    """Text->audio and audio->text, every caption counting.

    Attributes:
      captions: of a clip as published, 0 if it varies.
    """

    captions: int = 0


@dataclasses.dataclass(frozen=True)
class Classification(Protocol):
    """Zero-shot classification.

    Attributes:
      label: feature that holds the label or labels.
      classes: as published, 0 if it is nobody's published corpus.
      prompt: name of the templates (`zero_shot.TEMPLATES`); `NAME:PROMPT` takes others.
      tags: whether clips have any number of classes (mAP) and not one each (accuracy).
      folds: as published; with these, the accuracy of each fold and their mean are reported too.
    """

    label: str = "labels"
    classes: int = 0
    prompt: str = "this_is"
    tags: bool = False
    folds: int = 0

    def with_argument(self, argument: str) -> Protocol:
        """`NAME:PROMPT`."""
        if argument not in TEMPLATES:
            raise UserError(
                f"--protocol={self.name}:{argument}: no prompts of that name; there are "
                f"{', '.join(TEMPLATES)}{did_you_mean(argument, TEMPLATES)}"
            )
        return dataclasses.replace(self, prompt=argument)


@dataclasses.dataclass(frozen=True)
class Captions(Protocol):
    """Generated captions against all references of a clip.

    Attributes:
      decode: `Decoding` in words; `NAME:beam:beams=4` takes another.
    """

    decode: str = "greedy"

    def with_argument(self, argument: str) -> Protocol:
        """`NAME:DECODE`."""
        from alm_jax.inference.decoding import Decoding

        Decoding.parse(argument)
        return dataclasses.replace(self, decode=argument)


@dataclasses.dataclass(frozen=True)
class Compositional(Protocol):
    """Groups of clips and captions that differ in composition; `--data` is a table.

    Attributes:
      groups: as published; 0 where that is not confirmed.
    """

    groups: int = 0


@dataclasses.dataclass(frozen=True)
class Neighbours(Protocol):
    """Classes of a clip by the training clips nearest to it, nothing being trained.

    Attributes:
      label: feature that holds the label or labels; `NAME:FEATURE` takes another.
      train: split of the neighbours.
      counts: numbers of neighbours, each giving numbers of its own.
    """

    label: str = "labels"
    train: str = "train"
    counts: tuple[int, ...] = (1, 10)
    text: bool = False

    def with_argument(self, argument: str) -> Protocol:
        """`NAME:FEATURE`."""
        return dataclasses.replace(self, label=argument)


@dataclasses.dataclass(frozen=True)
class OwnClasses(Protocol):
    """The classifier of a model fine-tuned on labels, or of a linear probe, on other clips."""

    text: bool = False


_THIS_IS = "'This is a sound of X': LAION-CLAP, Cacophony"

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        HeldOut(
            "heldout",
            "any prepared dataset: retrieval on distinct captions, OpenSounds' classes, captions",
            papers="the quickstart and docs/results.md",
        ),
        Ridge("ridge", "the ridge baseline of `heldout`, fitted on the dataset's training split"),
        Retrieval(
            "clotho-retrieval",
            "Clotho evaluation split, five captions a clip",
            layout="clotho",
            clips=1045,
            captions=5,
            papers="LAION-CLAP, WavCaps, MGA-CLAP, Cacophony",
        ),
        Retrieval(
            "audiocaps-retrieval",
            "AudioCaps test split, five captions a clip",
            layout="audiocaps",
            clips=975,
            captions=5,
            papers="LAION-CLAP, WavCaps, MGA-CLAP, Cacophony; most have fewer clips left",
        ),
        Retrieval("any-retrieval", "any dataset with captions, counted like clotho-retrieval"),
        Classification(
            "esc50",
            "ESC-50: all clips, and every fold",
            layout="esc50",
            clips=2000,
            classes=50,
            folds=5,
            papers=f"{_THIS_IS}; MGA-CLAP: the bare name (esc50:name)",
        ),
        Classification(
            "urbansound8k",
            "UrbanSound8K: mean over clips, and over folds",
            layout="urbansound8k",
            clips=8732,
            classes=10,
            folds=10,
            papers=f"{_THIS_IS}; MGA-CLAP: the bare name; papers give either mean",
        ),
        Classification(
            "vggsound",
            "VGGSound test split",
            layout="vggsound",
            clips=15446,
            classes=309,
            papers=f"{_THIS_IS}, 12,722 clips; MGA-CLAP: the bare name",
        ),
        Classification(
            "tut2017",
            "TUT Acoustic Scenes 2017, evaluation set",
            layout="tut2017",
            clips=1620,
            classes=15,
            prompt="this_is_on",
            papers="Cacophony: 'This is a sound on X', development and evaluation clips together",
        ),
        Classification(
            "fsd50k",
            "FSD50K evaluation set, macro mAP",
            layout="fsd50k",
            clips=10231,
            classes=200,
            tags=True,
            papers="M2D-CLAP, MS-CLAP",
        ),
        Classification(
            "audioset",
            "AudioSet evaluation segments, macro mAP",
            layout="audioset",
            clips=20371,
            classes=527,
            tags=True,
            papers="M2D-CLAP, MS-CLAP; most have fewer clips left",
        ),
        Classification("any-labels", "any dataset with one label a clip, accuracy"),
        Classification("any-tags", "any dataset with labels, macro mAP", tags=True),
        Neighbours(
            "knn",
            "any dataset with labels: frozen embeddings, the 1 and the 10 nearest training clips",
            papers="Wu et al. 2018, DINO; knn:FEATURE names the feature with the labels",
        ),
        OwnClasses(
            "classes",
            "a fine-tuned model or a linear probe: its own classes, accuracy, mAP and AUC",
            papers="AudioMAE (AudioSet mAP, ESC-50 accuracy)",
        ),
        Captions(
            "clotho-captions",
            "Clotho evaluation split, five references",
            layout="clotho",
            clips=1045,
            papers="Cacophony (sampled at temperature 0.1), EnCLAP, DCASE task 6",
        ),
        Captions(
            "audiocaps-captions",
            "AudioCaps test split, five references",
            layout="audiocaps",
            clips=975,
            papers="Cacophony (sampled at temperature 0.1), EnCLAP",
        ),
        Captions("any-captions", "any dataset with captions as references"),
        Compositional(
            "compa-order",
            "CompA-order: two or three clips with the same sounds in another order",
            groups=400,
            papers="CompA-CLAP, the first two of each group",
        ),
        Compositional(
            "compa-attribute",
            "CompA-attribute: two clips whose sounds swap an attribute",
            papers="CompA-CLAP",
        ),
    )
}


def find_protocols(names: str) -> list[Protocol]:
    """The protocols of `NAME[:ARGUMENT][,NAME...]`.

    Raises:
      UserError: an unknown name or argument.
    """
    parts: list[str] = []
    for text in filter(None, (part.strip() for part in names.split(","))):
        if parts and "=" in text and ":" not in text:
            parts[-1] += f",{text}"  # a further field of a decoding, such as seed=1
        else:
            parts.append(text)
    found = []
    for text in parts:
        name, _, argument = text.partition(":")
        if name not in PROTOCOLS:
            raise UserError(
                f"--protocol={name}: there is no such protocol{did_you_mean(name, PROTOCOLS)}; "
                f"`alm eval --list` shows them: {', '.join(PROTOCOLS)}"
            )
        protocol = PROTOCOLS[name]
        found.append(protocol.with_argument(argument) if argument else protocol)
    if not found:
        raise UserError("--protocol= names none; `alm eval --list` shows them")
    if len({protocol.name for protocol in found}) < len(found):
        raise UserError(f"--protocol={names}: each protocol once; run the other argument by itself")
    return found


def default_protocols(layout: str, has_captions: bool) -> list[Protocol]:
    """What a dataset is scored by unless told otherwise.

    Args:
      layout: the `alm prepare` format it was made of; "" if it does not say.
      has_captions: whether the model writes captions.
    """
    fitting = [p for p in PROTOCOLS.values() if layout and p.layout == layout]
    kept = [p for p in fitting if has_captions or not isinstance(p, Captions)]
    return kept or [PROTOCOLS["heldout"]]


def format_list() -> str:
    """The table of `alm eval --list`."""
    lines = []
    for protocol in PROTOCOLS.values():
        lines.append(f"{protocol.tag:24s}{protocol.title}")
        sizes = f"{protocol.clips:,} clips" if protocol.clips else ""
        if isinstance(protocol, Classification):
            prompt = " | ".join(TEMPLATES[protocol.prompt])
            classes = f"{protocol.classes} classes, " if protocol.classes else ""
            sizes = ", ".join(filter(None, [sizes, f"{classes}prompt {prompt!r}"]))
        if isinstance(protocol, Compositional) and protocol.groups:
            sizes = f"{protocol.groups} groups"
        papers = f"reported by {protocol.papers}" if protocol.papers else ""
        for line in filter(None, (sizes, papers)):
            lines.append(f"{'':24s}  {line}")
    lines.append("\nPrompts for NAME:PROMPT, several are averaged:")
    lines += [f"  {name:22s}{' | '.join(templates)}" for name, templates in TEMPLATES.items()]
    return "\n".join(lines)
