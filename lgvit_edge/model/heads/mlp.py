"""The MLP head, which reads what the final classifier reads (SDN, PABEE, PCEE, BERxiT).

ViT: a tanh pooler on the class token. DeiT: norm, then each classifier on its token. Swin: norm,
mean, classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.model.backbones.classifier import Classifier, MeanClassifier, TokenClassifier
from lgvit_edge.model.heads.base import ExitHead, Names, classifier_names


class _MLPHead(ExitHead):
    """Nothing between a block's output and its classifier: features are the tokens themselves."""

    def features(self, hidden: Tensor) -> Tensor:
        """``[B, T, D] -> [B, T, D]``, the same."""
        return hidden


class PoolerHead(_MLPHead):
    """``classifier(tanh(dense(x[:, 0])))``, without a norm: ViT."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(dim, dim)
        self.classifier = Classifier(dim, num_classes)

    def classify(self, hidden: Tensor, features: Tensor) -> Tensor:
        """``[B, T, D] -> logits [B, C]``."""
        logits: Tensor = self.classifier(torch.tanh(self.pooler(features[:, :1])))
        return logits

    def authors(self) -> Names:
        """What the authors call this head's modules."""
        return {"pooler": "pooler.dense", **classifier_names(self.classifier)}


class ReadoutHead(_MLPHead):
    """The final classifier's form at an exit: DeiT and Swin."""

    def __init__(self, readout: TokenClassifier | MeanClassifier) -> None:
        super().__init__()
        self.readout = readout

    def classify(self, hidden: Tensor, features: Tensor) -> Tensor:
        """``[B, T, D] -> logits [B, C]``."""
        logits: Tensor = self.readout(features)
        return logits

    def authors(self) -> Names:
        """What the authors call this head's modules."""
        names = classifier_names(self.readout.classifier, "readout.classifier")
        return {"readout.norm": "layernorm", **names}


def head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """An MLP head in the family's form."""
    dim, classes = config.blocks[exit.block - 1].dim, config.num_classes
    eps = config.layer_norm_eps
    if config.family == "vit":
        return PoolerHead(dim, classes)
    if config.family == "deit":
        return ReadoutHead(TokenClassifier(dim, classes, config.classifiers, eps=eps))
    return ReadoutHead(MeanClassifier(dim, classes, eps=eps))
