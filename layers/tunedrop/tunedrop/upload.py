"""Uploading: check a dataset, and send it to the fine-tuning service once it is known to be valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tunedrop.bucket import Bucket, StoredObject
from tunedrop.dataset import BYTE_ORDER_MARK, Finding, Report
from tunedrop.errors import Duplicate, Missing, OverBudget, Rejected, Superseded, Transient
from tunedrop.estimate import Checker
from tunedrop.events import DATASET, SPECIFICATION, VALIDATION
from tunedrop.job_specification import JobSpecification
from tunedrop.ledger import Ledger
from tunedrop.provider import Provider, ProviderFile
from tunedrop.runs import Run, results_key
from tunedrop.settings import UploadSettings
from tunedrop.steps import Done

MAX_METADATA = 16
