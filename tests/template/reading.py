"""What the tests of the template read out of it, and out of the state machine."""

from collections.abc import Iterator, Mapping
from typing import Any

from local import deploy

MACHINES = {name: deploy.ROOT / "statemachine" / f"{name}.asl.yaml" for name in ("finetune", "adapter")}
FOLDERS = sorted(handler.parent.name for handler in (deploy.ROOT / "functions").glob("*/handler.py"))
ENDS = ("Succeed", "Fail")


def stem(folder: str) -> str:
    """What a function's resources are called after: `create_job` becomes `CreateJob`."""
    return "".join(word.capitalize() for word in folder.split("_"))


def of_type(template: Any, kind: str) -> dict[str, Any]:
    """The properties of the resources of a type, by logical id."""
    return {
        name: resource.get("Properties", {})
        for name, resource in template["Resources"].items()
        if resource["Type"] == kind
    }


def own_variables(function: Any) -> dict[str, Any]:
    """A function's environment without what all functions share."""
    return dict(function.get("Environment", {}).get("Variables", {}))


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def references(value: Any) -> Iterator[str]:
    """The logical ids that an expression refers to; not those inside the text of `Fn::Sub`."""
    if isinstance(value, dict):
        if "Ref" in value:
            yield value["Ref"]
        if "Fn::GetAtt" in value:
            yield value["Fn::GetAtt"][0]
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def statements(template: Any) -> Iterator[tuple[str, Any]]:
    """Every statement of every policy in an expanded template, with its resource's logical id."""
    for name, resource in template["Resources"].items():
        properties = resource.get("Properties", {})
        documents = [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
        documents += [properties[key] for key in ("PolicyDocument", "AssumeRolePolicyDocument") if key in properties]
        for document in documents:
            for statement in listed(document["Statement"]):
                yield name, statement


def targets(state: Mapping[str, Any]) -> set[str]:
    """Where a state can lead."""
    found = {state[key] for key in ("Next", "Default") if key in state}
    found |= {choice["Next"] for choice in state.get("Choices", [])}
    return found | {catch["Next"] for catch in state.get("Catch", [])}


def reachable(states: Mapping[str, Any], start: str, without: frozenset[str] = frozenset()) -> set[str]:
    """The states that can be reached from `start`, itself included, when those in `without` cannot be entered."""
    found: set[str] = set()
    ahead = [start]
    while ahead:
        name = ahead.pop()
        if name not in found and name not in without:
            found.add(name)
            ahead.extend(targets(states[name]))
    return found


def tasks(machine: Any) -> dict[str, Any]:
    return {name: state for name, state in machine["States"].items() if state["Type"] == "Task"}


def function_of(state: Mapping[str, Any]) -> str | None:
    """The folder of the function that a task calls; None where it calls a service."""
    return next((folder for folder in FOLDERS if state["Resource"] == f"${{{stem(folder)}FunctionArn}}"), None)
