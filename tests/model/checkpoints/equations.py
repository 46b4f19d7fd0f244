"""The published equations on foreign state dicts, straight-line, one line each where one will do.

They share no code with the package, take a state dict under its authors' names, and work on whole
feature maps ``[B, H, W, D]`` or tokens ``[B, T, D]``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


def assert_reproduced(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5, relative where the expected value is larger than 1."""
    assert actual.shape == expected.shape, f"{actual.shape} for {expected.shape}"
    worst = ((actual.detach() - expected).abs() / expected.abs().clamp(min=1.0)).max().item()
    assert worst <= 1e-5, f"off by {worst}"
    spread = expected.std().item()
    assert spread > 0.1, f"a reference that says nothing would pass too: {spread}"


# Layers.


def linear(state: State, name: str, x: Tensor) -> Tensor:
    y = x @ state[f"{name}.weight"].T
    return y + state[f"{name}.bias"] if f"{name}.bias" in state else y


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return normed * state[f"{name}.weight"] + state[f"{name}.bias"]


def chain(segments: Iterable[Any], x: Tensor) -> Tensor:
    """Every exit's logits, one exported segment after the other: ``[B, M + 1, C]``."""
    *others, last = (segment.module for segment in segments)
    logits = []
    for module in others:
        x, exit_logits = module(x)
        logits.append(exit_logits)
    return torch.stack([*logits, last(x)], dim=1)


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    """On channels-last ``[B, H, W, D]``."""
    normed = (x - state[f"{name}.running_mean"]) / (state[f"{name}.running_var"] + 1e-5).sqrt()
    return normed * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """``[B, T, D]`` each, bias ``[heads, T, T]``; head after head, each on its own columns."""
    width = q.shape[-1] // heads
    mixed = []
    for h in range(heads):
        columns = slice(h * width, (h + 1) * width)
        scores = q[..., columns] @ k[..., columns].transpose(1, 2) * width**-0.5
        scores = scores if bias is None else scores + bias[h]
        mixed.append(torch.softmax(scores, dim=-1) @ v[..., columns])
    return torch.cat(mixed, dim=-1)


def patches(state: State, name: str, pixels: Tensor) -> Tensor:
    """``[B, H, W, D]``."""
    kernel = state[f"{name}.weight"]
    side = kernel.shape[-1]
    embedded = functional.conv2d(pixels, kernel, state[f"{name}.bias"], stride=side)
    return embedded.permute(0, 2, 3, 1)


# ViT and DeiT.


def embed(
    state: State, pixels: Tensor, projection: str, position: str, tokens: list[str]
) -> Tensor:
    rows = [state[name].expand(len(pixels), 1, -1) for name in tokens]
    return torch.cat([*rows, patches(state, projection, pixels).flatten(1, 2)], 1) + state[position]


def encoder_layer(state: State, name: str, x: Tensor, heads: int, eps: float) -> Tensor:
    """One block of ViT or DeiT under Hugging Face's names."""
    n = layer_norm(state, f"{name}.layernorm_before", x, eps)
    mixed = attend(*query_key_value(state, f"{name}.attention.attention", n), heads)
    x = x + linear(state, f"{name}.attention.output.dense", mixed)
    return feed_forward(state, name, x, eps)


