"""Deploys the real `template.yaml` on the emulated AWS.

The template is expanded by SAM's own translator. What moto's CloudFormation knows is deployed by it, and it also works
out every expression of the template. The rest is created through the services' APIs: secrets, the subscriptions, and
the state machine, because moto's CloudFormation puts those where they are not executed and ignores their substitutions.
The functions go to `local.functions`, the routes to `local.http_api`.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import yaml
from botocore.config import Config
from samtranslator.translator.managed_policy_translator import ManagedPolicyLoader
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse
from tunedrop.providers import InvalidProviders, UnknownProvider, is_base_url, profile_of, read_profiles

from local.functions import Function
from local.http_api import Route
from local.queues import EventSourceMapping

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "template.yaml"
BUILT_LAYERS = {"layers/dependencies": ROOT / ".venv/layer"}  # made by `make .venv`; the code layer needs no building

STACK = "tunedrop"
REGION = "us-east-1"
ACCOUNT = "123456789012"

_BY_CLOUDFORMATION = ("AWS::DynamoDB::Table", "AWS::Logs::LogGroup", "AWS::SNS::Topic", "AWS::SQS::Queue")
_BY_US = (
    "AWS::Lambda::EventSourceMapping",
    "AWS::Lambda::Function",
    "AWS::Lambda::LayerVersion",
    "AWS::SNS::Subscription",
    "AWS::SecretsManager::Secret",
    "AWS::StepFunctions::StateMachine",
)
# Guards between services, which do not guard each other here, and what watches them.
_WITHOUT_EFFECT = (
    "AWS::CloudWatch::Alarm",
    "AWS::IAM::Role",
    "AWS::Lambda::Permission",
    "AWS::Logs::MetricFilter",
    "AWS::SQS::QueuePolicy",
)
_HTTP_API = ("AWS::ApiGatewayV2::Api", "AWS::ApiGatewayV2::Stage")

_PACKAGED = "s3://packaged/"  # where `sam package` would have put a folder


class InvalidParameter(ValueError):
    """A value was given for a parameter that the template does not have, or one that it does not allow."""


@dataclass(frozen=True)
class Deployment:
    """What was deployed. `outputs` and `parameters` are the template's own."""

    functions: tuple[Function, ...]
    routes: tuple[Route, ...]
    queues: tuple[EventSourceMapping, ...]
    outputs: Mapping[str, str]
    parameters: Mapping[str, str]


def client(service: str, endpoint: str) -> Any:
    """A client for a service of the emulated AWS."""
    return boto3.client(
        service,
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id="testing",
        aws_secret_access_key="testing",  # noqa: S106 - the emulation asks for any
        config=Config(retries={"total_max_attempts": 1}),
    )


def parameters_of(template: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, str]:
    """The template's parameters with their defaults, `given` ones in their place.

    Raises `InvalidParameter`.
    """
    declared = template["Parameters"]
    for name, value in given.items():
        if name not in declared:
            nearest = difflib.get_close_matches(name, declared, 1)
            hint = f"; did you mean {nearest[0]}?" if nearest else f"; there are {', '.join(declared)}"
            raise InvalidParameter(f"template.yaml has no parameter {name}{hint}")
        allowed = [str(choice) for choice in declared[name].get("AllowedValues", [])]
        if allowed and value not in allowed:
            raise InvalidParameter(f"{name} must be one of {', '.join(allowed)}")
        if declared[name]["Type"] == "Number":
            _check_number(name, value, declared[name])
    return {name: given.get(name, str(facts.get("Default", ""))) for name, facts in declared.items()}


def _check_number(name: str, value: str, facts: Mapping[str, Any]) -> None:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidParameter(f"{name} must be a number")
    if number < facts.get("MinValue", -math.inf):
        raise InvalidParameter(f"{name} must be at least {facts['MinValue']}")
    if number > facts.get("MaxValue", math.inf):
        raise InvalidParameter(f"{name} must be at most {facts['MaxValue']}")


def check(parameters: Mapping[str, str]) -> None:
    """Raises `InvalidParameter` where `deploy` or the functions would not take `parameters`."""
    values = parameters_of(yaml_parse(TEMPLATE.read_text()), parameters)
    try:
        profile_of(values["Provider"], read_profiles(values["Providers"]))
    except UnknownProvider as error:
        raise InvalidParameter(f"Provider: {error}") from None
    except InvalidProviders as error:
        raise InvalidParameter(str(error)) from None
    if values["ProviderBaseUrl"] and not is_base_url(values["ProviderBaseUrl"]):
        raise InvalidParameter("ProviderBaseUrl must be an https address, or one of this machine")


