"""Peer (a): transformers' own `deepseek_ocr2` at our sizes, with our weights copied into it.

In: a model of ours. Out: modules of the library that compute the same thing, which the benches
check before anything is timed. DeepSeek-OCR-2 is there as it is (`deepseek_ocr2`). DeepSeek-OCR
itself is in no release of transformers; its successor has the same decoder (`deepseek_ocr2_text`)
and the same SAM; CLIP-L comes from the library's `clip`.

The decoder has several implementations of its experts: `eager` (a loop over experts), `grouped_mm`
and `batched_mm`. The benches time the first two and are measured against the better one; the third
copies a whole expert's weights for every token, which is meant for single rows.
"""

import re

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, PreTrainedConfig
from transformers.models.clip.modeling_clip import CLIPEncoder
from transformers.models.deepseek_ocr2 import (
    configuration_deepseek_ocr2 as configuration,
    modeling_deepseek_ocr2 as modeling,
)

from deepsynth_min.model import DeepseekOCR, ModelConfig
from deepsynth_min.model.encoders.sam_clip import ClipEmbeddings
from deepsynth_min.model.shape.config import ClipConfig, DecoderConfig, QwenConfig, SamConfig
from deepsynth_min.tuning.lora import pairs

EXPERTS = ("eager", "grouped_mm")


def text_config(config: DecoderConfig, experts: str) -> configuration.DeepseekOcr2TextConfig:
    made = configuration.DeepseekOcr2TextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        moe_intermediate_size=config.moe_intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        n_routed_experts=config.n_routed_experts,
        n_shared_experts=config.n_shared_experts,
        num_experts_per_tok=config.num_experts_per_tok,
        routed_scaling_factor=config.routed_scaling_factor,
        mlp_layer_types=[
            "dense" if config.is_dense(i) else "sparse" for i in range(config.num_hidden_layers)
        ],
        use_cache=False,
        attn_implementation="sdpa",
        experts_implementation=experts,
    )
    assert not config.norm_topk_prob, "the library's router knows no normalisation"
    return made


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Each part of a name that has another one in the library gets it; $ stands for its end."""
    out = {}
    for name, tensor in state.items():
        name += "$"
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        out[name.removesuffix("$")] = tensor
    return out


def peer_decoder(model: DeepseekOCR, experts: str) -> nn.Module:
    """`deepseek_ocr2_text` with our decoder's weights; call it with inputs_embeds [B, T, D]."""
    config = text_config(model.config.decoder, experts)
    device = model.lm_head.weight.device
    with torch.device(device):
        peer = modeling.DeepseekOcr2TextModel(config)
    state = {
        name: tensor
        for name, tensor in model.model.state_dict().items()
        if name.startswith(("layers.", "embed_tokens.", "norm."))
    }
    names = {"experts.gate_up$": "experts.gate_up_proj", "experts.down$": "experts.down_proj"}
    peer.load_state_dict(renamed(state, names))
    return peer.to(next(model.model.layers.parameters()).dtype)


def adapted(peer: nn.Module, model: DeepseekOCR) -> nn.Module:
    """PEFT's adapters on the library's decoder, with the rank, places and values of ours."""
    from peft import LoraConfig, get_peft_model

    adapters = {path.removeprefix("model."): pair for path, pair in pairs(model).items()}
    config = LoraConfig(
        r=model.adapter.rank, lora_alpha=model.adapter.alpha, target_modules=sorted(adapters)
    )
    wrapped = get_peft_model(peer, config)
    with torch.no_grad():
        for path, pair in adapters.items():
            theirs = wrapped.get_submodule(f"base_model.model.{path}")
            theirs.lora_A["default"].weight.copy_(pair.A)
            theirs.lora_B["default"].weight.copy_(pair.B)
    return wrapped


def whole_config(config: ModelConfig, experts: str = "eager") -> PreTrainedConfig:
    """The configuration of `whole_peer`."""
    text = text_config(config.decoder, experts).to_dict()
    text["sliding_window"] = config.decoder.sliding_window or config.decoder.max_position_embeddings
    second = qwen_config(config.qwen) if config.qwen else clip_config(config.clip)
    vision = {"sam_config": sam_config(config.sam).to_dict(), "encoder_config": second.to_dict()}
    vision["sam_config"]["mlp_dim"] = 4 * config.sam.width
    for part in (text, *vision.values()):
        for name in ("model_type", "architectures", "use_cache"):
            part.pop(name, None)
    if config.qwen is not None:
        del text["sliding_window"]
        made = configuration.DeepseekOcr2Config(text_config=text, vision_config=vision)
    else:
        from transformers.models.unlimited_ocr import configuration_unlimited_ocr as unlimited

        made = unlimited.UnlimitedOcrConfig(text_config=text, vision_config=vision)
    made._attn_implementation, made._experts_implementation = "sdpa", experts
    return made


def unlimited_class() -> type[nn.Module]:
    """transformers' class with CLIP, of which 5.17 has none yet."""
    from transformers.models.unlimited_ocr import modeling_unlimited_ocr as unlimited

    return unlimited.UnlimitedOcrForConditionalGeneration


