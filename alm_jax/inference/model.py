"""A trained model in Python: `model = alm_jax.load(DIR)`, then embeddings and captions.

    model = alm_jax.load("runs/quickstart/clap")
    audio = model.embed_audio(["dog.wav", "rain.flac"])   # float32 [2, d], rows of norm 1
    text = model.embed_text(["a dog barks", "rain"])      # float32 [2, d]
    similarity = audio @ text.T                           # cosine, [2, 2]
    model.caption("dog.wav")                              # ["a dog barks"]

DIR is the workdir of a run or a folder that `alm export` wrote. Shapes: n clips, m strings,
d embedding width, B batch, S samples, N patches.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from alm_jax.checkpoints import flat_names
from alm_jax.errors import UserError
from alm_jax.inference.clips import as_clips
from alm_jax.inference.decoding import Decoding
from alm_jax.inference.folder import check_fit, find_model
from alm_jax.inference.jitted import Inference
from alm_jax.inference.window_batches import ClipResult, bucket_sizes, each_clip
from alm_jax.interop.exported import read_model
from alm_jax.models.towers import tower_config
from alm_jax.train_state import model_graph
from input_pipeline.labels import CLASSES_NAME, read_classes
from input_pipeline.text import FILE_NAME, Tokenizer

log = logging.getLogger("alm_jax")


class Model:
    """A trained model. Make it with `alm_jax.load`; calls from several threads are safe."""

    def __init__(
        self,
        config: ConfigDict,
        params: Any,
        tokenizer: Tokenizer | None,
        origin: str,
        classes: Sequence[str] = (),
    ):
        """Checks that the parts fit together and puts the parameters on the default device.

        Args:
          config: the run's config.
          params: nested dict of arrays.
          tokenizer: None if there is no text side, or none came with an imported model.
          origin: where it all came from, for messages.
          classes: names of the classifier's outputs, where they are known.

        Raises:
          UserError: the parameters are not those of the config.
        """
        self._config = config.copy_and_resolve_references()
        self._origin = origin
        self.classes = tuple(classes)
        self._tokenizer = tokenizer
        # An imported model may come without its tokenizer; it embeds audio all the same.
        rows = int(self._config.tokenizer.vocab_size) if self.has_text else 0
        graph, abstract = model_graph(self._config, tokenizer.vocab_size if tokenizer else rows)
        check_fit(nnx.to_pure_dict(abstract), params, origin)
        self._params = jax.device_put(params)
        self._inference = Inference(self._config, graph)

    def __repr__(self) -> str:
        return f"<alm_jax model {self._config.name!r} of {self._origin}, {self.embed_dim} wide>"

    def with_params(self, params: Any) -> Model:
        """A model of the same structure with other parameters, which shares what is compiled.

        Args:
          params: nested dict of arrays of the same shapes.
        """
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other._params = params
        return other

    @property
    def config(self) -> ConfigDict:
        """A copy of the run's config."""
        return self._config.copy_and_resolve_references()

    @property
    def sample_rate(self) -> int:
        """Hz that clips are resampled to."""
        return int(self._config.data.sample_rate)

    @property
    def max_seconds(self) -> float:
        """Seconds of a window; longer clips are cut into several (see `embed_audio`)."""
        return float(self._config.data.max_seconds)

    @property
    def embed_dim(self) -> int:
        """Width d of the embeddings."""
        model = self._config.model
        return int(model.embed_dim if self.has_text else tower_config(self._config).width)

    @property
    def max_text_tokens(self) -> int:
        """Tokens of a string that are read, its beginning and end marks included."""
        return int(self._config.data.max_text_length)

    @property
    def has_text(self) -> bool:
        """Whether `embed_text` works; not so for a masked autoencoder (stage 1)."""
        return self._config.model.text is not None

    @property
    def has_captions(self) -> bool:
        """Whether `caption` works: the model was trained with a caption decoder."""
        return self.has_text and self._config.model.caption_decoder is not None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash, 16 hexadecimal digits, of all that an embedding depends on."""
        digest = hashlib.sha256()
        parts = ("data", "frontend", "patches", "model")
        shown = {part: self._config[part].to_dict() for part in parts}
        # Where the data lay and how it was batched changes no embedding.
        kept = ("sample_rate", "max_seconds", "max_text_length")
        shown["data"] = {name: shown["data"][name] for name in kept}
        digest.update(json.dumps(shown, sort_keys=True).encode())
        if self._tokenizer is not None:
            digest.update(self._tokenizer.model_proto)
        for name, leaf in sorted(flat_names(self._params).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def embed_audio(
        self,
        clips: Any,
        sample_rate: float | None = None,
        *,
        batch_size: int = 16,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> np.ndarray:
        """Embeds audio of any length.

        A clip longer than `max_seconds` is cut into consecutive windows of that length; its
        embedding is the mean of theirs, weighted by their durations and normalised again. A last
        window shorter than a tenth of `max_seconds` is left out. An embedding does not depend on
        the other clips or on padding. A masked autoencoder (stage 1) has no joint space: its
        embedding is the mean of the encoder's last states over the patches, normalised.

        Args:
          clips: a path or an array, or a list of them. Files: whatever libsndfile reads, of any
            sample rate and number of channels. Arrays: [samples] or [samples, channels], float
            with full scale 1.0, or int16.
          sample_rate: of the arrays, in Hz; files know their own.
          batch_size: windows that the model takes at a time.
          on_error: "raise" the first `AudioError`, or "skip": log it and leave a row of NaN.

        Returns:
          float32 [n, d], rows of norm 1 in the order of `clips`.

        Raises:
          AudioError: a clip cannot be read, is empty, or holds NaN or infinite samples.
          UserError: an argument is of no use; arrays without a sample rate.
        """
        if on_error not in ("raise", "skip"):
            raise UserError(f"on_error={on_error!r}: choose 'raise' or 'skip'")
        clips = as_clips(clips)
        rows = np.full((len(clips), self.embed_dim), np.nan, np.float32)
        for result in self.embed_audio_each(clips, sample_rate, batch_size=batch_size):
            if result.value is not None:
                rows[result.index] = result.value
            elif on_error == "raise" and result.error is not None:
                raise result.error
            else:
                log.warning("skipped: %s", result.error)
        return rows

    def embed_audio_each(
        self, clips: Any, sample_rate: float | None = None, *, batch_size: int = 16
    ) -> Iterator[ClipResult[np.ndarray]]:
        """Like `embed_audio`, but yields each clip's result once it is known, bad clips included.

        The order is that of completion: clips of like length share a batch.
        """
        embed = self._inference.embed_audio
        for result in self._each(clips, sample_rate, batch_size, embed):
            if result.value is None:
                yield dataclasses.replace(result, value=None)
                continue
            total = sum(samples * row.astype(np.float64) for samples, row in result.value)
            norm = float(np.linalg.norm(total))
            if not np.isfinite(norm) or norm == 0.0:
                raise FloatingPointError(
                    f"{self._origin} gives no finite embedding of clip {result.index}: its"
                    " parameters hold NaN or infinite values, or training has diverged"
                )
            yield dataclasses.replace(result, value=(total / norm).astype(np.float32))

    def class_logits(
        self, clips: Any, sample_rate: float | None = None, *, batch_size: int = 16
    ) -> np.ndarray:
        """What the classifier of a fine-tuned model says of clips; `classes` names the columns.

        Args:
          clips: as in `embed_audio`; the logits of a long clip are the mean of its windows',
            weighted by their durations.
          sample_rate: of the arrays, in Hz.
          batch_size: windows that the model takes at a time.

        Returns:
          float32 [n, Y]. Sigmoids of them are probabilities of a model trained with
          `objectives.classification.loss="binary"`, their softmax of one with "softmax".

        Raises:
          AudioError: as in `embed_audio`.
          UserError: as in `embed_audio`; or the model has no classifier.
        """
        clips = as_clips(clips)
        head = self._config.model.get("classifier")
        if head is None:
            raise UserError(f"{self._origin} has no config.model.classifier: fine-tune one first")
        rows = np.zeros((len(clips), int(head.classes)), np.float32)
        for result in self._each(clips, sample_rate, batch_size, self._inference.class_logits):
            if result.error is not None or result.value is None:
                raise result.error or FloatingPointError(f"no logits of clip {result.index}")
            samples = np.asarray([samples for samples, _ in result.value], np.float64)
            each = np.stack([row for _, row in result.value]).astype(np.float64)
            rows[result.index] = samples @ each / samples.sum()
        return rows

    def embed_text(self, strings: str | Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Embeds strings.

        Args:
          strings: one or several. An empty one has an embedding too (that of no words); of a long
            one the first `max_text_tokens` tokens count.
          batch_size: strings that the model takes at a time.

        Returns:
          float32 [m, d], rows of norm 1.

        Raises:
          UserError: not strings, or the model has no text side.
        """
        texts = [strings] if isinstance(strings, str) else list(strings)
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise UserError(f"embed_text takes strings, not {type(wrong).__name__} ({wrong!r:.50})")
        if self.has_text and self._tokenizer is None:
            raise UserError(
                f"{self._origin} has a text side but no {FILE_NAME}: import the checkpoint again"
                " with --tokenizer=PATH"
            )
        if self._tokenizer is None or not self.has_text:
            raise UserError(
                f"{self._origin} has no text side (it is a masked autoencoder, stage 1):"
                " give the workdir of a stage-2 run, or its export"
            )
        size = 1 if len(texts) == 1 else _positive("batch_size", batch_size)
        rows = np.zeros((len(texts), self.embed_dim), np.float32)
        for first in range(0, len(texts), size):
            part = texts[first : first + size]
            padded = part + [""] * (size - len(part))
            ids, mask = self._tokenizer.encode_batch(padded, self.max_text_tokens)
            result = self._inference.embed_text(self._params, ids, mask)
            rows[first : first + len(part)] = np.asarray(result)[: len(part)]
        return rows

    def is_cut(self, string: str) -> bool:
        """Whether `string` has more tokens than `embed_text` reads."""
        if self._tokenizer is None:
            return False
        _, mask = self._tokenizer.encode(string, self.max_text_tokens + 1)
        return bool(mask.all())

    def caption(
        self,
        clips: Any,
        sample_rate: float | None = None,
        *,
        max_length: int | None = None,
        decode: str | Decoding = "greedy",
        batch_size: int = 16,
    ) -> list[str]:
        """Describes audio in words.

        Args:
          clips: as in `embed_audio`; of a long clip the first `max_seconds` are described.
          sample_rate: of the arrays, in Hz.
          max_length: most tokens of a caption; `max_text_tokens` if None.
          decode: "greedy", "sample:temperature=0.8,top_p=0.9,seed=1", "beam:beams=4"; the fields
            are those of `alm_jax.inference.decoding.Decoding`.
          batch_size: clips that the model takes at a time.

        Returns:
          n captions in the order of `clips`.

        Raises:
          AudioError: as in `embed_audio`.
          UserError: as in `embed_audio`; or the model has no caption decoder.
        """
        clips = as_clips(clips)
        captions = [""] * len(clips)
        for result in self.caption_each(
            clips, sample_rate, max_length=max_length, decode=decode, batch_size=batch_size
        ):
            if result.error is not None:
                raise result.error
            captions[result.index] = result.value or ""
        return captions

    def caption_each(
        self,
        clips: Any,
        sample_rate: float | None = None,
        *,
        max_length: int | None = None,
        decode: str | Decoding = "greedy",
        batch_size: int = 16,
    ) -> Iterator[ClipResult[str]]:
        """Like `caption`, but yields each clip's result once it is known, bad clips included."""
        tokenizer = self._tokenizer
        if self.has_captions and tokenizer is None:
            raise UserError(
                f"{self._origin} has a caption decoder but no {FILE_NAME}: import the checkpoint"
                " again with --tokenizer=PATH"
            )
        if tokenizer is None or not self.has_captions:
            raise UserError(
                f"{self._origin} has no caption decoder: give a run that was trained with"
                " config.model.caption_decoder and the captioning objective, or its export"
            )
        how = Decoding.parse(decode) if isinstance(decode, str) else decode
        model = self._config.model
        limit = int(model.max_positions) - int(model.text.get("position_offset", 0))
        length = self.max_text_tokens if max_length is None else max_length
        if not 1 <= length <= limit:
            raise UserError(
                f"max_length={length}: must be 1 to {limit} tokens (model.max_positions)"
            )

        def forward(params: Any, audio: np.ndarray, audio_length: np.ndarray) -> jax.Array:
            ends = tokenizer.bos_id, tokenizer.eos_id, how.seed
            fixed = dataclasses.replace(how, seed=0)  # a seed is no reason to compile again
            return self._inference.caption(
                params, audio, audio_length, *ends, max_length=length, how=fixed
            )

        first_window = round(self.max_seconds * self.sample_rate)
        for result in self._each(clips, sample_rate, batch_size, forward, first_window):
            value = None
            if result.value is not None:
                # Byte fallback can spell control characters, which a line of text must not hold.
                text = tokenizer.decode(result.value[0][1])
                value = " ".join("".join(c if c.isprintable() else " " for c in text).split())
            yield dataclasses.replace(result, value=value)

    def _each(
        self,
        clips: Any,
        sample_rate: float | None,
        batch_size: int,
        forward: Callable[[Any, np.ndarray, np.ndarray], Any],
        max_samples: int | None = None,
    ) -> Iterator[ClipResult[Any]]:
        """Runs `forward(params, audio, length)` over the windows of clips, see `each_clip`."""
        rate = self.sample_rate
        return each_clip(
            as_clips(clips),
            functools.partial(forward, self._params),
            from_rate=sample_rate,
            to_rate=rate,
            sizes=bucket_sizes(self._config.eval.bucket_seconds, self.max_seconds, rate),
            rows=_positive("batch_size", batch_size),
            max_samples=max_samples,
        )


def load(folder: str | os.PathLike[str]) -> Model:
    """Loads a trained model.

    Args:
      folder: a run's workdir (`config.json`, `tokenizer.model`, `checkpoints/`), of which the last
        whole checkpoint is taken, or a folder that `alm export` wrote.

    Returns:
      The model on JAX's default device; float32 parameters.

    Raises:
      UserError: it is neither; a part is missing; or the parts do not fit together.
    """
    path = find_model(folder)
    config, params, tokenizer = read_model(path)
    classes = path / CLASSES_NAME
    names = read_classes(classes) if classes.is_file() else config.data.get("classes", ())
    return Model(config, params, tokenizer, str(path), names)


def _positive(name: str, value: int) -> int:
    if not value >= 1:
        raise UserError(f"{name}={value!r}: must be at least 1")
    return int(value)
