"""A query and a document as the one text that a reranking model reads."""

from __future__ import annotations

import re

import numpy as np

from neuron.worker.codec import Codec
from neuron.worker.llama import Int32s

__all__ = ["PairEncoder"]

_PLACES = re.compile(r"\{(query|document)\}")


class PairEncoder:
    """For one query. `template`: the GGUF's own, with the places `{query}` and `{document}`; ""
    where it has none, and the two are put together as cross-encoders are trained: each at its end,
    and between them, what the vocabulary ends and separates texts with."""

    def __init__(self, codec: Codec, template: str, query: str) -> None:
        self._codec = codec
        self._template = template
        self._query = query
        end = codec.eos if codec.eos >= 0 else codec.sep
        ends = [end] if codec.adds_eos else []
        separators = [codec.sep] if codec.adds_sep else []
        if not template:
            start = [codec.bos] if codec.adds_bos else []
            self._head = _joined(start, self._bare(query), ends, separators)
            # BERT's separator is its end, too.
            self._tail = ends or separators

    def encode(self, document: str) -> Int32s:
        if self._template:
            values = {"query": self._query, "document": document}
            # At once: a place that is written in the query is text, not a place.
            text = _PLACES.sub(lambda place: values[place[1]], self._template)
            return self._codec.tokenize(text, add_special=False, parse_special=True)
        return _joined(self._head, self._bare(document), self._tail)

    def _bare(self, text: str) -> Int32s:
        return self._codec.tokenize(text, add_special=False, parse_special=False)


def _joined(*parts: list[int] | Int32s) -> Int32s:
    return np.concatenate([np.asarray(part, np.int32) for part in parts])
