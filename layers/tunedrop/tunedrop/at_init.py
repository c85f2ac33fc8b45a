"""What a function needs is made while Lambda initialises it, with a full processor, not inside the first request."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import cache

_TALKATIVE = ("boto3", "botocore", "httpcore2", "httpx2", "openai", "urllib3")
"""Their logs of less than warnings quote requests and answers: keys, secrets, datasets."""


def made_at_init[Made](make: Callable[[], Made]) -> Callable[[], Made]:
    """Makes the thing once: on Lambda when the handler is imported, elsewhere when it is first asked for.

    Elsewhere, because a test or a tool imports a handler without the environment that its settings are read from.
    """
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    made = cache(make)
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
        made()
    return made
