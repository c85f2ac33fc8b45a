"""A function may do what it does, and nothing else: what the sample events needed is what the template grants."""

import pytest
from samtranslator.yaml_helper import yaml_parse

from local import deploy
from tests.functions.test_events import FILES
from tests.functions.world import FUNCTIONS, World, resource

# What Lambda does itself, in the function's name, to take messages from a queue.
OF_A_QUEUE = {"sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"}


@pytest.mark.parametrize("folder", FUNCTIONS)
def test_function_is_granted_what_it_calls(folder: str, the_world: World) -> None:
    if not the_world.handled >= set(FILES):
        pytest.skip("looks at what test_events.py, run before it as a whole, has needed")
    function = yaml_parse(deploy.TEMPLATE.read_text())["Resources"][resource(folder)]["Properties"]
    (statement,) = (statement for policy in function["Policies"] for statement in policy["Statement"])
    takes_messages = any(event["Type"] == "SQS" for event in function.get("Events", {}).values())

    assert set(statement["Action"]) == the_world.calls[folder] | (OF_A_QUEUE if takes_messages else set())
