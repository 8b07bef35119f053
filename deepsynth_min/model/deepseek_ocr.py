"""The whole model: pages -> visual tokens -> scattered into the text -> decoded -> scored.

In: a `Batch`. Out: logits [B, T, V], or (sum, count) of the loss.

The one idea: a page is a piece of the sequence. Its visual tokens, each row ended by
`image_newline` (not those of learned queries, which have no rows) and the page by `view_seperator`
(the official spelling), replace the embeddings of the image tokens, and from there on the decoder
knows no difference.

Freezing is `requires_grad` and nothing else: a part without trainable parameters below it builds no
autograd graph, and every part can be trained.

Sources: Wei et al. 2025 (DeepSeek-OCR), Wei et al. 2026 (DeepSeek-OCR-2). Parameter names are those
of the official checkpoints.
"""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import KVCache
from .batch import Batch
from .decoder import DecoderLayer, Layout, Router, decode
from .encoders.at_once import PagesAtOnce
from .encoders.query_encoder import QueryEncoder
from .encoders.sam_clip import ClipEncoder, Embedding, Projector, SamAttention, SamEncoder
from .experts import Experts
from .loss import chunked_cross_entropy
from .norm import RMSNorm
from .shape.config import ModelConfig
from .shape.official import config_from_file
from .shape.presets import find_checkpoint
from .weights import PackedWeight, is_adapter, load_weights


