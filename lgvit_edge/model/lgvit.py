"""The early-exit Vision Transformer: a backbone with a head after some of its blocks."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from lgvit_edge.architecture.config import LGViTConfig
from lgvit_edge.errors import ConfigError
from lgvit_edge.model.backbones.backbone import Backbone, parts
from lgvit_edge.model.heads import exit_head


class LGViT(nn.Module):
    """An early-exit Vision Transformer: a backbone with exits (paper section 3.2).

    Stopping early is the runtime's job: here ``exit_logits`` computes every exit, and ``forward``
    is the baseline.
    """

    def __init__(self, config: LGViTConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.heads = nn.ModuleList(exit_head(config, exit) for exit in config.exits)
        self.apply(_initialise)
        self.backbone.embedding.reset()

    def with_exits(self, blocks: list[int]) -> LGViT:
        """Returns the same model with only the exits after these blocks; modules are shared.

        Raises:
            ConfigError: it has no exit after one of them.
        """
        exits = self.config.exits
        indices = [i for i, exit in enumerate(exits) if exit.block in blocks]
        if len(indices) != len(blocks):
            raise ConfigError(
                f"expected exits among those after blocks {[exit.block for exit in exits]}, "
                f"found {blocks}"
            )
        with torch.device("meta"):  # its modules are replaced below
            model = LGViT(self.config.replace(exits=tuple(exits[i] for i in indices)))
        model.backbone = self.backbone
        model.heads = nn.ModuleList(self.heads[i] for i in indices)
        return model.train(self.training)

    def resized(self, image_size: int) -> LGViT:
        """Returns the same model for images of another size; unchanged weights are shared.

        Positions are interpolated (ViT, DeiT); a Swin keeps its windows. The size to which images
        are resized before the crop grows with the crop.

        Raises:
            ConfigError: the size does not fit the patches or the exits.
        """
        old = self.config
        scaled = round(old.preprocess.resize * image_size / old.image_size)
        preprocess = dataclasses.replace(old.preprocess, resize=max(scaled, image_size))
        config = old.replace(image_size=image_size, preprocess=preprocess)
        with torch.device("meta"):
            model = LGViT(config)
        family, state = parts(config), self.state_dict()
        for name, tensor in self.backbone.state_dict().items():
            state[f"backbone.{name}"] = family.resized(name, tensor, old, config)
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(True).train(self.training)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Returns the baseline's logits, normalised ``[B, 3, H, W] float32 -> [B, C] float32``."""
        return self.backbone(pixel_values)  # type: ignore[no-any-return]

    def exit_logits(self, pixel_values: Tensor) -> Tensor:
        """Returns the logits of every exit, ``[B, 3, H, W] float32 -> [B, M + 1, C] float32``.

        Index m - 1 is exit m; the last is the final classifier.
        """
        states = self.hidden_states(pixel_values)
        pairs = zip(self.heads, self.config.exits, strict=True)
        logits = [head(states[exit.block]) for head, exit in pairs]
        return torch.stack([*logits, self.backbone.final(states[-1])], dim=1)

    def hidden_states(self, pixel_values: Tensor) -> list[Tensor]:
        """Returns the embedding (index 0) and the output of blocks 1..L, each ``[B, T, D]``.

        In a Swin, T and D change from stage to stage: ``LGViTConfig.hidden_shape``.
        """
        states = [self.backbone.embedding(pixel_values)]
        for block in self.backbone.blocks:
            states.append(block(states[-1]))
        return states


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
