"""The dataset check: every rule of ``RULES.md``, in one pass over the bytes and in bounded memory."""

from tunedrop.dataset.check import DatasetCheck
from tunedrop.dataset.report import Estimate, Finding, Format, Report, Tokens
from tunedrop.dataset.together import check, combine
from tunedrop.providers import DataProfile, Method

__all__ = [
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
