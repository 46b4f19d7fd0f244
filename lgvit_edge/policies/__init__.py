"""Exit policies: rules that decide, from the logits so far, whether to stop."""

from lgvit_edge.policies.base import (
    POLICIES,
    Departures,
    Policy,
    Rule,
    ThresholdPolicy,
    Tracker,
    register_policy,
)
from lgvit_edge.policies.memory import Averages, Memory
from lgvit_edge.policies.rules import (
    Confidence,
    Ensemble,
    Entropy,
    FixedExit,
    Never,
    Patience,
    PatientConfidence,
)
from lgvit_edge.policies.text import as_policy, described, from_json, parse, typed

__all__ = [
    "as_policy",
    "Averages",
    "Confidence",
    "Departures",
    "described",
    "Ensemble",
    "Entropy",
    "FixedExit",
    "from_json",
    "Memory",
    "Never",
    "parse",
    "Patience",
    "PatientConfidence",
    "POLICIES",
    "Policy",
    "register_policy",
    "Rule",
    "ThresholdPolicy",
    "Tracker",
    "typed",
]
