"""The dataset check: every rule of ``RULES.md``, in one pass over the bytes and in bounded memory."""

from tunedrop.dataset.check import DatasetCheck
from tunedrop.dataset.profile import PROFILES, DataProfile, Method
from tunedrop.dataset.report import Estimate, Finding, Format, Report, Tokens
from tunedrop.dataset.together import check, combine

__all__ = [
    "PROFILES",
    "DataProfile",
    "DatasetCheck",
    "Estimate",
    "Finding",
    "Format",
    "Method",
    "Report",
    "Tokens",
    "check",
    "combine",
]
