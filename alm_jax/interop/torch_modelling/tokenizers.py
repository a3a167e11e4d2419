"""Text <-> token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Tokenizer:
    """[bos] pieces [eos], padded; what the two kinds of tokenizer share."""

    pad, bos, eos, unk = 0, 1, 2, 3

    def pieces(self, text: str) -> list[int]:
        """Ids of a text without marks."""
        raise NotImplementedError

    def text(self, ids: list[int]) -> str:
        """Text of ids."""
        raise NotImplementedError

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """Ids [B, L] and mask [B, L]; a text that is too long loses pieces, never its eos."""
        valid = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        rows = [[self.bos, *self.pieces(t)[: max_length - 2], self.eos] for t in valid]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(longest) < lengths[:, None]

    def decode(self, ids: Sequence[int]) -> str:
        """Text up to the first eos."""
        ids = list(ids)
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        ids = [i for i in ids if i not in (self.pad, self.bos)]
        return self.text(ids) if ids else ""


class SentencePieces(Tokenizer):
    """tokenizer.model."""

    def __init__(self, folder: Path):
        import sentencepiece  # only text needs it

        path = str(folder / "tokenizer.model")
        self.processor = sentencepiece.SentencePieceProcessor(model_file=path)

    def pieces(self, text: str) -> list[int]:
        """Ids of a text without marks."""
        return self.processor.EncodeAsIds(text)

    def text(self, ids: list[int]) -> str:
        """Text of ids."""
        size = self.processor.GetPieceSize()
        return self.processor.DecodeIds([i if i < size else self.unk for i in ids])


class JsonPieces(Tokenizer):
    """tokenizer.json (RoBERTa's BPE, BERT's pieces)."""

    def __init__(self, folder: Path):
        import tokenizers  # only text needs it

        self.processor = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.processor.no_padding()
        self.processor.no_truncation()
        self.pad, self.bos = self.special("<pad>", "[PAD]"), self.special("<s>", "[CLS]")
        self.eos, self.unk = self.special("</s>", "[SEP]"), self.special("<unk>", "[UNK]")

    def special(self, *names: str) -> int:
        """Id of a mark by RoBERTa's or BERT's name."""
        found = (self.processor.token_to_id(name) for name in names)
        return next(i for i in found if i is not None)

    def pieces(self, text: str) -> list[int]:
        """Ids of a text without marks."""
        return self.processor.encode(text, add_special_tokens=False).ids

    def text(self, ids: list[int]) -> str:
        """Text of ids."""
        size = self.processor.get_vocab_size(with_added_tokens=True)
        known = [i if i < size else self.unk for i in ids]
        return self.processor.decode(known, skip_special_tokens=True)


TOKENIZERS: dict[str, Any] = {"sentencepiece": SentencePieces, "json": JsonPieces}