def deploy(endpoint: str, parameters: Mapping[str, str], secrets: Mapping[str, str]) -> Deployment:
    """Deploys template.yaml; `secrets` are the values of its secrets, by logical id.

    Raises `InvalidParameter` for parameters that the template does not allow.
    """
    source = yaml_parse(TEMPLATE.read_text())
    values = parameters_of(source, parameters)
    routes = tuple(_routes(source["Resources"]))
    expanded = _expand(source, values)
    resources = {name: facts for name, facts in expanded["Resources"].items() if _wanted(facts, expanded, values)}
    _check_types(resources)

    names = _names_of_our_own(resources, endpoint, secrets)
    ours = {name: facts for name, facts in resources.items() if facts["Type"] in _BY_US}
    resolved, outputs = _cloudformation(endpoint, expanded, resources, ours, names, values)

    functions = tuple(
        _function(name, facts["Properties"], resources) for name, facts in resolved.items() if _is(facts, "Function")
    )
    for facts in resolved.values():
        if _is(facts, "Subscription"):
            _subscribe(endpoint, facts["Properties"])
    queues = tuple(
        _queue(endpoint, facts["Properties"]) for facts in resolved.values() if _is(facts, "EventSourceMapping")
    )
    for name, facts in resolved.items():
        if _is(facts, "StateMachine"):
            _state_machine(endpoint, name, facts["Properties"])
    return Deployment(functions, routes, queues, outputs, values)


def _is(facts: Mapping[str, Any], kind: str) -> bool:
    return str(facts["Type"]).rsplit("::", 1)[1] == kind


