"""The network of cortex/tiny: Qwen3, written so that every tensor has a twin in llama.cpp.

RMSNorm before each block, one RMSNorm per head on queries and keys, grouped-query attention,
rotary positions in the half-split ("neox") layout, SwiGLU, no biases, output tied to the
embedding. Nothing here knows about text, training or files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# Where the fused attention wins, on a CPU in bfloat16: it takes 1.3 times as long as plain matrix
# products for rows of 400 and half as long for rows of 3,000, in a fraction of the memory.
FUSED_FROM = 800


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of the network. ``width`` and ``hidden`` are multiples of 32, the Q8_0 block."""

    vocab: int
    layers: int = 5
    width: int = 224
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 64
    hidden: int = 576
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6


class RmsNorm(nn.Module):
    """Scale the last axis to unit root mean square, then by a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotary_table(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine for positions 0..length-1, each ``[length, head_width // 2]``."""
    half = shape.head_width // 2
    frequency = shape.rope_base ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = torch.arange(length, dtype=torch.float32)[:, None] * frequency[None, :]
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x [batch, heads, length, head_width]`` by its position, half-split layout."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q = nn.Linear(shape.width, shape.heads * shape.head_width, bias=False)
        self.k = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.v = nn.Linear(shape.width, shape.kv_heads * shape.head_width, bias=False)
        self.out = nn.Linear(shape.heads * shape.head_width, shape.width, bias=False)
        self.q_norm = RmsNorm(shape.head_width, shape.norm_eps)
        self.k_norm = RmsNorm(shape.head_width, shape.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        shape = self.shape
        q = self.q(x).view(batch, length, shape.heads, shape.head_width).transpose(1, 2)
        k = self.k(x).view(batch, length, shape.kv_heads, shape.head_width).transpose(1, 2)
        v = self.v(x).view(batch, length, shape.kv_heads, shape.head_width).transpose(1, 2)
        q = rotate(self.q_norm(q), cos, sin)
        k = rotate(self.k_norm(k), cos, sin)
        groups = shape.heads // shape.kv_heads
        if groups > 1:
            k = k.repeat_interleave(groups, dim=1)
            v = v.repeat_interleave(groups, dim=1)
        if length < FUSED_FROM:
            scores = (q * shape.head_width**-0.5) @ k.transpose(-1, -2)
            mixed = torch.softmax(scores + mask, dim=-1) @ v
        else:
            q, k = q.to(v.dtype), k.to(v.dtype)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attn_norm = RmsNorm(shape.width, shape.norm_eps)
        self.attn = Attention(shape)
        self.ffn_norm = RmsNorm(shape.width, shape.norm_eps)
        self.ffn = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin, mask)
        return x + self.ffn(self.ffn_norm(x))


class Tiny(nn.Module):
    """Token ids ``[batch, length]`` to hidden states or logits."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.width, shape.norm_eps)
        self.reset()

    def reset(self) -> None:
        """Draw fresh weights; what writes to the residual stream starts small."""
        nn.init.normal_(self.embed.weight, std=0.05)
        for block in self.blocks:
            for linear in (block.attn.q, block.attn.k, block.attn.v, block.ffn.gate, block.ffn.up):
                nn.init.normal_(linear.weight, std=self.shape.width**-0.5)
            for linear in (block.attn.out, block.ffn.down):
                std = (2 * self.shape.layers * linear.in_features) ** -0.5
                nn.init.normal_(linear.weight, std=std)

    def hidden(self, ids: Tensor) -> Tensor:
        """Final normed hidden states ``[batch, length, width]``."""
        length = ids.shape[1]
        cos, sin = rotary_table(self.shape, length)
        x = self.embed(ids)
        kind = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
        mask = torch.full((length, length), float("-inf"), dtype=kind).triu(1)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores over the vocabulary for any ``[..., width]`` hidden states."""
        return functional.linear(hidden, self.embed.weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.logits(self.hidden(ids))