class Trunk(nn.Module):
    """Everything but the head; holds the official names below `model.`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        dec = config.decoder
        self.sam_model = SamEncoder(config.sam)
        if config.qwen is None:
            self.vision_model = ClipEncoder(config.clip)
        else:
            self.qwen2_model = QueryEncoder(config.qwen)
        self.projector = Projector(config)
        if config.page_format.newlines:
            self.image_newline = nn.Parameter(torch.empty(dec.hidden_size))
        self.view_seperator = nn.Parameter(torch.empty(dec.hidden_size))
        self.embed_tokens = Embedding(dec.vocab_size, dec.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(dec, i) for i in range(dec.num_hidden_layers))
        self.norm = RMSNorm(dec.hidden_size, dec.rms_norm_eps)

    @property
    def towers(self) -> tuple[SamEncoder, ClipEncoder | QueryEncoder]:
        """The encoder: SAM, and what reads its features."""
        return self.sam_model, getattr(self, "qwen2_model", None) or self.vision_model


class DeepseekOCR(nn.Module):
    """DeepSeek-OCR. Build with a ModelConfig (random weights) or with `from_pretrained`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.adapter = None  # a LoraConfig, once lora.attach has been here
        self.at_once = PagesAtOnce(config.sam.patch)
        self.window_in_blocks = False  # by a compiled kernel (training/compile.py)
        self.recompute = 0  # first layers whose activations the backward pass computes again
        self.model = Trunk(config)
        self.lm_head = nn.Linear(config.decoder.hidden_size, config.decoder.vocab_size, bias=False)
        if self.lm_head.weight.device.type != "meta":
            self.initialise()

    @classmethod
    def from_pretrained(
        cls,
        directory_or_hub_id: str | os.PathLike,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "DeepseekOCR":
        """Loads the official layout, strictly. dtype None keeps what the file holds. Raises
        UserError naming every missing, unknown or wrongly shaped tensor."""
        directory = find_checkpoint(directory_or_hub_id)
        config = config_from_file(directory / "config.json")
        with torch.device("meta"):
            model = cls(config)
        load_weights(model, directory, dtype, device)
        return model

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Random weights: normal, std 1/sqrt(fan in) for products, 0.02 for tables and tokens."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | Router):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, fan_in**-0.5, generator=generator)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_(0, 0.02, generator=generator)
            elif isinstance(module, Experts):
                for weight in (module.gate_up, module.down):
                    weight.normal_(0, weight.shape[-1] ** -0.5, generator=generator)
            elif isinstance(module, SamAttention):
                module.rel_pos_h.normal_(0, 0.02, generator=generator)
                module.rel_pos_w.normal_(0, 0.02, generator=generator)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                module.bias.zero_()
        tables = ("pos_embed", "class_embedding", "image_newline", "view_seperator")
        for name, parameter in self.model.named_parameters():  # in this order
            if name.endswith(tables):
                parameter.normal_(0, 0.02, generator=generator)

    # -- pages ------------------------------------------------------------------------------------

    def _page_grid(self, pages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [N, C, h*64, w*64] -> tokens [N, h, w, D], and the features of both towers."""
        sam, second = self._towers(pages)
        n, _, h, w = sam.shape
        features = self.model.projector.features(sam, second)
        return self.model.projector(features).view(n, h, w, -1), sam, second

    @property
    def encoder_trains(self) -> bool:
        return any(p.requires_grad for part in self.model.towers for p in part.parameters())

    def page_features(self, pages: Tensor, together: int = 0) -> Tensor:
        """uint8 [N, C, h*64, w*64] -> what the projector sees of them, [N, h, w, F]; of learned
        queries, which have no place on the page, the h*w one after the other.

        In float32, unless the encoder trains, a page becomes the same to the last bit whatever
        pages are beside it (at_once.py). `together`: pages read at once, where that may be lost.
        """
        trains = torch.is_grad_enabled() and self.encoder_trains
        if not together and self.model.sam_model.pos_embed.dtype == torch.float32 and not trains:
            together = self.at_once.size(pages, self._read)
        return self._read(pages, together or max(1, len(pages)))

    def _read(self, pages: Tensor, together: int) -> Tensor:
        join = self.model.projector.features
        features = [join(*self._towers(piece)) for piece in pages.split(together)]
        return torch.cat(features).unflatten(1, (pages.shape[2] // 64, pages.shape[3] // 64))

    def _towers(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 [N, C, h*64, w*64] -> SAM's features [N, C, h, w]; CLIP's [N, 1 + h*w, C], or the
        queries' outputs [N, h*w, C]."""
        x = (pages.float() / 255 - 0.5) / 0.5
        x = x.expand(-1, 3, -1, -1).to(self.model.sam_model.pos_embed.dtype)  # 1 channel becomes 3
        cast, outputs = torch.is_autocast_enabled(x.device.type), []
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.encoder_trains):
            for tower in self.model.towers:
                # Weights held in 16 bit (a frozen tower) are computed with as they are.
                in_float32 = next(tower.parameters()).dtype == torch.float32
                with torch.autocast(x.device.type, enabled=cast and in_float32):
                    x = tower(x)
                outputs.append(x)
        return tuple(outputs)

    def encode_pages(
        self,
        pages: Tensor,
        tiles: Tensor | None = None,
        grids: Tensor | None = None,
        features: Tensor | None = None,
        tile_features: Tensor | None = None,
    ) -> Tensor:
        """Visual tokens of all pages in order, [sum of tokens, D].

        pages [N, C, h, w] and tiles [M, C, s, s] uint8; grids [N, 2] (w, h) on the CPU or wherever.
        A page's local view (its tiles as one large grid; without row ends, one after the other)
        comes first, then its global view, then the separator. features, tile_features: as
        `page_features` gives them, if they are known.
        """
        trunk = self.model
        features = self.page_features(pages) if features is None else features
        views = trunk.projector(features)  # [N, h, w, D]
        if grids is None or tiles is None or not len(tiles):
            rows = self._in_a_row(views)  # [N, n, D]
            end = trunk.view_seperator.to(rows.dtype).expand(len(rows), 1, -1)
            return torch.cat([rows, end], dim=1).flatten(0, 1)  # [N * n, D]
        tile_features = self.page_features(tiles) if tile_features is None else tile_features
        local = trunk.projector(tile_features)  # [M, q, q, D]
        tokens, start = [], 0
        for view, (w, h) in zip(views, grids.tolist()):
            if w * h > 1:
                q = local.shape[1]
                own, start = local[start : start + w * h], start + w * h
                if self.config.page_format.newlines:  # one grid: [1, h*q, w*q, D]
                    own = own.view(h, w, q, q, -1).transpose(1, 2).reshape(1, h * q, w * q, -1)
                tokens.append(self._in_a_row(own).flatten(0, 1))
            tokens.append(self._in_a_row(view[None])[0])
            tokens.append(trunk.view_seperator.to(view.dtype)[None])
        return torch.cat(tokens)

    def _in_a_row(self, grid: Tensor) -> Tensor:
        """[N, h, w, D] -> [N, h*(w+1), D], `image_newline` after each row; or [N, h*w, D]."""
        if not self.config.page_format.newlines:
            return grid.flatten(1, 2)
        n, h, _, width = grid.shape
        newline = self.model.image_newline.to(grid.dtype).expand(n, h, 1, width)
        return torch.cat([grid, newline], dim=2).flatten(1, 2)

    # -- text -------------------------------------------------------------------------------------

    def embed(self, batch: Batch) -> Tensor:
        """Text embeddings with the visual tokens in their places, [B, T, D]."""
        x = self.model.embed_tokens(batch.input_ids)
        if batch.averaged is not None:  # in the place of pages
            tokens = self.model.embed_tokens(batch.averaged)  # [A, D]
            visual = torch.segment_reduce(tokens, "mean", lengths=batch.averaged_sizes)  # [V, D]
        elif len(batch.pages):
            known = batch.features, batch.tile_features
            visual = self.encode_pages(batch.pages, batch.tiles, batch.grids, *known)
        else:
            return x
        # Out of place: the embedding's output is needed unchanged for its own gradient.
        return x.flatten(0, 1).index_copy(0, batch.image_index, visual.to(x.dtype)).view_as(x)

    def hidden(
        self, x: Tensor, layout: Layout = Layout(), cache: KVCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [B, T, D] -> normed hidden states [B, T, D], or those [1, L, D] that the
        layout asks for, and the balance term or None."""
        trunk, config = self.model, self.config.decoder
        how = (self.recompute, self.window_in_blocks)
        return decode(trunk.layers, trunk.norm, config, x, layout, cache, *how)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, T, V] of every position, for looking at; training uses `loss`."""
        valid = None if batch.lengths else batch.attention_mask
        x, _ = self.hidden(self.embed(batch), Layout(valid, batch.lengths, batch.prompts))
        return F.linear(x, self.lm_head.weight)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """(summed cross-entropy over the scored tokens, their number)."""
        total, count, _ = self.loss_terms(batch)
        return total, count

    def loss_terms(
        self, batch: Batch, balance: bool = False, embedded: Tensor | None = None
    ) -> tuple[Tensor, int, Tensor | None]:
        """(sum, count, balance term summed over sequences and layers; None unless asked for).

        Padding stands to the right, where causality hides it, so no mask is needed; the balance
        term leaves it out. `embedded` is `embed(batch)`, if it is known already.
        """
        every = balance or not batch.num_scored  # no layer is left without a token to work on
        asked = {} if every else {"output_index": batch.score_index}
        if balance:
            asked = {"token_mask": batch.token_mask}
        x = self.embed(batch) if embedded is None else embedded
        layout = Layout(lengths=batch.lengths, prompts=batch.prompts, **asked)
        x, term = self.hidden(x, layout)
        scored = x.flatten(0, 1)[batch.score_index] if every else x[0]  # [L, D]
        total = chunked_cross_entropy(scored, self.lm_head.weight, batch.targets)
        return total, batch.num_scored, term


# -- what is in it ------------------------------------------------------------------------------

PARTS = (  # (part, prefix of the parameter names); the first prefix that fits decides
    ("SAM", "model.sam_model."),
    ("CLIP", "model.vision_model."),
    ("Qwen2 encoder", "model.qwen2_model."),
    ("projector", "model.projector."),
    ("projector", "model.image_newline"),
    ("projector", "model.view_seperator"),
    ("embedding", "model.embed_tokens."),
    ("head", "lm_head."),
    ("decoder", "model."),
)
ENCODER = {"SAM", "CLIP", "Qwen2 encoder"}


def place_of(name: str) -> str:
    """The part of the model that a parameter stands in, an adapter's too."""
    part = next(part for part, prefix in PARTS if name.startswith(prefix))
    return "routed experts" if ".mlp.experts." in name else part


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    return "adapter" if is_adapter(name) else place_of(name)


def parameter_summary(model: DeepseekOCR) -> list[tuple[str, int, int, int]]:
    """(part, total, trainable, active per token) for each part, then "total".

    Active: what one generated token is multiplied with: k of E experts, the head, no encoder, and
    one row of the embedding, which counts as nothing.
    """
    config = model.config.decoder
    routed = (config.num_experts_per_tok, config.n_routed_experts)
    share = {"routed experts": routed, "decoder": (1, 1), "head": (1, 1)}
    sizes = {name: (p.numel(), p.requires_grad) for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        if isinstance(module, PackedWeight):  # counted as what it stands for
            sizes[path] = (module.shape.numel(), False)
    rows: dict[str, list[int]] = {}
    for name, (size, trains) in sizes.items():
        row, (k, of) = rows.setdefault(part_of(name), [0, 0, 0]), share.get(place_of(name), (0, 1))
        row[0] += size
        row[1] += size if trains else 0
        row[2] += size * k // of
    table = [(part, *row) for part, row in rows.items()]
    return [*table, ("total", *(sum(column) for column in list(zip(*table))[1:]))]


def summary_table(model: DeepseekOCR) -> str:
    """The summary for people: total, trainable, frozen and active parameters of each part."""
    lines = [f"{'part':<16}{'total':>16}{'trainable':>16}{'frozen':>16}{'active/token':>16}"]
    for part, total, trainable, active in parameter_summary(model):
        counts = (total, trainable, total - trainable, active)
        lines.append(f"{part:<16}" + "".join(f"{count:>16,}" for count in counts))
    return "\n".join(lines)