def _expand(source: dict[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    for facts in source["Resources"].values():
        for name in ("CodeUri", "ContentUri", "DefinitionUri"):
            if name in facts.get("Properties", {}):
                facts["Properties"][name] = _PACKAGED + facts["Properties"][name]

    class NoManagedPolicies(ManagedPolicyLoader):
        def __init__(self) -> None:
            super().__init__(None)

        def load(self) -> dict[str, str]:
            return {}

    os.environ["AWS_DEFAULT_REGION"] = REGION  # where the translator looks for it
    return transform(source, dict(values), NoManagedPolicies())


def _wanted(facts: Mapping[str, Any], template: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    condition = facts.get("Condition")
    return condition is None or _holds(template["Conditions"][condition], values)


def _holds(condition: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    """Works out the few forms of condition that a resource of the template hangs on."""
    ((function, arguments),) = condition.items()
    if function == "Fn::Not":
        return not _holds(arguments[0], values)
    if function == "Fn::Equals":
        left, right = (values[side["Ref"]] if isinstance(side, dict) else side for side in arguments)
        return bool(left == right)
    raise NotImplementedError(f"a resource's condition uses {function}, which local/deploy.py does not know yet")


def _check_types(resources: Mapping[str, Any]) -> None:
    known = (*_BY_CLOUDFORMATION, *_BY_US, *_WITHOUT_EFFECT, *_HTTP_API)
    for name, facts in resources.items():
        if facts["Type"] not in known:
            raise NotImplementedError(f"local/deploy.py does not know {facts['Type']} yet, which {name} is")


def _routes(resources: Mapping[str, Any]) -> Iterable[Route]:
    for name, facts in resources.items():
        for event in facts.get("Properties", {}).get("Events", {}).values():
            if event["Type"] == "HttpApi":
                yield Route(event["Properties"]["Method"].upper(), event["Properties"]["Path"], name)


def _names_of_our_own(resources: Mapping[str, Any], endpoint: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """What stands for a resource that CloudFormation does not create, wherever the template refers to it."""
    names = {}
    for name, facts in resources.items():
        if _is(facts, "Secret"):
            names[name] = _secret(endpoint, name, facts["Properties"], secrets.get(name))
        elif _is(facts, "StateMachine"):
            names[name] = f"arn:aws:states:{REGION}:{ACCOUNT}:stateMachine:{name}"
        elif _is(facts, "Function"):
            names[name] = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"
        elif facts["Type"] not in _BY_CLOUDFORMATION:
            names[name] = name
    return names


def _secret(endpoint: str, name: str, properties: Mapping[str, Any], value: str | None) -> str:
    text = properties.get("SecretString") if value is None else value
    arguments = {"Name": f"{STACK}-{name}"} | ({"SecretString": text} if text is not None else {})
    return str(client("secretsmanager", endpoint).create_secret(**arguments)["ARN"])


def _cloudformation(
    endpoint: str,
    template: Mapping[str, Any],
    resources: Mapping[str, Any],
    ours: Mapping[str, Any],
    names: Mapping[str, str],
    values: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, str]]:
    """Creates what moto's CloudFormation can, and lets it work out the properties of what is `ours`.

    Every expression in them is handed over as an output of the stack, and its value put in its place.
    """
    theirs = {name: facts for name, facts in resources.items() if facts["Type"] in _BY_CLOUDFORMATION}
    expressions: dict[str, Any] = {}

    def hand_over(value: Any) -> Any:
        if isinstance(value, dict):
            if len(value) == 1 and next(iter(value)) in ("Ref", "Fn::GetAtt", "Fn::If", "Fn::Sub", "Fn::Join"):
                known = _known(value, names)
                if known is not None:
                    return known
                mark = f"Expression{len(expressions)}"
                expressions[mark] = {"Value": _with_known(value, names)}
                return {"mark": mark}
            return {key: hand_over(item) for key, item in value.items()}
        return [hand_over(item) for item in value] if isinstance(value, list) else value

    handed = hand_over({name: _relevant(facts) for name, facts in ours.items()})
    outputs = {
        name: {"Value": _with_known(facts["Value"], names)} for name, facts in template.get("Outputs", {}).items()
    }
    body = {
        "Parameters": template["Parameters"],
        "Conditions": template.get("Conditions", {}),
        "Resources": _with_known(theirs, names),
        "Outputs": {**outputs, **expressions},
    }
    cloudformation = client("cloudformation", endpoint)
    given = [{"ParameterKey": name, "ParameterValue": value} for name, value in values.items()]
    cloudformation.create_stack(StackName=STACK, TemplateBody=json.dumps(body), Parameters=given)
    stack = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]
    worked_out = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}

    def put_in(value: Any) -> Any:
        if isinstance(value, dict):
            if value.keys() == {"mark"}:
                return worked_out[value["mark"]]
            return {key: put_in(item) for key, item in value.items()}
        return [put_in(item) for item in value] if isinstance(value, list) else value

    return put_in(handed), {name: worked_out[name] for name in outputs}


def _relevant(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A resource without what only AWS itself makes use of."""
    left_out = ("Role", "RoleArn", "LoggingConfig", "LoggingConfiguration", "Architectures", "Tags", "Code", "Content")
    properties = {name: value for name, value in facts["Properties"].items() if name not in left_out}
    return {"Type": facts["Type"], "Properties": properties}


def _known(value: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    if "Ref" in value:
        return names.get(value["Ref"])
    attribute = value.get("Fn::GetAtt")
    return names.get(attribute[0]) if attribute and attribute[1] in ("Arn", "Id") else None


def _with_known(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        if isinstance(value.get("Fn::Sub"), str):
            filled = re.sub(r"\$\{(\w+)(?:\.Arn)?\}", lambda found: names.get(found[1], found[0]), value["Fn::Sub"])
            return {"Fn::Sub": filled}
        known = _known(value, names) if len(value) == 1 else None
        return known if known is not None else {key: _with_known(item, names) for key, item in value.items()}
    return [_with_known(item, names) for item in value] if isinstance(value, list) else value


def _function(name: str, properties: Mapping[str, Any], resources: Mapping[str, Any]) -> Function:
    layers = (resources[layer]["Properties"]["Content"]["S3Key"] for layer in properties.get("Layers", []))
    return Function(
        name=name,
        arn=f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}",
        handler=properties["Handler"],
        code=ROOT / resources[name]["Properties"]["Code"]["S3Key"],
        layers=tuple(BUILT_LAYERS.get(layer, ROOT / layer) for layer in layers),
        environment={key: str(value) for key, value in properties["Environment"]["Variables"].items()},
        timeout_seconds=int(properties["Timeout"]),
        memory_mb=int(properties["MemorySize"]),
    )


def _subscribe(endpoint: str, properties: Mapping[str, Any]) -> None:
    attributes = {"RawMessageDelivery": str(properties.get("RawMessageDelivery", False)).lower()}
    client("sns", endpoint).subscribe(
        TopicArn=properties["TopicArn"],
        Protocol=properties["Protocol"],
        Endpoint=properties["Endpoint"],
        Attributes=attributes,
    )


def _queue(endpoint: str, properties: Mapping[str, Any]) -> EventSourceMapping:
    queue = str(properties["EventSourceArn"]).rsplit(":", 1)[1]
    return EventSourceMapping(
        queue_url=f"{endpoint}/{ACCOUNT}/{queue}",
        function=str(properties["FunctionName"]).rsplit(":", 1)[-1],
        batch_size=int(properties.get("BatchSize", 10)),
        report_failures="ReportBatchItemFailures" in properties.get("FunctionResponseTypes", []),
    )


def _state_machine(endpoint: str, name: str, properties: Mapping[str, Any]) -> None:
    text = (ROOT / properties["DefinitionS3Location"]["Key"]).read_text()
    substitutions = properties.get("DefinitionSubstitutions", {})
    filled = re.sub(r"\$\{(\w+)\}", lambda found: str(substitutions[found[1]]), text)
    client("stepfunctions", endpoint).create_state_machine(
        name=name, definition=json.dumps(yaml.safe_load(filled)), roleArn=f"arn:aws:iam::{ACCOUNT}:role/{name}"
    )