def whole_peer(model: DeepseekOCR, experts: str = "eager") -> nn.Module:
    """transformers' `DeepseekOcr2ForConditionalGeneration` with all weights of ours; of a model
    with CLIP its `UnlimitedOcrForConditionalGeneration`.

    The latter attends to everything without a cache, whatever its window: then it is DeepSeek-OCR.
    Call it with input_ids, and pixel_values as `normalised` makes them.
    """
    second = model.config.qwen is not None
    peer_class = modeling.DeepseekOcr2ForConditionalGeneration if second else unlimited_class()
    with torch.device(model.lm_head.weight.device):
        peer = peer_class(whole_config(model.config, experts))
    peer.load_state_dict(whole_state(model.state_dict()))
    return peer.to(model.lm_head.weight.dtype)


def whole_state(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of ours, or their gradients, under the library's names; those that are used."""
    state = {}
    for name, tensor in ours.items():
        if name.endswith("vision_model.embeddings.patch_embedding.weight"):
            continue  # SAM's features take its place
        if name.startswith("model.sam_model."):
            (name,) = renamed({name: tensor}, _SAM_NAMES)
        name = re.sub(r"qwen2_model\.(query_\d+)", r"vision_tower.\1_resolution", name)
        for part, pair in renamed({name: tensor}, _WHOLE_NAMES).items():
            if "qkv_proj" in part and "vision_encoder" in part:
                for kind, piece in zip("qkv", pair.chunk(3)):
                    state[part.replace("qkv_proj", f"{kind}_proj")] = piece
            else:
                state[part] = pair
    return state


_WHOLE_NAMES = {
    "model.sam_model.": "model.vision_tower.sam_encoder.",
    "model.vision_model.transformer.": "model.vision_tower.vision_encoder.encoder.",
    "model.vision_model.": "model.vision_tower.vision_encoder.",
    "model.qwen2_model.model.model.": "model.vision_tower.vision_encoder.",
    "model.projector.layers.": "model.multi_modal_projector.",
    "model.view_seperator": "model.view_separator",
    "model.embed_tokens.": "model.language_model.embed_tokens.",
    "model.layers.": "model.language_model.layers.",
    "model.norm.": "model.language_model.norm.",
    "experts.gate_up$": "experts.gate_up_proj",
    "experts.down$": "experts.down_proj",
}


def normalised(pages: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 [N, C, h, w] -> what the library's processor would give, [N, 3, h, w]."""
    return ((pages.float() / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1).to(dtype)


class PeerEncoder(nn.Module):
    """The library's SAM and its CLIP transformer; our class token and positions between them."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.sam = modeling.DeepseekOcr2SamVisionEncoder(sam_config(config.sam))
        clip = clip_config(config.clip)
        self.embeddings = ClipEmbeddings(config.clip)
        self.pre_layrnorm = nn.LayerNorm(config.clip.width, eps=clip.layer_norm_eps)
        self.clip = CLIPEncoder(clip)

    def forward(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pages [N, 3, h*64, w*64] -> (SAM's [N, C, h, w], CLIP's [N, 1 + h*w, C])."""
        sam = self.sam(pages).last_hidden_state
        x = self.pre_layrnorm(self.embeddings(sam))
        return sam, self.clip(inputs_embeds=x).last_hidden_state


def sam_config(config: SamConfig) -> configuration.DeepseekOcr2SamVisionConfig:
    return configuration.DeepseekOcr2SamVisionConfig(
        hidden_size=config.width,
        output_channels=config.neck,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch,
        window_size=config.window,
        global_attn_indexes=list(config.global_layers),
        downsample_channels=list(config.downsample),
        attn_implementation="sdpa",
    )


def clip_config(config: ClipConfig) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        attn_implementation="sdpa",
    )


def qwen_config(config: QwenConfig) -> configuration.DeepseekOcr2VisionEncoderConfig:
    return configuration.DeepseekOcr2VisionEncoderConfig(
        hidden_size=config.dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attn_implementation="sdpa",
    )


_SAM_NAMES = {
    "patch_embed.proj": "patch_embed.projection",
    "blocks.": "layers.",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "neck.0.": "neck.conv1.",
    "neck.1.": "neck.layer_norm1.",
    "neck.2.": "neck.conv2.",
    "neck.3.": "neck.layer_norm2.",
    "net_2.": "proj.conv1.",
    "net_3.": "proj.conv2.",
}


def clip_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our CLIP layers under the library's names, the fused qkv cut in three."""
    out = {}
    for name, tensor in renamed(state, {"transformer.": ""}).items():
        if "qkv_proj" in name:
            for kind, part in zip("qkv", tensor.chunk(3)):
                out[name.replace("qkv_proj", f"{kind}_proj")] = part
        else:
            out[name] = tensor
    return out


def peer_encoder(model: DeepseekOCR) -> PeerEncoder:
    """The library's encoder with the weights of ours, frozen."""
    trunk = model.model
    with torch.device(trunk.sam_model.pos_embed.device):
        peer = PeerEncoder(model.config)
    peer.sam.load_state_dict(renamed(trunk.sam_model.state_dict(), _SAM_NAMES))
    state = trunk.vision_model.state_dict()
    layers = {n: t for n, t in state.items() if n.startswith("transformer.")}
    peer.clip.load_state_dict(clip_state(layers))
    peer.embeddings.load_state_dict(trunk.vision_model.embeddings.state_dict())
    peer.pre_layrnorm.load_state_dict(trunk.vision_model.pre_layrnorm.state_dict())
    return peer.to(trunk.sam_model.pos_embed.dtype).eval().requires_grad_(False)
