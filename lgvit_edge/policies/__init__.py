"""Exit policies: rules that decide, from the logits so far, whether to stop."""

from lgvit_edge.policies.base import Policy, Tracker
from lgvit_edge.policies.rules import (
    Confidence,
    Ensemble,
    Entropy,
    FixedExit,
    Never,
    Patience,
    PatientConfidence,
)
from lgvit_edge.policies.text import POLICIES, from_json, parse

__all__ = [
    "Confidence",
    "Ensemble",
    "Entropy",
    "FixedExit",
    "from_json",
    "Never",
    "parse",
    "Patience",
    "PatientConfidence",
    "POLICIES",
    "Policy",
    "Tracker",
]
