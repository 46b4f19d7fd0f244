"""The MLP head, which reads what the final classifier reads (SDN, PABEE, PCEE, BERxiT).

Each family chooses its form: that of its final classifier, or a tanh pooler on the class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lgvit_edge._support.optional import resolve
from lgvit_edge.architecture.config import ExitConfig, LGViTConfig
from lgvit_edge.architecture.families import FAMILIES
from lgvit_edge.model.backbones.backbone import parts
from lgvit_edge.model.backbones.classifier import Classifier
from lgvit_edge.model.heads.base import ExitHead, Names, classifier_names


class _MLPHead(ExitHead):
    """A head whose features are the block's output itself."""

    def features(self, hidden: Tensor) -> Tensor:
        return hidden


class _PoolerHead(_MLPHead):
    """A head that classifies ``tanh(pooler(x[:, 0]))``, without a norm."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(dim, dim)
        self.classifier = Classifier(dim, num_classes)

    def classify(self, hidden: Tensor, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.tanh(self.pooler(features[:, :1])))
        return logits

    def authors(self) -> Names:
        return {"pooler": "pooler.dense", **classifier_names(1, "classifier")}


class _ReadoutHead(_MLPHead):
    """A head in the form of the final classifier."""

    def __init__(self, readout: nn.Module) -> None:
        super().__init__()
        self.readout = readout

    def classify(self, hidden: Tensor, features: Tensor) -> Tensor:
        logits: Tensor = self.readout(features)
        return logits

    def authors(self) -> Names:
        classifier = self.readout.classifier
        assert isinstance(classifier, Classifier)  # in the authors' families
        names = classifier_names(len(classifier.linears), "readout.classifier")
        return {"readout.norm": "layernorm", **names}


def head(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns an MLP head in the form that the family chooses."""
    mlp_head: ExitHead = resolve(FAMILIES[config.family].mlp_head)(config, exit)
    return mlp_head


def pooler(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns an MLP head with a pooler, where the final classifier reads the class token."""
    if config.pooling != "token":
        return readout(config, exit)
    return _PoolerHead(config.blocks[exit.block - 1].dim, config.num_classes)


def readout(config: LGViTConfig, exit: ExitConfig) -> ExitHead:
    """Returns an MLP head in the form of the final classifier."""
    return _ReadoutHead(parts(config).final(config, config.blocks[exit.block - 1].dim))
