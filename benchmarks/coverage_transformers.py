"""Families of transformers as tiny models made from their config classes: nothing is downloaded."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from coverage_zoo import Entry, random_tensor

VOCABULARY, LENGTH, IMAGE = 128, 12, 64
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**TEXT, "intermediate_size": 128, "max_position_embeddings": 64}
DECODER = {**ENCODER, "num_key_value_heads": 2, "use_cache": False}
VISION = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
IMAGES = {**VISION, "image_size": IMAGE, "patch_size": 16}


class Adapter(torch.nn.Module):
    """A model of transformers with positional tensors in and the named tensors of its output out."""

    def __init__(self, model: torch.nn.Module, inputs: Sequence[str], outputs: Sequence[str]):
        super().__init__()
        self.model, self.inputs, self.outputs = model, tuple(inputs), tuple(outputs)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.model(**dict(zip(self.inputs, tensors, strict=True)))
        return tuple(result[name] for name in self.outputs)


def tokens(length: int = LENGTH) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))


def image(side: int = IMAGE) -> torch.Tensor:
    return random_tensor(1, 3, side, side)


Row = tuple[str, str, str, dict[str, Any], dict[str, Callable[[], torch.Tensor]], tuple[str, ...]]
ids = {"input_ids": tokens}
pixels = {"pixel_values": image}
pair = {"input_ids": tokens, "decoder_input_ids": partial(tokens, 7)}
HIDDEN, LOGITS = ("last_hidden_state",), ("logits",)

# name, config class, model class, options of the config, inputs, outputs that are read
ROWS: list[Row] = [
    ("resnet", "ResNetConfig", "ResNetForImageClassification",
     {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 2, 1]}, pixels, LOGITS),
    ("regnet", "RegNetConfig", "RegNetForImageClassification",
     {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 2, 2, 1], "groups_width": 16},
     pixels, LOGITS),
    ("mobilenet-v1", "MobileNetV1Config", "MobileNetV1ForImageClassification",
     {"depth_multiplier": 0.5}, pixels, LOGITS),
    ("mobilenet-v2", "MobileNetV2Config", "MobileNetV2ForImageClassification",
     {"depth_multiplier": 0.5}, pixels, LOGITS),
    ("efficientnet", "EfficientNetConfig", "EfficientNetForImageClassification",
     {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640, "image_size": IMAGE}, pixels, LOGITS),
    ("convnext", "ConvNextConfig", "ConvNextForImageClassification",
     {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}, pixels, LOGITS),
    ("convnext-v2", "ConvNextV2Config", "ConvNextV2ForImageClassification",
     {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}, pixels, LOGITS),
    ("poolformer", "PoolFormerConfig", "PoolFormerForImageClassification",
     {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}, pixels, LOGITS),
    ("vit", "ViTConfig", "ViTForImageClassification", IMAGES, pixels, LOGITS),
    ("deit", "DeiTConfig", "DeiTForImageClassification", IMAGES, pixels, LOGITS),
    ("beit", "BeitConfig", "BeitForImageClassification",
     {**IMAGES, "use_relative_position_bias": True}, pixels, LOGITS),
    ("dinov2", "Dinov2Config", "Dinov2ForImageClassification", {**IMAGES, "mlp_ratio": 2}, pixels, LOGITS),
    ("swin", "SwinConfig", "SwinForImageClassification",
     {"image_size": IMAGE, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}, pixels, LOGITS),
    ("swin-v2", "Swinv2Config", "Swinv2ForImageClassification",
     {"image_size": IMAGE, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}, pixels, LOGITS),
    ("mobilevit", "MobileViTConfig", "MobileViTForImageClassification",
     {"image_size": IMAGE, "hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 32, 48, 64, 80, 96, 128],
      "num_attention_heads": 4}, pixels, LOGITS),
    ("segformer", "SegformerConfig", "SegformerForSemanticSegmentation",
     {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
      "decoder_hidden_size": 64}, pixels, LOGITS),
    ("pvt-v2", "PvtV2Config", "PvtV2ForImageClassification",
     {"image_size": IMAGE, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1],
      "num_attention_heads": [1, 2, 3, 4]}, pixels, LOGITS),
    ("levit", "LevitConfig", "LevitForImageClassification",
     {"image_size": IMAGE, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1],
      "key_dim": [8, 8, 8]}, pixels, LOGITS),
    ("dpt", "DPTConfig", "DPTForDepthEstimation",
     {**IMAGES, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [16, 24, 32, 48],
      "fusion_hidden_size": 32}, pixels, ("predicted_depth",)),
    ("detr", "DetrConfig", "DetrForObjectDetection",
     {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
      "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "num_queries": 10,
      "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": "resnet"},
     pixels, ("logits", "pred_boxes")),
    ("yolos", "YolosConfig", "YolosForObjectDetection",
     {**IMAGES, "image_size": [IMAGE, IMAGE], "num_detection_tokens": 8}, pixels, ("logits", "pred_boxes")),
    ("bert", "BertConfig", "BertForSequenceClassification", ENCODER, ids, LOGITS),
    ("roberta", "RobertaConfig", "RobertaForMaskedLM", ENCODER, ids, LOGITS),
    ("distilbert", "DistilBertConfig", "DistilBertForMaskedLM",
     {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}, ids, LOGITS),
    ("albert", "AlbertConfig", "AlbertForMaskedLM", {**ENCODER, "embedding_size": 32}, ids, LOGITS),
    ("electra", "ElectraConfig", "ElectraForMaskedLM", {**ENCODER, "embedding_size": 32}, ids, LOGITS),
    ("deberta-v2", "DebertaV2Config", "DebertaV2ForMaskedLM", ENCODER, ids, LOGITS),
    ("mpnet", "MPNetConfig", "MPNetForMaskedLM", ENCODER, ids, LOGITS),
    ("modernbert", "ModernBertConfig", "ModernBertForMaskedLM", {**ENCODER, "pad_token_id": 0}, ids, LOGITS),
    ("gpt2", "GPT2Config", "GPT2LMHeadModel",
     {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "use_cache": False},
     ids, LOGITS),
    ("gpt-neox", "GPTNeoXConfig", "GPTNeoXForCausalLM", {**ENCODER, "use_cache": False}, ids, LOGITS),
    ("opt", "OPTConfig", "OPTForCausalLM",
     {**ENCODER, "ffn_dim": 128, "word_embed_proj_dim": 64, "use_cache": False}, ids, LOGITS),
    ("llama", "LlamaConfig", "LlamaForCausalLM", DECODER, ids, LOGITS),
    ("mistral", "MistralConfig", "MistralForCausalLM", DECODER, ids, LOGITS),
    ("qwen2", "Qwen2Config", "Qwen2ForCausalLM", DECODER, ids, LOGITS),
    ("qwen3", "Qwen3Config", "Qwen3ForCausalLM", {**DECODER, "head_dim": 16}, ids, LOGITS),
    ("gemma", "GemmaConfig", "GemmaForCausalLM", {**DECODER, "head_dim": 16}, ids, LOGITS),
    ("phi3", "Phi3Config", "Phi3ForCausalLM", {**DECODER, "pad_token_id": 0}, ids, LOGITS),
    ("t5", "T5Config", "T5ForConditionalGeneration",
     {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4,
      "use_cache": False}, pair, LOGITS),
    ("bart", "BartConfig", "BartForConditionalGeneration",
     {"vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 128,
      "decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "use_cache": False,
      "max_position_embeddings": 64}, pair, LOGITS),
    ("whisper", "WhisperConfig", "WhisperForConditionalGeneration",
     {"vocab_size": VOCABULARY, "num_mel_bins": 16, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2,
      "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
      "max_source_positions": 32, "max_target_positions": 32, "use_cache": False, "pad_token_id": 0,
      "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3},
     {"input_features": lambda: random_tensor(1, 16, 64), "decoder_input_ids": partial(tokens, 7)}, LOGITS),
    ("wav2vec2", "Wav2Vec2Config", "Wav2Vec2ForCTC",
     {**ENCODER, "conv_dim": (32, 32, 32), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3),
      "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
     {"input_values": lambda: random_tensor(1, 1600)}, LOGITS),
    ("clip-vision", "CLIPVisionConfig", "CLIPVisionModelWithProjection", {**IMAGES, "projection_dim": 32}, pixels,
     ("image_embeds",)),
    ("clip-text", "CLIPTextConfig", "CLIPTextModelWithProjection",
     {**ENCODER, "projection_dim": 32, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}, ids, ("text_embeds",)),
]  # fmt: skip
NESTED = {"resnet": ("ResNetConfig", {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 1, 1, 1],
                                      "out_features": ["stage4"]})}  # fmt: skip
# The hand-written attention beside torch's own, where a family has both.
EAGER = ("vit", "bert", "gpt2", "llama", "t5", "whisper", "detr")


def zoo_entries() -> list[Entry]:
    entries = []
    for name, config, model, options, inputs, outputs in ROWS:
        made = partial(_build, config, model, options, tuple(inputs), outputs)
        call = partial(_inputs, tuple(inputs.values()))
        entries.append(Entry(name, made, call))
        if name in EAGER:
            entries.append(Entry(f"{name}-eager", partial(made, attention="eager"), call))
    return entries


def _inputs(makers: tuple[Callable[[], torch.Tensor], ...]) -> tuple[torch.Tensor, ...]:
    return tuple(make() for make in makers)


def _build(
    config: str,
    model: str,
    options: dict[str, Any],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    attention: str | None = None,
) -> torch.nn.Module:
    import transformers

    if isinstance(nested := options.get("backbone_config"), str):
        nested_class, nested_options = NESTED[nested]
        options = {**options, "backbone_config": getattr(transformers, nested_class)(**nested_options)}
    made = getattr(transformers, config)(**options)
    if attention:
        made._attn_implementation = attention
    return Adapter(getattr(transformers, model)(made), inputs, outputs)
