"""DeepEncoder: SAM ViT-B -> 16x compression -> CLIP-L -> projector; pages become visual tokens.

In: normalised pages [N, 3, h, w], h and w multiples of 64. Out: one token per 64x64 px,
[N, h/64 * w/64, D]; the row ends and the page end are put between them in deepseek_ocr.py.

The one idea: pixels are read by cheap windowed attention (SAM, one patch per 16x16 px), compressed
16-fold by two strided convolutions, and only then by full attention (CLIP). CLIP never sees a
pixel: SAM's last feature map takes the place of its patch embedding.

Sources: Kirillov et al. 2023 (SAM), Radford et al. 2021 (CLIP), Wei et al. 2025 (DeepSeek-OCR).
Parameter names are those of the official checkpoint.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shape.config import ClipConfig, ModelConfig, SamConfig
from .relative_attention import (
    attend_by_score,
    attend_in_pieces,
    attend_with_columns,
    distance_products,
    relative_positions,
)


def _resized_table(table: Tensor, size: tuple[int, int]) -> Tensor:
    """Position table [1, h, w, D] for another grid: bicubic, antialiased, in float32."""
    if table.shape[1:3] == size:
        return table
    resized = F.interpolate(
        table.permute(0, 3, 1, 2).float(), size, mode="bicubic", antialias=True, align_corners=False
    )
    return resized.permute(0, 2, 3, 1).to(table.dtype)  # [1, *size, D]


class SamAttention(nn.Module):
    """Multi-head attention over an h x w grid with decomposed relative position bias."""

    def __init__(self, width: int, heads: int, table_side: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
        self.by_score = False  # by a kernel that is compiled for it (training/compile.py)

    def forward(self, x: Tensor) -> Tensor:  # [N, h, w, D] -> same
        n, h, w, width = x.shape
        d = width // self.heads
        qkv = self.qkv(x).view(n, h, w, 3, self.heads, d).permute(3, 0, 4, 1, 2, 5)
        q, k, v = qkv  # [N, H, h, w, d] each
        if self.by_score and not q.requires_grad:
            q, k, v = (part.flatten(2, 3) for part in (q, k, v))  # [N, H, P, d], views
            products = distance_products(q, self.rel_pos_h, self.rel_pos_w, h, w)
            out = attend_by_score(q, k, v, products, h, w)  # [N, H, P, d]
            return self.proj(out.transpose(1, 2).reshape(n, h, w, width))
        in_pieces = x.device.type == "cpu" and not q.requires_grad
        form = attend_in_pieces if in_pieces else attend_with_columns
        out = form(q, k, v, *self.axis_biases(q))  # [N, H, h, w, d]
        return self.proj(out.permute(0, 2, 3, 1, 4).reshape(n, h, w, width))

    def axis_biases(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """What `relative_position_bias` adds up: q [N, H, h, w, d] -> [.., h, w, h], [.., h, w, w].

        The bias of a query and a key: the query times a vector learned for their distance in rows,
        plus the same for columns.
        """
        rel_h = relative_positions(self.rel_pos_h, q.shape[2]).to(q.dtype)  # [h, h, d]
        rel_w = relative_positions(self.rel_pos_w, q.shape[3]).to(q.dtype)  # [w, w, d]
        bias_h = torch.einsum("nHhwd,hkd->nHhwk", q, rel_h)  # [N, H, h, w, h]
        bias_w = torch.einsum("nHhwd,wkd->nHhwk", q, rel_w)  # [N, H, h, w, w]
        return bias_h, bias_w


class SamMLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class SamBlock(nn.Module):
    """Pre-norm transformer block; window = 0 attends over the whole page."""

    def __init__(self, config: SamConfig, window: int):
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = SamAttention(
            config.width, config.heads, window or config.image_size // config.patch
        )
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = SamMLP(config.width)

    def forward(self, x: Tensor) -> Tensor:  # [N, h, w, D] -> same
        y = self.norm1(x)
        x = x + (self._windowed(y) if self.window else self.attn(y))
        return x + self.mlp(self.norm2(x))

    def _windowed(self, y: Tensor) -> Tensor:
        n, h, w, width = y.shape
        s = self.window
        # Zeros to the right and below, after the norm: padded places do take part in the softmax.
        y = F.pad(y, (0, 0, 0, -w % s, 0, -h % s))
        rows, cols = y.shape[1] // s, y.shape[2] // s
        y = y.view(n, rows, s, cols, s, width).transpose(2, 3).reshape(-1, s, s, width)
        y = self.attn(y)  # [N * rows * cols, s, s, D]
        y = y.view(n, rows, cols, s, s, width).transpose(2, 3).reshape(n, rows * s, cols * s, width)
        return y[:, :h, :w]  # [N, h, w, D]


def _by_page(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """The convolution of x [N, C, h, w]. Of a small image alone torch's CPU kernel is another than
    of several, and rounds otherwise; without gradients each is alone, and none depends on others.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return convolution(x)
    return torch.cat([convolution(page) for page in x.split(1)])


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an image [N, C, h, w]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:  # [N, 3, H, W] -> [N, h, w, D]
        return self.proj(x).permute(0, 2, 3, 1)


