"""The architectures of SD 1.x and 2.1 at full size, without weights.

`pare inspect sd1` draws them and `pare bench --model sd1` measures them with random
weights.  What is not said here is the same in all of SD 1 and 2 (`HUB_DEFAULTS`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}
VAE: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
TEXTS: dict[str, dict[str, Any]] = {
    "sd1": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
    },
    "sd21": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "hidden_act": "gelu",
    },
}

# The published models' own noise schedule and prediction; SD 2.1 was trained at 768 pixels.
SCHEDULE: dict[str, Any] = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
SCHEDULERS: Mapping[str, dict[str, Any]] = {
    "sd1": SCHEDULE | {"_class_name": "PNDMScheduler", "prediction_type": "epsilon"},
    "sd21": SCHEDULE | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
}
LATENT_SIZES = {"sd1": 64, "sd21": 96}
