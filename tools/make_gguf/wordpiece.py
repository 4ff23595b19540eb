"""A made-up WordPiece vocabulary of any size, as BERT's files have them.

Lower case only: BERT's uncased tokenizers fold case and accents before they look anything up, so
text does not round-trip, here as there. What no piece covers is `[UNK]`.
"""

from __future__ import annotations

import random

import gguf

__all__ = ["add_wordpiece"]

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_KINDS = {"[UNK]": gguf.TokenType.UNKNOWN}  # the other special ones are control tokens
_CHARACTERS = (
    "abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    "中国日本語你好世界東京的はひらがな한국абвгдежзиклмнопрстуфхцчшя"
)
_LETTERS = "eeeeeetttttaaaaaooooiiiinnnnsssshhhrrrdddlllcuumwfgypbvkjxqz"
_WORD_START = "▁"  # llama.cpp's files mark what begins a word, not, as BERT's own, what continues
_LONGEST_PIECE = 6


def add_wordpiece(writer: gguf.GGUFWriter, size: int, seed: int) -> None:
    """`size` distinct tokens, the same for the same arguments."""
    pieces = dict.fromkeys(_WORD_START + character for character in _CHARACTERS)  # ordered set
    pieces |= dict.fromkeys(_CHARACTERS)
    rng = random.Random(seed)
    room = size - len(_SPECIAL)
    while len(pieces) < room:
        word = "".join(rng.choices(_LETTERS, k=rng.randint(2, _LONGEST_PIECE)))
        pieces[_WORD_START + word if rng.random() < 0.5 else word] = None
    tokens = [*_SPECIAL, *list(pieces)[:room]]
    kinds = [_KINDS.get(token, gguf.TokenType.CONTROL) for token in _SPECIAL]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(tokens) - len(kinds)))
    writer.add_token_type_count(2)
    writer.add_pad_token_id(tokens.index("[PAD]"))
    writer.add_unk_token_id(tokens.index("[UNK]"))
    writer.add_bos_token_id(tokens.index("[CLS]"))
    writer.add_sep_token_id(tokens.index("[SEP]"))
    writer.add_mask_token_id(tokens.index("[MASK]"))
