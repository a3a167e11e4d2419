"""tokenizer.model (sentencepiece) as a transformers tokenizer: [bos] pieces [eos]."""

from __future__ import annotations

import os
import shutil
from typing import Any

import sentencepiece
from transformers import PreTrainedTokenizer


class AlmTokenizer(PreTrainedTokenizer):
    """The tokenizer that the model was trained with."""

    vocab_files_names = {"vocab_file": "tokenizer.model"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any):
        self.vocab_file = vocab_file
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=vocab_file)
        marks = {"pad": 0, "bos": 1, "eos": 2, "unk": 3}
        for name, piece in marks.items():
            kwargs[f"{name}_token"] = self.pieces.IdToPiece(piece)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.pieces.GetPieceSize()

    def get_vocab(self) -> dict[str, int]:
        """Piece -> id."""
        return {self.pieces.IdToPiece(i): i for i in range(self.vocab_size)}

    def tokenize(
        self, text: str, pair: str | None = None, add_special_tokens: bool = False, **kwargs: Any
    ) -> list[str]:
        """Pieces of a text; nothing in it is a mark, whatever it looks like."""
        return self._tokenize(text.encode("utf-8", "replace").decode("utf-8"))

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self.pieces.IdToPiece(i) for i in self.pieces.EncodeAsIds(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.PieceToId(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self.pieces.IdToPiece(index)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces."""
        return self.pieces.DecodePieces(tokens)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """[bos] pieces [eos]."""
        return [self.bos_token_id, *token_ids_0, *(token_ids_1 or []), self.eos_token_id]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """Bos and eos."""
        return 2

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Copies tokenizer.model."""
        name = f"{filename_prefix}-" if filename_prefix else ""
        target = os.path.join(save_directory, f"{name}tokenizer.model")
        if os.path.abspath(self.vocab_file) != os.path.abspath(target):
            shutil.copyfile(self.vocab_file, target)
        return (target,)
