"""CLIP's text encoder: a prompt's 77 token ids to the 77 embeddings that the UNet attends to.

The text half of CLIP (arXiv:2103.00020, sec. 2.4), which learnt to match captions with images:
a GPT-2 (arXiv:1706.03762 with the norms moved to the front), whose causal self-attention lets
token i read tokens 0 to i.

    ids (B, 77)
    token_embedding[id] + position_embedding[place]     (B, 77, C)
    layer 0 … layer L-1                                 x = x + self_attn(layer_norm1(x))
                                                        x = x + mlp(layer_norm2(x))
    final_layer_norm                                    (B, 77, C): the UNet's `text`

            encoder             layers          width C   heads   MLP    activation
    SD 1    CLIP ViT-L/14       12              768       12      3072   quick GELU
    SD 2    OpenCLIP ViT-H/14   23 of its 24    1024      16      4096   GELU

Stable Diffusion 2 reads the output of the last layer but one; its files leave the last out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pare.config import TextConfig

OLD_END = 2
"""`eos_token_id` in configs written before July 2023; it is not the end token's id."""


class TextOutput(NamedTuple):
    """The encoder's output, under transformers' names; `[0]` is what Stable Diffusion reads."""

    last_hidden_state: Tensor
    """(B, n, C), after the final norm: the prompt embeddings."""
    pooler_output: Tensor
    """(B, C), the end token's: CLIP compares it with images; Stable Diffusion does not use it."""
    hidden_states: tuple[Tensor, ...]
    """(B, n, C) each, before the final norm: the layers' inputs, and the output of the last.
    "CLIP skip 2" is `final_layer_norm(hidden_states[-2])`."""


class TextEncoder(nn.Module):
    """CLIP's text encoder; tensors are named as on the Hub, `text_model.` in front."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)

    def forward(self, ids: Tensor) -> TextOutput:
        """Token ids (B, n), n at most 77."""
        return self.text_model(ids)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings, (vocabulary, C); named as in transformers."""
        return self.text_model.embeddings.token_embedding

    @property
    def device(self) -> torch.device:
        return self.text_model.final_layer_norm.weight.device


class TextTransformer(nn.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.eos_token_id = config.eos_token_id
        self.embeddings = Embeddings(config)
        self.encoder = LayerStack(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, ids: Tensor) -> TextOutput:
        hidden_states = self.encoder(self.embeddings(ids))
        normed = self.final_layer_norm(hidden_states[-1])
        return TextOutput(normed, self.pool(ids, normed), hidden_states)

    def pool(self, ids: Tensor, embeddings: Tensor) -> Tensor:
        """The embedding of each prompt's first end token, which has read the whole prompt."""
        # The end token has the highest id of CLIP's vocabulary; old files rely on that.
        ends = ids if self.eos_token_id == OLD_END else (ids == self.eos_token_id).int()
        return embeddings[torch.arange(len(ids), device=embeddings.device), ends.argmax(dim=-1)]


class Embeddings(nn.Module):
    """A learned vector for each token, and one for each place."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = empty_table(config.vocab_size, config.hidden_size)
        self.position_embedding = empty_table(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, n) -> (B, n, C)"""
        places = torch.arange(ids.shape[-1], device=ids.device)[None]
        return self.token_embedding(ids) + self.position_embedding(places)


def empty_table(rows: int, channels: int) -> nn.Embedding:
    """An embedding table without first weights.

    On the meta device, where models are built, drawing them would import PyTorch's compiler,
    which takes longer than everything else that loads a small model.
    """
    return nn.Embedding(rows, channels, _weight=torch.empty(rows, channels))


class LayerStack(nn.Module):
    """The layers; a module of its own because the Hub's names begin with `encoder.layers`."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, n, C) -> the input of every layer, and the output of the last"""
        hidden_states = [x]
        for layer in self.layers:
            hidden_states.append(layer(hidden_states[-1]))
        return tuple(hidden_states)


class Layer(nn.Module):
    """Causal self-attention and an MLP; each a pre-norm residual branch."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = CausalSelfAttention(config.hidden_size, config.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, C)"""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which a token attends to itself and the tokens before it."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, n, C) -> (B, n, C)"""
        query, key, value = (
            self.split_heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(attended.transpose(1, 2).reshape(x.shape))

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, n, heads * d) -> (B, heads, n, d)"""
        batch, tokens, channels = x.shape
        return x.view(batch, tokens, self.heads, channels // self.heads).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with an activation between them, for each token by itself."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.activation = F.gelu if config.hidden_act == "gelu" else quick_gelu
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), an approximation of GELU with which OpenAI trained CLIP
    (arXiv:1606.08415, sec. 2)."""
    return x * torch.sigmoid(1.702 * x)