class SamEncoder(nn.Module):
    """Pages [N, 3, h*64, w*64] -> features [N, C, h, w]."""

    def __init__(self, config: SamConfig):
        super().__init__()
        side = config.image_size // config.patch
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.width))
        self.blocks = nn.ModuleList(
            SamBlock(config, 0 if i in config.global_layers else config.window)
            for i in range(config.layers)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, config.neck, 1, bias=False),
            ChannelNorm(config.neck, eps=1e-6),
            nn.Conv2d(config.neck, config.neck, 3, padding=1, bias=False),
            ChannelNorm(config.neck, eps=1e-6),
        )
        first, second = config.downsample
        self.net_2 = nn.Conv2d(config.neck, first, 3, stride=2, padding=1, bias=False)
        self.net_3 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)

    def forward(self, pages: Tensor) -> Tensor:
        x = self.patch_embed(pages)  # [N, h*4, w*4, D]
        x = x + _resized_table(self.pos_embed, x.shape[1:3])
        for block in self.blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2)
        for layer in (*self.neck, self.net_2, self.net_3):
            x = _by_page(layer, x) if isinstance(layer, nn.Conv2d) else layer(x)
        return x  # [N, C, h, w]


class ClipAttention(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.heads = config.heads
        self.qkv_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:  # [N, P+1, D] -> same
        n, p, width = x.shape
        qkv = self.qkv_proj(x).view(n, p, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [N, H, P+1, d] each
        out = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(out.transpose(1, 2).reshape(n, p, width))


class ClipMLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # quick_gelu, as CLIP was trained with


class ClipBlock(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=1e-5)
        self.self_attn = ClipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=1e-5)
        self.mlp = ClipMLP(config.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Embedding(nn.Embedding):
    """torch's, without random values on the meta device: for those torch imports its compiler,
    which takes a second of every command that reads a checkpoint."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class ClipEmbeddings(nn.Module):
    """Class token and positions around SAM's features. `patch_embedding` is in the official
    checkpoint and in the CLIP it came from, but nothing here ever uses it."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        side, patch = config.image_size // config.patch_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, patch, stride=patch, bias=False)
        self.position_embedding = Embedding(side * side + 1, config.width)

    def forward(self, features: Tensor) -> Tensor:  # [N, D, h, w] -> [N, 1 + h*w, D]
        n, width, h, w = features.shape
        table = self.position_embedding.weight
        side = round((table.shape[0] - 1) ** 0.5)
        grid = _resized_table(table[1:].view(1, side, side, width), (h, w))
        positions = torch.cat([table[:1], grid.reshape(h * w, width)])
        first = self.class_embedding.expand(n, 1, width).to(features.dtype)
        return torch.cat([first, features.flatten(2).transpose(1, 2)], dim=1) + positions


class ClipTransformer(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.layers = nn.ModuleList(ClipBlock(config) for _ in range(config.layers))


class ClipEncoder(nn.Module):
    """SAM features [N, D, h, w] -> [N, 1 + h*w, D], class token first; no final norm."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=1e-5)
        self.transformer = ClipTransformer(config)

    def forward(self, features: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(features))
        for layer in self.transformer.layers:
            x = layer(x)
        return x


class Projector(nn.Module):
    """Page token: CLIP's and SAM's vectors of a place (or a query's output), to D numbers."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.sees_sam = config.qwen is None
        self.layers = nn.Linear(config.feature_width, config.decoder.hidden_size)

    def features(self, sam: Tensor, second: Tensor) -> Tensor:
        """What it sees of both towers' outputs: each place's vectors side by side, without CLIP's
        class token, or what the queries read: [N, h*w, F]."""
        if not self.sees_sam:
            return second
        return torch.cat([second[:, 1:], sam.flatten(2).transpose(1, 2)], dim=-1)

    def forward(self, features: Tensor) -> Tensor:  # [..., F] -> [..., D]
        return self.layers(features)
