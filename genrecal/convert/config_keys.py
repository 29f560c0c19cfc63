"""What the keys of the authors' config.json become: their native names, or why they have none."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

# llm_config's architecture: the native model type. InternLM2 is a Llama whose weights are packed otherwise.
LANGUAGE_MODELS = {
    "Qwen2ForCausalLM": "qwen2",
    "LlamaForCausalLM": "llama",
    "InternLM2ForCausalLM": "llama",
}
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "attention_dropout",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
QWEN2_KEYS = ("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
BIAS_KEYS = ("bias", "attention_bias")
# InternViT's name: (the native one, InternViT's default where the file has none).
VISION_KEYS: dict[str, tuple[str, Any]] = {
    "hidden_size": ("hidden_size", 3200),
    "num_hidden_layers": ("num_hidden_layers", 48),
    "num_attention_heads": ("num_attention_heads", 25),
    "intermediate_size": ("intermediate_size", 12800),
    "qkv_bias": ("attention_bias", False),
    "qk_normalization": ("use_qk_norm", True),
    "norm_type": ("norm_type", "rms_norm"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "hidden_act": ("hidden_act", "gelu"),
    "attention_dropout": ("attention_dropout", 0.0),
    "dropout": ("projection_dropout", 0.0),
    "initializer_range": ("initializer_range", 0.02),
    "initializer_factor": ("layer_scale_init_value", 0.1),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "num_channels": ("num_channels", 3),
}
# Keys that the native classes can express with one value only: (default, what they can).
FIXED = {
    "select_layer": (-1, -1),  # the encoder's last layer
    "ps_version": ("v1", "v2"),  # height and width swapped back after the pixel shuffle
    "pad2square": (False, False),
    "use_backbone_lora": (0, 0),
    "use_llm_lora": (0, 0),
}
FIXED_TEXT = {"moe_config": (None, None), "mlp_bias": (False, False)}
FIXED_VISION = {"use_moe": (False, False)}
# The norm of queries and keys has this epsilon in the native class, whatever the config says.
QK_NORM_EPS = 1e-6
TOP_KEYS = (
    "force_image_size",
    "downsample_ratio",
    "dynamic_image_size",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "use_thumbnail",
    "template",
    "system_message",
    "vision_config",
    "llm_config",
    "torch_dtype",
    "tie_word_embeddings",
)
# Published InternViT configs carry these, with `use_moe` off.
MOE_KEYS = (
    "num_experts",
    "num_routed_experts",
    "num_shared_experts",
    "moe_coeff_ratio",
    "moe_intermediate_size",
    "moe_output_scale",
    "shared_expert_intermediate_size",
    "capacity_factor",
    "eval_capacity_factor",
    "noisy_gate_policy",
    "laux_allreduce",
    "use_residual",
    "use_rts",
    "use_weighted_residual",
)
HARMLESS = {
    "use_flash_attn": "how attention is computed, not what",
    "pretraining_tp": "how matrices are cut, not what they give",
    "drop_path_rate": "for training the vision encoder, which stays frozen",
    **dict.fromkeys(MOE_KEYS, "use_moe is off"),
}
# What transformers itself writes into every config, sampling settings of old versions among it.
HOUSEKEEPING = set(PretrainedConfig().to_dict()) | {"auto_map", "model_type", "architectures", "torch_dtype"}
