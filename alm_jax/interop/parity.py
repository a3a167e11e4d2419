"""Whether an exported model computes what the JAX model computes, from waveform to output.

Shapes: B batch, S samples, T frames, F mel bins, N patches, L tokens, J joint width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from alm_jax.audio.frontend import LogMelConfig, pcm_to_float
from alm_jax.audio.patches import take
from alm_jax.errors import UserError
from alm_jax.inference.jitted import Inference
from alm_jax.interop.parity_inputs import ROWS, SENTENCES, batches, synthetic_clips
from alm_jax.models.towers import tower_patches
from alm_jax.objectives.forward import spectrogram
from alm_jax.train_state import model_graph
from input_pipeline.text import Tokenizer

TOLERANCE = 1e-4  # relative difference that an export may have; usual are 1e-6 to 1e-5
# A band 130 dB below the loudest of its frame holds float32 rounding, and the log magnifies it.
LOG_MEL_TOLERANCE = 1e-3
COLLAPSED = (
    0.99  # mean cosine between different clips, or captions, from which nothing is told apart
)
# Tokens of the generated captions: each reads all weights of text tower and decoder again.
_GREEDY = 12
# Of the patches of a clip, every fifth is visible to the masked autoencoder's decoder.
_VISIBLE_EVERY = 5


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """How far an export is from JAX.

    Attributes:
      differences: output -> largest relative difference over all clips, captions and elements.
      clips: number of clips compared.
      captions: number of captions compared, 0 without a text side.
      real: whether clips were given; else they are synthetic.
      parameters: number of parameters of the model.
      on_given: the differences over the clips given alone, without the synthetic ones.
    """

    differences: dict[str, float]
    clips: int
    captions: int
    real: bool
    parameters: int
    on_given: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The largest of the differences."""
        return max(self.differences.values())

    def __str__(self) -> str:
        listed = _listed(self.differences)
        if self.on_given:
            listed += f"; on the real clips alone: {_listed(self.on_given)}"
        kind = "real and synthetic" if self.real else "synthetic"
        return (
            f"The export differs from JAX on {self.clips} {kind} clips and {self.captions} "
            f"captions by at most (relative): {listed}"
        )


def _listed(differences: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items())


