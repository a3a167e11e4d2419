"""The tokenizer of an imported model: Hugging Face's tokenizer.json (RoBERTa's BPE, BERT's pieces).

The file is kept as it is under the name that every tokenizer has in a workdir (`tokenizer.model`);
`Tokenizer.load` tells the kinds apart by their content.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from alm_jax.errors import UserError
from input_pipeline.text import Tokenizer, _valid_utf8

# Kind of id -> its names, RoBERTa's and BERT's.
_SPECIAL = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("<s>", "[CLS]"),
    "eos": ("</s>", "[SEP]"),
    "unk": ("<unk>", "[UNK]"),
}


class JsonTokenizer(Tokenizer):
    """A tokenizer.json with its own special ids: <s> pieces </s> (RoBERTa), [CLS] pieces [SEP]."""

    def __init__(self, model_proto: bytes, *, origin: str = "the tokenizer.json") -> None:
        """Builds the tokenizer.

        Args:
          model_proto: the content of a tokenizer.json.
          origin: where it came from, for error messages.

        Raises:
          UserError: it is no tokenizer.json, lacks a special token, or the package `tokenizers` is
            not installed.
        """
        self.model_proto = model_proto
        self._fast = _library().Tokenizer.from_str(_readable(model_proto, origin))
        self._fast.no_padding()
        self._fast.no_truncation()
        for kind, names in _SPECIAL.items():
            ids = (self._fast.token_to_id(name) for name in names)
            found = next((i for i in ids if i is not None), None)
            if found is None:
                raise UserError(f"{origin} has no token {' or '.join(names)}; it cannot be used")
            setattr(self, f"{kind}_id", int(found))

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return int(self._fast.get_vocab_size(with_added_tokens=True))

    def _pieces(
        self, caption: str, sample_alpha: float, seed: int | np.random.Generator | None
    ) -> list[int]:
        if sample_alpha:
            raise UserError(
                f"sample_alpha={sample_alpha} needs a unigram tokenizer, and an imported model's "
                "lists no alternatives; set data.text_sample_alpha=0"
            )
        return self._fast.encode(_valid_utf8(caption), add_special_tokens=False).ids

    def _text(self, pieces: list[int]) -> str:
        return str(self._fast.decode(pieces, skip_special_tokens=True))


def find_tokenizer(given: str | None, checkpoint: Path, rows: int) -> JsonTokenizer | None:
    """The tokenizer of a checkpoint that is being imported.

    Args:
      given: a tokenizer.json, or a folder with it, with vocab.json + merges.txt (RoBERTa), or with
        vocab.txt (BERT); None: the checkpoint's own folder, if it holds one.
      checkpoint: file or folder of the checkpoint.
      rows: rows of the text embedding.

    Returns:
      The tokenizer, or None where nothing was given and the checkpoint has none.

    Raises:
      UserError: what was given is no tokenizer, or has other ids than the embedding rows.
    """
    path = Path(given).expanduser() if given is not None else checkpoint
    content = None
    if path.is_dir():
        content = _from_folder(path)
    elif given is not None and path.is_file():
        content = path.read_bytes()
    if content is None:
        if given is None:
            return None
        raise UserError(
            f"--tokenizer={given}: there is no tokenizer.json, vocab.json with merges.txt, or "
            "vocab.txt; a model's folder on the Hugging Face hub has one"
        )
    tokenizer = JsonTokenizer(content, origin=str(path))
    if tokenizer.vocab_size != rows:
        raise UserError(
            f"{path} has {tokenizer.vocab_size} tokens, but the checkpoint's embedding has {rows} "
            "rows: it belongs to another model"
        )
    return tokenizer


def _from_folder(folder: Path) -> bytes | None:
    if (folder / "tokenizer.json").is_file():
        return (folder / "tokenizer.json").read_bytes()
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return _roberta(folder / "vocab.json", folder / "merges.txt")
    if (folder / "vocab.txt").is_file():
        lower = True
        if (folder / "tokenizer_config.json").is_file():
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            lower = bool(settings.get("do_lower_case", True))
        return _bert(folder / "vocab.txt", lower)
    return None


def _roberta(vocabulary: Path, merges: Path) -> bytes:
    """A byte-level BPE as RoBERTa uses it."""
    library = _library()
    model = library.models.BPE.from_file(os.fspath(vocabulary), os.fspath(merges))
    fast = library.Tokenizer(model)
    fast.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = library.decoders.ByteLevel()
    fast.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return fast.to_str().encode()


def _bert(vocabulary: Path, lower_case: bool) -> bytes:
    """WordPiece as BERT uses it."""
    library = _library()
    fast = library.Tokenizer(
        library.models.WordPiece.from_file(os.fspath(vocabulary), unk_token="[UNK]")
    )
    fast.normalizer = library.normalizers.BertNormalizer(lowercase=lower_case)
    fast.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    fast.decoder = library.decoders.WordPiece()
    fast.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return fast.to_str().encode()


def _readable(content: bytes, origin: str) -> str:
    try:
        text = content.decode("utf-8")
        _library().Tokenizer.from_str(text)
    except UserError:
        raise
    except Exception as error:  # the library raises plain exceptions
        raise UserError(f"{origin} is no tokenizer.json: {error}; copy it again") from error
    return text


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "the tokenizer of an imported model needs the package tokenizers: pip install "
            "'alm_jax[import]'"
        ) from None
    return tokenizers