def feed_forward(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    """The second half of a block under Hugging Face's names."""
    n = layer_norm(state, f"{name}.layernorm_after", x, eps)
    inner = gelu(linear(state, f"{name}.intermediate.dense", n))
    return x + linear(state, f"{name}.output.dense", inner)


def query_key_value(state: State, name: str, x: Tensor) -> list[Tensor]:
    return [linear(state, f"{name}.{part}", x) for part in ("query", "key", "value")]


def hidden_states(
    state: State, pixels: Tensor, prefix: str, *, heads: int, depth: int, eps: float
) -> list[Tensor]:
    """Hugging Face names: the embedding, then the output of each block."""
    e = f"{prefix}.embeddings"
    names = [n for n in (f"{e}.cls_token", f"{e}.distillation_token") if n in state]
    x = embed(state, pixels, f"{e}.patch_embeddings.projection", f"{e}.position_embeddings", names)
    states = [x]
    for i in range(depth):
        x = encoder_layer(state, f"{prefix}.encoder.layer.{i}", x, heads, eps)
        states.append(x)
    return states


def token_logits(state: State, prefix: str, x: Tensor) -> Tensor:
    """The class token's classifier, or the mean of two, each on its token; names below prefix."""
    if f"{prefix}classifier.weight" in state:
        return linear(state, f"{prefix}classifier", x[:, 0])
    first = linear(state, f"{prefix}cls_classifier", x[:, 0])
    return (first + linear(state, f"{prefix}distillation_classifier", x[:, 1])) / 2


def final_logits(state: State, prefix: str, x: Tensor, eps: float) -> Tensor:
    """The final norm and the classifiers of the whole network."""
    return token_logits(state, "", layer_norm(state, f"{prefix}.layernorm", x, eps))


# What heads do to a feature map.


def lph(state: State, mlp: str, p: Tensor) -> Tensor:
    """1x1 -> GELU -> BN -> dw3x3 -> GELU -> BN -> 1x1 -> BN, plus p; ``[B, H, W, D]``."""

    def point(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"][:, :, 0, 0].T + state[f"{name}.bias"]

    x = batch_norm(state, f"{mlp}.conv1.2", gelu(point(f"{mlp}.conv1.0", p)))
    if f"{mlp}.proj.weight" in state:
        kernel, bias = state[f"{mlp}.proj.weight"], state[f"{mlp}.proj.bias"]
        x = bias + sum(s * kernel[:, 0, i, j] for i, j, s in shifted(x))
        x = batch_norm(state, f"{mlp}.proj_bn", gelu(x))
    return batch_norm(state, f"{mlp}.conv2.1", point(f"{mlp}.conv2.0", x)) + p


def shifted(x: Tensor) -> list[tuple[int, int, Tensor]]:
    """What each tap (i, j) of a 3x3 kernel sees of ``[B, H, W, D]``, zeros outside."""
    height, width = x.shape[1:3]
    padded = functional.pad(x, (0, 0, 1, 1, 1, 1))
    return [(i, j, padded[:, i : i + height, j : j + width]) for i in range(3) for j in range(3)]


def conv_normal(state: State, mlp: str, p: Tensor) -> Tensor:
    """Dense 3x3 -> GELU -> BN."""
    kernel = state[f"{mlp}.conv.0.weight"]
    x = state[f"{mlp}.conv.0.bias"] + sum(s @ kernel[:, :, i, j].T for i, j, s in shifted(p))
    return batch_norm(state, f"{mlp}.conv.2", gelu(x))


def gah(state: State, mlp: str, p: Tensor, window: int) -> Tensor:
    """Subsample, 8-head self-attention without qkv bias, projection; ``[B, N', D]``."""
    x = p[:, ::window, ::window].flatten(1, 2)
    q, k, v = (x @ state[f"{mlp}.qkv.weight"].T).split(p.shape[-1], dim=-1)
    return linear(state, f"{mlp}.proj", attend(q, k, v, heads=8))


def self_attention(state: State, mlp: str, p: Tensor, heads: int) -> Tensor:
    """Full multi-head self-attention, no residual; ``[B, N, D]``."""
    q, k, v = query_key_value(state, f"{mlp}.attention", p.flatten(1, 2))
    return linear(state, f"{mlp}.output.dense", attend(q, k, v, heads))


def features(state: State, mlp: str, kind: str, p: Tensor, heads: int) -> Tensor:
    """``[B, N', D]``; ``kind`` is the authors' name of a head."""
    if kind in ("conv1_1", "conv2_1"):
        r = lph(state, mlp, p)
    elif kind == "conv_normal":
        r = conv_normal(state, mlp, p)
    elif kind == "self_attention":
        r = self_attention(state, mlp, p, heads)
    else:
        r = gah(state, mlp, p, int(kind.removeprefix("attention_r")))
    return r.reshape(len(r), -1, r.shape[-1])


def exit_logits(
    state: State, k: int, kind: str, hidden: Tensor, *, tokens: int, heads: int, eps: float
) -> Tensor:
    """Exit k of the authors' ViT or DeiT."""
    name = f"deit.encoder.highway.{k}"
    if kind == "vit":
        hidden = encoder_layer(state, f"{name}.layer", hidden, heads, eps)
        return token_linear(state, f"{name}.classifier", hidden, tokens, eps)
    if kind == "linear":
        return token_linear(state, name, hidden, tokens, eps)
    side = round((hidden.shape[1] - tokens) ** 0.5)
    p = hidden[:, tokens:].unflatten(1, (side, side))
    mean = features(state, f"{name}.mlp", kind, p, heads).mean(1)
    return token_logits(state, f"{name}.", hidden[:, :tokens] + mean[:, None])


def token_linear(state: State, name: str, x: Tensor, tokens: int, eps: float) -> Tensor:
    """The authors' "linear": a tanh pooler for ViT, a norm for DeiT."""
    if tokens == 1:
        pooled = torch.tanh(linear(state, f"{name}.pooler.dense", x[:, :1]))
        return token_logits(state, f"{name}.", pooled)
    return token_logits(state, f"{name}.", layer_norm(state, f"{name}.layernorm", x, eps))


# Swin, on maps.


def swin_states(
    state: State,
    pixels: Tensor,
    *,
    depths: list[int],
    heads: list[int],
    window: int,
    eps: float,
    prefix: str = "swin",
) -> list[Tensor]:
    """Output of each block, before any merging; index 0 is the embedding."""
    e, layers = f"{prefix}.embeddings", f"{prefix}.encoder.layers"
    x = patches(state, f"{e}.patch_embeddings.projection", pixels)
    states = [layer_norm(state, f"{e}.norm", x, 1e-5)]
    for s, depth in enumerate(depths):
        x = states[-1] if s == 0 else merge(state, f"{layers}.{s - 1}.downsample", states[-1])
        for b in range(depth):
            shift = window // 2 if b % 2 else 0
            x = swin_block(state, f"{layers}.{s}.blocks.{b}", x, heads[s], window, shift, eps)
            states.append(x)
    return states


def merge(state: State, name: str, x: Tensor) -> Tensor:
    odd = x.shape[1] % 2
    x = functional.pad(x, (0, 0, 0, odd, 0, odd))
    quads = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
    normed = layer_norm(state, f"{name}.norm", torch.cat(quads, dim=-1), 1e-5)
    return linear(state, f"{name}.reduction", normed)


def swin_block(
    state: State, name: str, x: Tensor, heads: int, window: int, shift: int, eps: float
) -> Tensor:
    size = x.shape[1]
    if size <= window:
        window, shift = size, 0
    n = layer_norm(state, f"{name}.layernorm_before", x, eps)
    padding = -size % window
    n = functional.pad(n, (0, 0, 0, padding, 0, padding))
    side = size + padding
    n = torch.roll(n, (-shift, -shift), (1, 2))
    region = torch.zeros(side, side)
    bands = [(0, side - window), (side - window, side - shift), (side - shift, side)]
    for i, (top, bottom) in enumerate(bands):
        for j, (left, right) in enumerate(bands):
            region[top:bottom, left:right] = 3 * i + j
    bias = relative_bias(state[f"{name}.attention.self.relative_position_bias_table"], window)
    mixed = torch.zeros_like(n)
    for top in range(0, side, window):
        for left in range(0, side, window):
            rows, columns = slice(top, top + window), slice(left, left + window)
            tokens, label = n[:, rows, columns].flatten(1, 2), region[rows, columns].flatten()
            mask = torch.where(label[:, None] == label[None, :], 0.0, -100.0)
            q, k, v = query_key_value(state, f"{name}.attention.self", tokens)
            out = attend(q, k, v, heads, bias + mask)
            out = linear(state, f"{name}.attention.output.dense", out)
            mixed[:, rows, columns] = out.unflatten(1, (window, window))
    mixed = torch.roll(mixed, (shift, shift), (1, 2))[:, :size, :size]
    return feed_forward(state, name, x + mixed, eps)


def relative_bias(table: Tensor, window: int) -> Tensor:
    """``[heads, w^2, w^2]``: query i, key j, by how far i lies below and right of j."""
    assert len(table) == (2 * window - 1) ** 2
    bias = torch.empty(table.shape[1], window**2, window**2)
    for i in range(window**2):
        for j in range(window**2):
            down, right = i // window - j // window, i % window - j % window
            bias[:, i, j] = table[(down + window - 1) * (2 * window - 1) + right + window - 1]
    return bias


def swin_linear(state: State, name: str, x: Tensor, eps: float, classifier: str = "") -> Tensor:
    """Norm, mean over all tokens, classifier; ``[B, H, W, D]`` or ``[B, N, D]``."""
    normed = layer_norm(state, f"{name}.layernorm", x, eps).flatten(1, -2)
    return linear(state, classifier or f"{name}.classifier", normed.mean(1))


def swin_exit(state: State, name: str, kind: str, x: Tensor, eps: float) -> Tensor:
    """One exit of the authors' Swin; its norm has the configuration's eps."""
    if kind == "linear":
        return swin_linear(state, name, x, eps)
    if kind == "vit":  # a DeiT block, whose own eps is another
        r = encoder_layer(state, f"{name}.layer", x.flatten(1, 2), 8, 1e-12)
    else:
        r = features(state, f"{name}.mlp", kind, x, heads=0)
    return swin_linear(state, f"{name}.classifier", r, eps)
