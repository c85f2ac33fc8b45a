"""What survives when a function dies: stores, state machine, topic, queue, fine-tuning service, and whoever posts to us.

Everything happens on the timers of one thread. Functions are invoked through ``invoke``, and reach what is here through
:meth:`Cloud.call`, which is what lies behind an SDK's client.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import ClientError

from tests.world.machine import Machine, Reply, TaskFailed
from tests.world.service import Service
from tests.world.store import Store
from tests.world.table import Table
from tests.world.timers import Clock, Timers


def integrated(resource: str, given: Mapping[str, Any], *, table: Table, publish: Callable[[str], None]) -> Any:
    """What a task answers that calls a service and no function, or the TaskFailed that it ends in."""
    if resource == "arn:aws:states:::sns:publish":
        publish(given["Message"]["default"])
        return {"MessageId": "1"}
    prefix = "DynamoDb" if "aws-sdk" in resource else "DynamoDB"  # each integration spells it in its own way
    try:
        return table.update_item(**given)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        return TaskFailed(f"{prefix}.{code if code.endswith('Exception') else code + 'Exception'}", str(error))
