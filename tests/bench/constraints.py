"""What a constraint costs for each token, at a vocabulary of 150,000.

    python -m tests.bench.constraints

Answers are random walks through what is allowed, the way a model without sense would write them;
the time is that of the mask and of telling the constraint what was chosen, on one thread. No model
is run.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from cortex_core.wire.ipc import CallForm, Calls, Constraint, Grammar
from neuron.worker import llama
from neuron.worker.grammar import Grammars, Guide
from neuron.worker.vocabulary import Vocabulary
from tools.make_gguf import ModelShape, make_gguf

VOCABULARY = 151_936
TOKENS = 1500
SAMPLED = 40  # top_k: how many of the likeliest a constraint has to be right about

DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["calm", "cross", "curious"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 24}},
        "born": {"type": "string", "format": "date"},
    },
    "required": ["name", "age", "mood", "tags", "born"],
    "additionalProperties": False,
}
MANY = {
    "type": "object",
    "properties": {f"field_{n}": {"type": "string"} for n in range(60)},
    "additionalProperties": False,
}
JSON_GBNF = r"""
root ::= object
value ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" ["\\bfnrt])* "\"" ws
number ::= "-"? [0-9]{1,15} ("." [0-9]{1,15})? ws
ws ::= " "?
"""

CASES: dict[str, Constraint] = {
    "json_schema: a person": Grammar("json_schema", json.dumps(PERSON), "schema"),
    "json_schema: any object": Grammar("json_schema", '{"type": "object"}', "schema"),
    "json_schema: 60 properties": Grammar("json_schema", json.dumps(MANY), "schema"),
    "regex: words": Grammar("regex", r"([A-Z][a-z]+ ){1,2000}", "regex"),
    "calls in text": Calls(
        tuple(
            CallForm(f'\n{{"name": "tool_{n}", "arguments": ', json.dumps(PERSON), "}", "tools")
            for n in range(8)
        ),
        "<tool_call>",
        "\n</tool_call>",
        "\n",
    ),
    "gbnf: sums": Grammar("gbnf", 'root ::= ([0-9]+ [+*-])+ "0"', "grammar"),
    "gbnf: JSON": Grammar("gbnf", JSON_GBNF, "grammar"),
}


def walk(
    guide: Guide, logits: np.ndarray, ends: np.ndarray, rng: np.random.Generator
) -> list[float]:
    """Milliseconds for each token."""
    times: list[float] = []
    for _ in range(TOKENS):
        row = np.roll(logits, int(rng.integers(len(logits))))
        began = time.perf_counter()
        guide.restrict(row, SAMPLED)
        spent = time.perf_counter() - began
        row[ends] = -np.inf
        allowed = np.flatnonzero(row > -np.inf)
        if not len(allowed):
            break
        token = int(allowed[row[allowed].argmax()])
        began = time.perf_counter()
        guide.accept(token)
        times.append(1000 * (spent + time.perf_counter() - began))
        if guide.is_complete:
            break
    return times


def main() -> None:
    llama.start()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "wide.gguf")
        shape = ModelShape(layers=1, width=32, heads=1, kv_heads=1, ffn=32, vocab=VOCABULARY)
        make_gguf(path, shape, file_type="Q8_0", seed=1)
        model = llama.Model(path, Vocabulary(path), gpu_layers=0)
    rng = np.random.default_rng(1)
    logits = rng.normal(scale=3.0, size=VOCABULARY).astype(np.float32)
    ends = np.array(sorted(model.vocabulary.end_ids))
    grammars = Grammars(model)
    began = time.perf_counter()
    grammars.compile(Grammar("regex", "x", "regex"))
    print(f"vocabulary of {VOCABULARY:,}: {time.perf_counter() - began:.2f} s, once a model\n")
    print(f"{'':28}{'compile':>10}{'median':>10}{'p90':>10}{'p99':>10}{'tokens':>9}")
    for title, constraint in CASES.items():
        times: list[float] = []
        began = time.perf_counter()
        guide = grammars.compile(constraint)
        compiled = 1000 * (time.perf_counter() - began)
        while len(times) < TOKENS:
            times += walk(guide, logits, ends, rng)
            guide.free()
            guide = grammars.compile(constraint)
        cuts = statistics.quantiles(times, n=100)
        print(
            f"{title:28}{compiled:7.1f} ms{cuts[49]:7.3f} ms{cuts[89]:7.3f} ms{cuts[98]:7.3f} ms"
            f"{len(times):9}"
        )


if __name__ == "__main__":
    main()