class Reference:
    """The JAX model's outputs in the form of golden.npz."""

    def __init__(self, config: ConfigDict, params: Any, tokenizer: Tokenizer | None):
        """Prepares the model.

        Args:
          config: `exported.export_config`'s: float32.
          params: nested dict of arrays.
          tokenizer: None without a text side.
        """
        self.config = config
        self.tokenizer = tokenizer
        self.frontend = LogMelConfig(**config.frontend)
        self.samples = max(1, round(config.data.max_seconds * self.frontend.sample_rate))
        graph, _ = model_graph(config, int(config.export.vocab_size))
        self.graph = graph
        self.params = jax.device_put(params)
        self.inference = Inference(config, graph)
        self._forward = jax.jit(self._compute)

    def _compute(
        self, params: Any, audio: jax.Array, length: jax.Array, text: jax.Array, mask: jax.Array
    ) -> dict[str, jax.Array]:
        model = nnx.merge(self.graph, params)
        mel, frames = spectrogram(pcm_to_float(audio), length, self.frontend)
        patches = tower_patches(mel, frames, self.config, self.frontend)
        hidden, states_mask = model.audio(patches), model.audio.state_mask(patches)
        out = {"log_mel": mel}
        if model.classifier is not None:
            out["class_logits"] = model.classifier(hidden, states_mask)
        out["audio_embedding"] = model.audio_embedding(hidden, states_mask)
        if model.text is not None:
            states = model.text(text, mask)
            out["text_embedding"] = model.text_embedding(states, mask)
            if model.caption_decoder is not None:
                out["caption_logits"] = model.caption_decoder(states, mask, hidden, states_mask)
        if model.mae_decoder is not None:
            slots = jnp.arange(patches.mask.shape[1])
            chosen = slots[::_VISIBLE_EVERY]
            others = slots[np.arange(len(slots)) % _VISIBLE_EVERY > 0]
            rows = -(-len(audio) // 2)  # half of the clips: as much work as all embeddings
            some = jax.tree.map(lambda part: part[:rows], patches)
            visible, dropped = (
                take(some, jnp.broadcast_to(i, (rows, len(i))), jnp.ones((1, 1), bool))
                for i in (chosen, others)
            )
            out["mae_prediction"] = model.mae_decoder(model.audio(visible), visible, dropped)
            out |= {"visible": chosen, "dropped": others}
        return out

    def outputs(
        self, clips: Sequence[np.ndarray], captions: Sequence[str], *, greedy: bool
    ) -> dict[str, np.ndarray]:
        """Inputs and outputs of B clips int16 (at most one window each) and as many captions.

        Caption logits are those of caption i given clip i; `greedy` adds generated captions.
        """
        audio = np.zeros((len(clips), self.samples), np.int16)
        length = np.ones(len(clips), np.int32)
        for row, clip in enumerate(clips):
            audio[row, : len(clip)] = clip
            length[row] = len(clip)
        most = int(self.config.data.max_text_length)
        if self.tokenizer is not None:
            text, mask = self.tokenizer.encode_batch(captions, most)
        else:  # an imported model may lack its tokenizer; any ids will do
            rows = max(1, int(self.config.export.vocab_size))
            text = np.random.default_rng(0).integers(rows, size=(len(clips), most), dtype=np.int32)
            mask = np.arange(most) < np.minimum(most, 2 + np.arange(len(clips)))[:, None]
        out: dict[str, np.ndarray] = {"audio": audio, "audio_length": length}
        if self.config.model.text is not None:
            out |= {"text": text, "text_mask": mask, "strings": np.asarray(list(captions))}
        # Accelerators multiply float32 in fewer bits unless told otherwise.
        with jax.default_matmul_precision("highest"):
            out |= jax.device_get(self._forward(self.params, audio, length, text, mask))
            if greedy and "caption_logits" in out:
                marks = self.config.export.tokens
                ids = self.inference.caption(
                    self.params, audio, length, marks.bos, marks.eos, max_length=min(most, _GREEDY)
                )
                out["caption_ids"] = np.asarray(ids)
        return out


Compare = Callable[[Mapping[str, np.ndarray]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What the JAX model gave, batch by batch, in files.

    Attributes:
      files: one for each batch: `Reference.outputs`.
      made: number of synthetic clips; they come first.
      given: number of clips given.
      invented: number of captions that were not given; they come first.
      captions: number of captions, 0 without a tokenizer.
      parameters: number of parameters of the model.
    """

    files: list[Path]
    made: int
    given: int
    invented: int
    captions: int
    parameters: int


def record(
    reference: Reference,
    clips: Sequence[np.ndarray] | None,
    captions: Sequence[str] | None,
    folder: Path,
) -> Recorded:
    """Runs the JAX model on synthetic clips and on those given.

    Args:
      reference: the JAX model.
      clips: int16 [S] each, at the model's sample rate; only the first window is taken. None: the
        synthetic ones alone.
      captions: None or none: `SENTENCES` alone.
      folder: for the outputs: caption logits [B, L, V] of all batches would be more than the model.
    """
    given = [clip[: reference.samples] for clip in clips or ()]
    frontend = reference.frontend
    shortest = frontend.hop_length if frontend.repeat_to_samples else 1
    made = synthetic_clips(frontend.sample_rate, reference.samples, shortest)
    made = made[:ROWS] if len(given) > 1 else made
    told = list(dict.fromkeys(captions or ()))
    invented = SENTENCES[:ROWS] if len(told) > 1 else SENTENCES
    files: list[Path] = []
    todo = list(batches([*made, *given], [*invented, *told]))
    for some_clips, some_texts in tqdm(todo, "running in JAX", delay=2, leave=False):
        files.append(folder / f"{len(files)}.npz")
        outputs = reference.outputs(some_clips, some_texts, greedy=len(files) == 1)
        np.savez(files[-1], allow_pickle=False, **outputs)
    return Recorded(
        files=files,
        made=len(made),
        given=len(given),
        invented=len(invented),
        captions=len(invented) + len(told) if reference.tokenizer is not None else 0,
        parameters=sum(np.size(leaf) for leaf in jax.tree.leaves(reference.params)),
    )


def check(compare: Compare, recorded: Recorded) -> tuple[ParityReport, dict[str, np.ndarray]]:
    """Compares an export with what JAX gave.

    Args:
      compare: computes the relative difference of what the exported model gives, by output, from
        `Reference.outputs`.
      recorded: of the JAX model.

    Returns:
      The report, and the first batch's inputs and outputs: golden.npz.

    Raises:
      UserError: an output is not finite or differs by more than `TOLERANCE`, or the embeddings have
        collapsed.
    """
    worst: dict[str, float] = {}
    on_given: dict[str, float] = {}
    golden: dict[str, np.ndarray] = {}
    audio_rows: list[np.ndarray] = []
    text_rows: list[np.ndarray] = []
    for number, file in enumerate(tqdm(recorded.files, "comparing", delay=2, leave=False)):
        with np.load(file) as stored:
            wanted = dict(stored)
        golden = golden or wanted
        for name, difference in compare(wanted).items():
            worst[name] = float(np.maximum(difference, worst.get(name, 0.0)))  # NaN stays
            if recorded.given and number * ROWS >= recorded.made:
                on_given[name] = float(np.maximum(difference, on_given.get(name, 0.0)))
        audio_rows += list(wanted["audio_embedding"])
        text_rows += list(wanted.get("text_embedding", ()))
    finite = all(np.isfinite(row).all() for row in (*audio_rows, *text_rows))
    if not finite:
        raise UserError(
            "the JAX model's embeddings are not finite: training has diverged. Look at train/loss "
            "in metrics.jsonl, lower optim.lr or set optim.clip_norm=1, and train again"
        )
    for name, difference in worst.items():
        limit = LOG_MEL_TOLERANCE if name == "log_mel" else TOLERANCE
        if not difference <= limit:
            raise UserError(
                f"the exported model's {name} differs from JAX by {difference:.1e} "
                f"relative, more than {limit:.0e}: nothing was written. A file was damaged on "
                "its way to disk, or the modelling file does not know something in this config; "
                "export again, and report it with the workdir's config.json if it stays"
            )
    clips = recorded.made + recorded.given
    if recorded.captions:
        # Judged on what the model was made for, where there is enough of it.
        first_clip = recorded.made if recorded.given > 1 else 0
        first_text = recorded.invented if recorded.captions > recorded.invented + 1 else 0
        _refuse_collapsed("audio", audio_rows[first_clip:clips], "clips")
        _refuse_collapsed("text", text_rows[first_text : recorded.captions], "captions")
    return (
        ParityReport(
            differences=worst,
            clips=clips,
            captions=recorded.captions,
            real=bool(recorded.given),
            parameters=recorded.parameters,
            on_given=on_given,
        ),
        golden,
    )


def mean_cosine(rows: Sequence[np.ndarray]) -> float:
    """Mean cosine between different rows [n, J] of norm 1; 0 for a single row."""
    n = len(rows)
    if n < 2:
        return 0.0
    table = np.asarray(rows, np.float64)
    total = table.sum(axis=0)
    return float((total @ total - np.sum(table**2)) / (n * (n - 1)))


def _refuse_collapsed(side: str, rows: Sequence[np.ndarray], what: str) -> None:
    cosine = mean_cosine(rows)
    if cosine > COLLAPSED:
        raise UserError(
            f"the {side} embeddings of {len(rows)} different {what} are all alike (mean cosine "
            f"{cosine:.4f}, more than {COLLAPSED}): the model has collapsed or was hardly trained, "
            "and its export would tell nothing apart. Compare train/contrastive_loss with "
            "train/contrastive_chance in metrics.jsonl; train for more steps, with a lower "
            "optim.lr, a longer optim.warmup_steps or a larger data.batch_size"
        )
