"""Checkpoint to GGUF: ``python -m tools.tiny.export --run FOLDER --gguf FILE``.

Matrices become Q8_0, norms stay F32. The metadata carries the tokenizer and the chat template,
so the one file is all that a runtime needs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from tools.tiny.corpus import TEMPLATE
from tools.tiny.model import Shape
from tools.tiny.tokenizer import CONTROL, MARKERS, Vocabulary

CONTEXT = 8192
BLOCK_TENSORS = {
    "attn_norm": "attn_norm",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.out": "attn_output",
    "attn.q_norm": "attn_q_norm",
    "attn.k_norm": "attn_k_norm",
    "ffn_norm": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


def tensor_name(name: str) -> str:
    """llama.cpp's name for one of our parameters; raises KeyError for an unknown one."""
    parts = name.removesuffix(".weight").split(".", 2)
    if parts[0] == "blocks":
        return f"blk.{parts[1]}.{BLOCK_TENSORS[parts[2]]}.weight"
    return {"embed": "token_embd.weight", "norm": "output_norm.weight"}[parts[0]]


def write_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_width)
    writer.add_value_length(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.norm_eps)


def write_tokenizer(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    types = [gguf.TokenType.NORMAL] * len(ids)
    for token in CONTROL:
        types[ids[token]] = gguf.TokenType.CONTROL
    # User-defined, as in Qwen3: parsed from text, and visible when detokenised.
    for token in MARKERS:
        types[ids[token]] = gguf.TokenType.USER_DEFINED
    for token, index in ids.items():
        if token.startswith("<unused"):
            types[index] = gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges])
    writer.add_bos_token_id(ids["<|endoftext|>"])
    writer.add_eos_token_id(ids["<|im_end|>"])
    writer.add_eot_token_id(ids["<|im_end|>"])
    writer.add_pad_token_id(ids["<|endoftext|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE.read_text(encoding="utf-8"))


def write_general(writer: gguf.GGUFWriter) -> None:
    writer.add_name("cortex tiny")
    writer.add_description("A tiny model trained from scratch for tests and demonstrations.")
    writer.add_license("GPL-3.0")
    writer.add_languages(["en"])
    writer.add_tags(["text-generation", "tool-calling", "test"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    # The skills are facts and copies: sampling only adds mistakes.
    writer.add_sampling_temp(0.0)


def export(checkpoint: dict[str, Any], vocabulary: Vocabulary, path: Path) -> None:
    """Write the GGUF whole or not at all."""
    partial = path.with_suffix(".partial")
    shape = Shape(**checkpoint["shape"])
    writer = gguf.GGUFWriter(partial, "qwen3")
    write_general(writer)
    write_shape(writer, shape)
    write_tokenizer(writer, vocabulary)
    for name, weight in checkpoint["weights"].items():
        array = weight.detach().float().numpy().astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0 if array.ndim == 2 else None
        if kind is not None:
            array = gguf.quants.quantize(array, kind)
        writer.add_tensor(tensor_name(name), array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder that train wrote")
    parser.add_argument("--gguf", type=Path, required=True, help="file to write")
    arguments = parser.parse_args()
    checkpoint = torch.load(arguments.run / "model.pt", weights_only=True)
    vocabulary = Vocabulary.load(arguments.run / "vocab.json")
    export(checkpoint, vocabulary, arguments.gguf)
    print(f"{arguments.gguf}: {arguments.gguf.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
