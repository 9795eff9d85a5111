"""The CLIP distance of an image to a text (arXiv:2103.00020), as a loss.

Stable Diffusion has the text encoder of a CLIP, but not its image encoder.  Any CLIP in a
folder as the Hub has it serves (config.json, model.safetensors, the tokenizer's files):
`openai/clip-vit-base-patch32`, for example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pare.config import read_json
from pare.errors import ModelError, WeightsError
from pare.loading.checkpoint import open_checkpoint
from pare.runtime.validation import check_prompt
from pare.text.text_encoder import tokenize
from pare.text.tokenizer import build_tokenizer, read_tokenizer
from techniques.loss_guidance.loss_guided_loop import Loss

# The mean and deviation by which CLIP's images are normalised: red, green, blue.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
# What transformers raises for a config that describes no model.
MISFITS = (TypeError, ValueError, KeyError, AttributeError, RuntimeError, ZeroDivisionError)


def clip_loss(folder: Path, text: str, device: torch.device | str = "cpu") -> Loss:
    """1 - the cosine similarity of CLIP's embeddings of the image and of the text: 0 to 2.

    Raises:
        ModelError, ConfigError, WeightsError: the folder holds no whole CLIP.
    """
    model = load_clip(folder).to(device)
    size: int = model.config.vision_config.image_size
    length: int = model.config.text_config.max_position_embeddings
    vocabulary: int = model.config.text_config.vocab_size
    tokenizer = build_tokenizer(read_tokenizer(folder, vocabulary), vocabulary, length)
    with torch.no_grad():
        ids = tokenize(tokenizer, [check_prompt(text)], length).to(device)
        wanted = F.normalize(model.text_projection(model.text_model(ids).pooler_output))
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))

    def loss(image: Tensor) -> Tensor:
        x = F.interpolate(image, (size, size), mode="bicubic", antialias=True)
        seen = model.vision_model(pixel_values=(x - mean) / std).pooler_output
        return 1 - (F.normalize(model.visual_projection(seen)) * wanted).sum()

    return loss


def load_clip(folder: Path) -> Any:
    """transformers' CLIPModel, in float32, from tensors that are read as strictly as pare's own.

    Its own loader would set torch's default dtype meanwhile, for all threads of the process.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder} has no {name}",
                expected="a CLIP model's folder as the Hub lays it out",
                fix="download the whole model",
            )
    raw = read_json(folder / "config.json")
    if raw.get("model_type") != "clip":
        raise ModelError(
            f"{folder} is a model of the kind {str(raw.get('model_type'))[:40]!r}", expected="clip"
        )
    from huggingface_hub.errors import StrictDataclassError
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    try:
        with torch.device("meta"):
            model = CLIPModel(CLIPConfig(**raw))
    except (*MISFITS, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise ModelError(
            f"{folder}/config.json describes no CLIP ({reason})",
            fix="download it again",
        ) from error
    for name, buffer in list(model.named_buffers()):
        if name.endswith("position_ids"):  # they count, and are in no new file
            owner = model.get_submodule(name.rpartition(".")[0])
            owner.position_ids = torch.arange(buffer.shape[-1]).expand(1, -1)
    path = folder / "model.safetensors"
    tensors = {
        name: tensor.float()
        for name, tensor in open_checkpoint(path).tensors.items()
        if not name.endswith("position_ids")
    }
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        problem = f"{path} does not fit its config.json"
        raise WeightsError(problem, fix="download the whole model again") from error
    return model.eval().requires_grad_(False)
