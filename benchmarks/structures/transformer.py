"""ViT-tiny (Touvron et al. 2021, 12 layers of width 192) and BERT-mini (Turc et al. 2019, 4 layers of width 256)."""

import torch
from torch import nn


class Block(nn.Module):
    """Attention and a gelu network, each with a residual; layer norms before (`norm_first`) or behind."""

    def __init__(self, width: int, heads: int, norm_first: bool):
        super().__init__()
        self.heads, self.norm_first = heads, norm_first
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        query, key, value = (f(x).view(split).transpose(1, 2) for f in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.mlp(x))


class VisionTransformer(nn.Module):
    """Patches of 16 x 16, a class token, learned positions."""

    def __init__(self, width: int, heads: int, depth: int, size: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, (size // 16) ** 2 + 1, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, norm_first=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class Bert(nn.Module):
    """Token and position embeddings, blocks with norms behind, the first token's state through tanh."""

    def __init__(self, width: int, heads: int, depth: int, length: int):
        super().__init__()
        self.words, self.positions = nn.Embedding(30522, width), nn.Parameter(torch.randn(length, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(Block(width, heads, norm_first=False) for _ in range(depth)))
        self.pooler, self.head = nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.norm(self.words(tokens) + self.positions))
        return self.head(torch.tanh(self.pooler(x[:, 0])))


def vit_tiny() -> nn.Module:
    """1.1 G multiply-adds at 224 x 224."""
    return VisionTransformer(192, 3, 12, 224)


def bert_mini() -> nn.Module:
    """128 token ids in, two logits out."""
    return Bert(256, 4, 4, 128)
