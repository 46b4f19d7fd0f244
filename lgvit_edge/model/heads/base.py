"""The base of exit heads: a body turns patch tokens into features, a classifier into logits.

With prefix tokens (ViT, DeiT) the mean feature is added to each of them and classified. Everything
after a body's last non-linearity is then linear, so the deployed form takes the mean first and the
remaining layers act on one vector instead of N tokens. Without (Swin), features are normed,
averaged and classified: a norm stands before the mean, and only the body's own are folded.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.sizes import BlockConfig
from lgvit_edge.model.backbones.classifier import Classifier, MeanClassifier

# The authors' names of modules, below the exit's name; (name, i) is third i of a stacked tensor.
Names = dict[str, "str | tuple[str, int]"]


class Body(Protocol):
    """A module that computes features of patch tokens."""

    residual: bool  # whether the input is part of the features
    authors: Names  # the authors' names of the body's modules

    def features(self, patches: Tensor) -> Tensor:
        """Returns the features, ``[B, N, D] -> [B, N', D]``."""

    def pooled(self, prefix: int) -> nn.Module:
        """Returns a module for their mean without residual, ``[B, prefix + N, D] -> [B, 1, D]``."""

    def folded(self) -> nn.Module:
        """Returns a module for the features as they are exported, ``[B, N, D] -> [B, N', D]``."""


class ExitHead(nn.Module):
    """A classifier at an exit: it takes a block's output and returns logits."""

    def features(self, hidden: Tensor) -> Tensor:
        """Returns the features F_m of Eqs. 9 to 11, ``[B, T, D] -> [B, N', D]``."""
        raise NotImplementedError

    def classify(self, hidden: Tensor, features: Tensor) -> Tensor:
        """Returns the logits, ``[B, T, D], [B, N', D] -> [B, C]``."""
        raise NotImplementedError

    def forward(self, hidden: Tensor) -> Tensor:
        """Returns the logits, ``[B, T, D] -> [B, C]``."""
        return self.classify(hidden, self.features(hidden))

    def deployed(self) -> nn.Module:
        """Returns the head as it is exported, ``[B, T, D] -> logits [B, C]``."""
        return self

    def authors(self) -> Names:
        """Returns the authors' names of this head's modules."""
        raise NotImplementedError


def body_head(config: LGViTConfig, exit: ExitConfig, body: nn.Module) -> ExitHead:
    """Returns a head around ``body``; it reads prefix tokens if the backbone has them."""
    block = config.blocks[exit.block - 1]
    return (_TokenHead if config.prefix_tokens else _MeanHead)(config, block, body)


class _TokenHead(ExitHead):
    """A head that classifies the sum of mean feature and prefix token."""

    body: Body

    def __init__(self, config: LGViTConfig, block: BlockConfig, body: nn.Module) -> None:
        super().__init__()
        self.prefix_tokens, self.patches = config.prefix_tokens, block.grid**2
        self.body = body  # type: ignore[assignment]
        self.classifier = Classifier(block.dim, config.num_classes, config.classifiers)

    def features(self, hidden: Tensor) -> Tensor:
        return self.body.features(hidden[:, self.prefix_tokens :])

    def classify(self, hidden: Tensor, features: Tensor) -> Tensor:
        tokens = hidden[:, : len(self.classifier.linears)]
        logits: Tensor = self.classifier(tokens + features.mean(dim=1, keepdim=True))
        return logits

    def deployed(self) -> nn.Module:
        return _DeployedTokenHead(self)

    def authors(self) -> Names:
        names = classifier_names(len(self.classifier.linears), "classifier")
        return within("body", self.body.authors) | names


class _DeployedTokenHead(nn.Module):
    """Classified tokens, the residual's mean and the body's mean in one sum, then the classifier.

    Row j of ``select`` picks prefix token j and, where the body has a residual, adds the mean of
    the patches.
    """

    select: Tensor

    def __init__(self, head: _TokenHead) -> None:
        super().__init__()
        self.classifier, prefix = head.classifier, head.prefix_tokens
        rows = torch.eye(len(head.classifier.linears), prefix + head.patches)[None]
        if head.body.residual:
            rows = rows + mean_row(prefix, head.patches)
        self.register_buffer("select", rows)
        self.body = head.body.pooled(prefix)

    def forward(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.select @ hidden + self.body(hidden))
        return logits


class _MeanHead(ExitHead):
    """A head that norms, averages and classifies features, for backbones without prefix tokens."""

    body: Body

    def __init__(self, config: LGViTConfig, block: BlockConfig, body: nn.Module) -> None:
        super().__init__()
        self.body = body  # type: ignore[assignment]
        self.readout = MeanClassifier(block.dim, config.num_classes, eps=config.layer_norm_eps)

    def features(self, hidden: Tensor) -> Tensor:
        return self.body.features(hidden)

    def classify(self, hidden: Tensor, features: Tensor) -> Tensor:
        logits: Tensor = self.readout(features)
        return logits

    def deployed(self) -> nn.Module:
        return nn.Sequential(self.body.folded(), self.readout)

    def authors(self) -> Names:
        return within("body", self.body.authors) | {
            "readout.norm": "classifier.layernorm",
            "readout.classifier.linears.0": "classifier.classifier",
        }


def within(ours: str, names: Names, theirs: str = "") -> Names:
    """Returns the names of a module's parts, where it is called ``ours`` here, ``theirs`` there."""
    above = f"{theirs}." if theirs else ""
    return {
        f"{ours}.{key}": above + name if isinstance(name, str) else (above + name[0], name[1])
        for key, name in names.items()
    }


def block_names(attention: str) -> Names:
    """Returns Hugging Face's names, which are the authors', of the parts of an encoder block.

    ``attention`` is what they call the part that holds query, key and value.
    """
    return {
        **{f"attention.{p}": f"attention.{attention}.{p}" for p in ("query", "key", "value")},
        "attention.table": f"attention.{attention}.relative_position_bias_table",
        "attention.scale": f"attention.{attention}.logit_scale",
        "attention.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "fc1": "intermediate.dense",
        "gate": "intermediate.gate",
        "fc2": "output.dense",
    }


def classifier_names(count: int, ours: str) -> Names:
    """Returns Hugging Face's names, which are the authors', of one or two classifiers."""
    theirs = ["cls_classifier", "distillation_classifier"] if count == 2 else ["classifier"]
    return {f"{ours}.linears.{j}": name for j, name in enumerate(theirs)}


def mean_row(prefix: int, patches: int) -> Tensor:
    """Returns a row whose product with the tokens is the mean of the patches."""
    row = torch.full((1, 1, prefix + patches), 1 / patches)
    row[..., :prefix] = 0
    return row


def affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Returns scale and shift, each ``[D]``, of a BatchNorm at inference: ``scale * x + shift``."""
    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None  # our norms always track statistics
    scale = norm.weight / torch.sqrt(var + norm.eps)
    return scale, norm.bias - mean * scale


def as_image(tokens: Tensor, grid: int) -> Tensor:
    """Returns tokens as an image, ``[B, grid^2, D] -> [B, D, grid, grid]``."""
    image: Tensor = tokens.transpose(1, 2).unflatten(2, (grid, grid))
    return image
