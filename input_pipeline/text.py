"""Captions to token ids and back: a sentencepiece model with byte fallback.

One file (`tokenizer.model`) holds the whole tokenizer, normalisation included, so the copy beside a
checkpoint is all that evaluation and export need. With byte fallback no caption is ever unknown:
a script that the training captions never showed is spelt in UTF-8 bytes.
"""

import functools
import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import sentencepiece
from absl import logging
from etils import epath

from alm_jax.errors import UserError

PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
FILE_NAME = "tokenizer.model"

ModelType = Literal["unigram", "bpe"]
Normalization = Literal["identity", "nfkc", "nmt_nfkc"]
# (normalization, lower_case) -> the rule's name in sentencepiece.
_RULES = {
    ("identity", False): "identity",
    ("nfkc", False): "nfkc",
    ("nfkc", True): "nfkc_cf",
    ("nmt_nfkc", False): "nmt_nfkc",
    ("nmt_nfkc", True): "nmt_nfkc_cf",
}
# Candidates among which subword sampling draws. Kudo 2018 uses 64 or the whole lattice; captions
# are short, and the time grows with the number (16: about 0.1 ms a caption).
_SAMPLE_CANDIDATES = 16


class Tokenizer:
    """A sentencepiece model whose ids are pad 0, bos 1, eos 2, unk 3, then bytes and pieces.

    Safe to share between threads; pickles to its serialised model (worker processes). An imported
    model keeps the tokenizer it came with: `input_pipeline.json_tokenizer`, which has other ids.
    """

    pad_id, bos_id, eos_id, unk_id = PAD_ID, BOS_ID, EOS_ID, UNK_ID

    def __init__(self, model_proto: bytes, *, origin: str = "the serialised model") -> None:
        """Builds the tokenizer.

        Args:
          model_proto: a serialised sentencepiece model.
          origin: where it came from, for error messages.

        Raises:
          UserError: it is no sentencepiece model, or its special ids are not 0, 1, 2, 3.
        """
        self.model_proto = model_proto
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            if not model_proto:
                raise RuntimeError("0 bytes")
            self._processor.LoadFromSerializedProto(model_proto)
        except RuntimeError as error:
            raise UserError(
                f"{origin} is not a readable sentencepiece model ({len(model_proto)} bytes:"
                f" {error}); copy it again, or train the tokenizer anew"
            ) from error
        names = ("pad", "bos", "eos", "unk")
        found = [getattr(self._processor, f"{name}_id")() for name in names]
        if found != [PAD_ID, BOS_ID, EOS_ID, UNK_ID]:
            raise UserError(
                f"{origin} has the special ids {dict(zip(names, found, strict=True))}; needed are"
                " pad 0, bos 1, eos 2, unk 3 (train it with input_pipeline.text.Tokenizer.train)"
            )

    @classmethod
    def train(
        cls,
        captions: Iterable[str],
        vocab_size: int,
        *,
        model_type: ModelType = "unigram",
        character_coverage: float = 0.9995,
        byte_fallback: bool = True,
        normalization: Normalization = "nmt_nfkc",
        lower_case: bool = False,
        num_threads: int = 1,
    ) -> "Tokenizer":
        """Trains a tokenizer in memory, quietly; the same captions give the same bytes.

        Args:
          captions: the training split's captions, repeats included (they weigh the pieces). Empty
            ones are skipped.
          vocab_size: number of ids wanted, the 4 special ones and the 256 bytes included. Where the
            captions support fewer, the tokenizer is smaller and a warning says by how much: size
            the embedding table by `vocab_size` of the result.
          model_type: `unigram` (Kudo 2018; the only one that can sample segmentations) or `bpe`.
          character_coverage: share of the captions' characters that get a piece of their own; the
            rare rest is spelt in bytes. 1.0 for a few alphabets, 0.9995 where CJK is among them.
          byte_fallback: spell what no piece covers in bytes; without it such text becomes unk.
          normalization: `nmt_nfkc` makes composed and decomposed accents, full-width letters,
            ligatures, tabs, line ends and zero-width characters alike, so that a query typed on
            another keyboard meets the training caption (its price: the zero-width joints of
            Persian and Indic scripts become spaces); `nfkc` leaves white space and the joints
            alone; `identity` changes nothing.
          lower_case: case-fold as well (`nfkc` and `nmt_nfkc` only), decoded text included.
          num_threads: of sentencepiece. The result depends on it in the last digits of the scores:
            leave it at 1 unless the captions are millions.

        Returns:
          The tokenizer.

        Raises:
          UserError: no captions, or a vocabulary too small for the bytes and characters needed.
        """
        if model_type not in ("unigram", "bpe"):
            raise UserError(f"tokenizer model_type={model_type!r}: choose 'unigram' or 'bpe'")
        rule = _RULES.get((normalization, lower_case))
        if rule is None:
            raise UserError(
                f"tokenizer normalization={normalization!r} with lower_case={lower_case}: choose"
                " 'identity' (keeps case), 'nfkc' or 'nmt_nfkc'"
            )
        sentences = [_valid_utf8(caption) for caption in captions if caption.strip()]
        if not sentences:
            raise UserError(
                "there is no caption to train the tokenizer on: the split is empty or all of its"
                " captions are; look at prepare_report.json beside the dataset"
            )
        longest = max(len(sentence.encode()) for sentence in sentences)
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter(sentences),
                model_writer=model,
                model_type=model_type,
                vocab_size=vocab_size,
                # The size is an upper limit, checked and reported below, not a condition.
                hard_vocab_limit=False,
                character_coverage=character_coverage,
                byte_fallback=byte_fallback,
                normalization_rule_name=rule,
                # Otherwise captions beyond 4,192 bytes would be left out.
                max_sentence_length=max(4192, longest),
                pad_id=PAD_ID,
                bos_id=BOS_ID,
                eos_id=EOS_ID,
                unk_id=UNK_ID,
                num_threads=num_threads,
                minloglevel=2,
            )
        except RuntimeError as error:
            needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
            if needed is None:
                raise UserError(
                    f"sentencepiece cannot train on these {len(sentences)} captions: {error}"
                ) from error
            raise UserError(
                f"tokenizer.vocab_size={vocab_size} is too small: 4 special ids, the bytes and the"
                f" characters of the captions need {needed.group(1)}; raise it, or lower"
                f" tokenizer.character_coverage={character_coverage}"
            ) from error
        tokenizer = cls(model.getvalue(), origin="the newly trained model")
        if tokenizer.vocab_size < vocab_size:
            logging.warning(
                "tokenizer: %d captions support a vocabulary of %d, not the %d asked for",
                len(sentences),
                tokenizer.vocab_size,
                vocab_size,
            )
        return tokenizer

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Tokenizer":
        """Reads a model written by `save` (a local path or any that `etils.epath` knows).

        Raises:
          UserError: there is no such file, or it is not a tokenizer of ours.
        """
        file = epath.Path(path)
        try:
            model_proto = file.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise UserError(
                f"no tokenizer at {os.fspath(path)}: give the path of a {FILE_NAME} (training"
                " leaves one in its workdir, export in the exported folder)"
            ) from error
        return cls.parse(model_proto, origin=os.fspath(path))

    @classmethod
    def parse(cls, model_proto: bytes, *, origin: str = "the serialised model") -> "Tokenizer":
        """The tokenizer of what `save` wrote, of either kind; errors as `load`."""
        if model_proto[:1] == b"{":
            from input_pipeline.json_tokenizer import JsonTokenizer

            return JsonTokenizer(model_proto, origin=origin)
        return cls(model_proto, origin=origin)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to `path`; a reader never sees half a file."""
        file = epath.Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        # The process id keeps two hosts that write the same file from mixing their bytes.
        part = file.parent / f".{file.name}.{os.getpid()}.part"
        part.write_bytes(self.model_proto)
        part.replace(file)

    @property
    def vocab_size(self) -> int:
        """Number of ids; the embedding table has at least that many rows."""
        return int(self._processor.GetPieceSize())

    @property
    def fingerprint(self) -> str:
        """Hash of the model, 16 hexadecimal digits: equal means the same ids for every caption."""
        return hashlib.sha256(self.model_proto).hexdigest()[:16]

    def encode(
        self,
        caption: str,
        max_length: int,
        *,
        sample_alpha: float = 0.0,
        seed: int | np.random.Generator | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes one caption as [bos] pieces [eos], zero padded.

        Args:
          caption: any text. An empty one gives [bos] [eos]; too long a one loses its last pieces,
            never its eos.
          max_length: L.
          sample_alpha: 0 takes the best segmentation. Above, one of the 16 best is drawn with
            probability proportional to its likelihood to this power (subword regularisation, Kudo
            2018, section 3.2; 0.1 is nearly even, 1 follows the model): training augmentation.
          seed: for the draw; the same seed gives the same segmentation, on any thread or host.

        Returns:
          ids int32 [L] and mask bool [L], True on bos, pieces and eos.

        Raises:
          ValueError: `max_length` below 2, or `sample_alpha` without a seed.
          UserError: `sample_alpha` with a BPE model.
        """
        ids = np.full(_checked_length(max_length), self.pad_id, np.int32)
        length = self._fill(ids, self._pieces(caption, sample_alpha, seed))
        return ids, np.arange(max_length) < length

    def encode_batch(
        self, captions: Sequence[str], max_length: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encodes without sampling: ids int32 [B, L] and mask bool [B, L] (see `encode`)."""
        shape = (len(captions), _checked_length(max_length))
        ids = np.full(shape, self.pad_id, np.int32)
        lengths = [
            self._fill(row, self._pieces(caption, 0.0, None))
            for row, caption in zip(ids, captions, strict=True)
        ]
        return ids, np.arange(max_length) < np.asarray(lengths, np.int32).reshape(-1, 1)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of `ids` [L] up to the first eos; pad and bos are left out.

        An id beyond the vocabulary (an embedding table is often padded) reads as unknown, and the
        bytes of a character that was cut in two as the replacement character.
        """
        pieces = []
        for piece in np.asarray(ids).tolist():
            if piece == self.eos_id:
                break
            if piece not in (self.pad_id, self.bos_id):
                pieces.append(piece if 0 <= piece < self.vocab_size else self.unk_id)
        return self._text(pieces) if pieces else ""

    def _text(self, pieces: list[int]) -> str:
        return str(self._processor.DecodeIds(pieces))

    def _pieces(
        self, caption: str, sample_alpha: float, seed: int | np.random.Generator | None
    ) -> list[int]:
        caption = _valid_utf8(caption)
        if not sample_alpha:
            return self._processor.EncodeAsIds(caption)
        if seed is None:
            raise ValueError("encode(sample_alpha=...) needs a seed: the draw must be repeatable")
        # sentencepiece's own sampler draws from one generator for the whole process, which is
        # neither repeatable per example nor across threads; its n-best list is a pure function.
        try:
            candidates = self._processor.NBestEncodeAsIds(caption, nbest_size=_SAMPLE_CANDIDATES)
        except RuntimeError:
            candidates = []
        if not candidates:
            best = self._processor.EncodeAsIds(caption)
            if best:  # sentencepiece up to 0.2.1 returns no alternatives where later ones raise
                raise UserError(
                    f"sample_alpha={sample_alpha} needs a unigram tokenizer, this one lists no"
                    " alternatives; set it to 0 or train with model_type='unigram'"
                )
            return best
        log_likelihood = np.asarray([self._scores[c].sum() for c in candidates])
        weights = np.exp(sample_alpha * (log_likelihood - log_likelihood.max()))
        draw = np.random.default_rng(seed).random() * weights.sum()
        chosen = int(np.searchsorted(np.cumsum(weights), draw, side="right"))
        return candidates[min(chosen, len(candidates) - 1)]

    @functools.cached_property
    def _scores(self) -> np.ndarray:
        return np.asarray([self._processor.GetScore(i) for i in range(self.vocab_size)])

    def _fill(self, row: np.ndarray, pieces: list[int]) -> int:
        """Writes bos, pieces, eos into `row` [L] and returns how many ids that makes."""
        pieces = pieces[: len(row) - 2]
        row[0] = self.bos_id
        row[1 : len(pieces) + 1] = pieces
        row[len(pieces) + 1] = self.eos_id
        return len(pieces) + 2

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.model_proto,))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.model_proto == other.model_proto

    def __hash__(self) -> int:
        return hash(self.model_proto)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(vocab_size={self.vocab_size}, fingerprint={self.fingerprint})"
        )


def _checked_length(max_length: int) -> int:
    if max_length < 2:
        raise ValueError(f"max_length={max_length}: bos and eos alone need 2")
    return max_length


def _valid_utf8(text: str) -> str:
    """Replaces lone surrogates, which no UTF-8 holds (file names and broken JSON bring them)."""
    return text.encode("utf-8", "replace").decode("utf-8")
