"""What the template promises: names, limits, permissions, and nothing secret where it can be read."""

import inspect
import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import boto3
import pytest
from samtranslator.yaml_helper import yaml_parse
from tunedrop import notify, posting, reconcile, secret_store, settings

from local import deploy, schedules
from tests.template.reading import (
    FOLDERS,
    function_of,
    listed,
    of_type,
    own_variables,
    references,
    statements,
    stem,
    tasks,
)

SETTINGS = {
    field.name.upper()
    for _, kind in inspect.getmembers(settings, lambda value: hasattr(value, "__dataclass_fields__"))
    for field in fields(kind)
}
EXECUTIONS = [
    {"Fn::Sub": f"arn:${{AWS::Partition}}:states:${{AWS::Region}}:${{AWS::AccountId}}:execution:${{{machine}.Name}}:*"}
    for machine in ("FinetuneStateMachine", "AdapterStateMachine")
]
MANAGED = {
    "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole",
    "arn:aws:iam::aws:policy/AWSXrayWriteOnlyAccess",
    "arn:aws:iam::aws:policy/service-role/AWSLambdaSQSQueueExecutionRole",
}


# ------------------------------------------------------------------ names


def test_every_function_folder_has_its_resource_and_the_reverse(template: Any) -> None:
    functions = of_type(template, "AWS::Serverless::Function")
    assert {name: facts["CodeUri"] for name, facts in functions.items()} == {
        f"{stem(folder)}Function": f"functions/{folder}" for folder in FOLDERS
    }


def test_every_function_has_sample_events() -> None:
    samples = {file.name.partition(".")[0] for file in (deploy.ROOT / "events").glob("*.json")}
    assert samples == set(FOLDERS)


def test_every_substitution_of_a_function_is_its_arn(machine: Any, machine_resource: Any) -> None:
    given = machine_resource["DefinitionSubstitutions"]
    called = {function_of(task) for task in tasks(machine).values()} - {None}
    assert {name: value for name, value in given.items() if name.endswith("FunctionArn")} == {
        f"{stem(str(folder))}FunctionArn": {"Fn::GetAtt": [f"{stem(str(folder))}Function", "Arn"]} for folder in called
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_function_writes_into_its_own_log_group(folder: str, expanded: Any) -> None:
    function = of_type(expanded, "AWS::Lambda::Function")[f"{stem(folder)}Function"]
    group = f"{stem(folder)}LogGroup"
    assert function["LoggingConfig"] == {"LogFormat": "Text", "LogGroup": {"Ref": group}}
    assert group in of_type(expanded, "AWS::Logs::LogGroup")


def test_every_log_group_is_used_and_forgets(template: Any, expanded: Any) -> None:
    groups = of_type(template, "AWS::Logs::LogGroup")
    users = [
        *of_type(expanded, "AWS::Lambda::Function").values(),
        *of_type(expanded, "AWS::StepFunctions::StateMachine").values(),
    ]
    used = {
        name
        for user in users
        for key in ("LoggingConfig", "LoggingConfiguration")
        for name in references(user.get(key))
    }
    assert used == groups.keys()
    assert all(group["RetentionInDays"] == {"Ref": "LogRetentionDays"} for group in groups.values())


# ------------------------------------------------------------------ functions


def test_every_function_says_its_time_and_memory(template: Any) -> None:
    for name, function in of_type(template, "AWS::Serverless::Function").items():
        assert 0 < function["Timeout"] <= 900, name
        assert function["MemorySize"] >= 512, name
        assert function["Description"], name


def test_webhook_answers_before_the_gateway_gives_up(template: Any) -> None:
    assert of_type(template, "AWS::Serverless::Function")["WebhookFunction"]["Timeout"] < 30


class Recorder(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self, values: dict[str, str]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize("folder", FOLDERS)
def test_environment_is_what_the_settings_read(folder: str, template: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable is missing, and none is there that nobody reads: the handler is imported as at init."""
    given = own_variables(of_type(template, "AWS::Serverless::Function")[f"{stem(folder)}Function"])
    values = {"PROVIDER": "openai", "MAX_COST_USD": "0", "RUN_DEADLINE_HOURS": "168", "ALLOW_LOOPBACK": "true"}
    values |= {"CALLBACK_HEARTBEAT_MINUTES": "0", "PROVIDERS": "{}", "SMOKE_TEST_ADAPTERS": "true"}
    environment = Recorder(
        {name: values.get(name, "https://example.com/of-a-test") for name in SETTINGS}
        | {"AWS_LAMBDA_FUNCTION_NAME": "test", "AWS_DEFAULT_REGION": "us-east-1"}
        | {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    )
    spec = spec_from_file_location(f"environment_of_{folder}", deploy.ROOT / "functions" / folder / "handler.py")
    assert spec is not None
    assert spec.loader is not None
    with monkeypatch.context() as patched:
        patched.setattr(os, "environ", environment)
        patched.setattr(boto3, "DEFAULT_SESSION", None)  # one made here would keep this environment
        patched.setattr(secret_store, "_client", secret_store._client.__wrapped__)
        spec.loader.exec_module(module_from_spec(spec))

    assert environment.asked & SETTINGS == set(given) - {"MALLOC_ARENA_MAX"}  # which the C library reads


def test_numbers_and_switches_in_the_environment_are_ones(template: Any) -> None:
    """A parameter's default is read by the settings as what it is meant to be."""
    defaults = {name: str(facts["Default"]) for name, facts in template["Parameters"].items()}
    values = {}
    for function in of_type(template, "AWS::Serverless::Function").values():
        for name, value in own_variables(function).items():
            values[name] = defaults.get(value["Ref"], "x") if isinstance(value, dict) and "Ref" in value else "x"
    for _, kind in inspect.getmembers(settings, lambda value: hasattr(value, "__dataclass_fields__")):
        settings.load(kind, values)


@pytest.mark.parametrize("folder", FOLDERS)
def test_environment_fits_into_what_lambda_gives_it(folder: str, template: Any) -> None:
    """4 KB for all names and values: https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html"""
    variables = own_variables(of_type(template, "AWS::Serverless::Function")[f"{stem(folder)}Function"])
    longest = template["Parameters"]["Providers"]["MaxLength"]
    others = [name for name in variables if name != "PROVIDERS"]
    assert longest * ("PROVIDERS" in variables) + sum(len(name) + 60 for name in others) < 4000


# ------------------------------------------------------------------ permissions


def test_one_statement_for_each_function(expanded: Any) -> None:
    found = [
        name
        for name, statement in statements(expanded)
        if name.endswith("FunctionRole") and "Principal" not in statement
    ]
    assert sorted(found) == sorted(f"{stem(folder)}FunctionRole" for folder in FOLDERS)


def test_no_star_but_for_the_delivery_of_the_machines_log(expanded: Any) -> None:
    for name, statement in statements(expanded):
        actions, resources = listed(statement["Action"]), listed(statement.get("Resource", []))
        assert not [action for action in actions if "*" in action], name
        if resources == ["*"]:
            assert name in ("FinetuneStateMachineRole", "AdapterStateMachineRole")
            assert all(action.startswith("logs:") for action in actions)
        else:
            stars = [resource for resource in resources if "*" in json.dumps(resource)]
            # A run's executions are named by the run: no permission can tell them one by one.
            assert stars == [] or (name, stars) == ("ReconcileFunctionRole", EXECUTIONS), name


def test_managed_policies_are_those_that_sam_adds(expanded: Any) -> None:
    for name, role in of_type(expanded, "AWS::IAM::Role").items():
        assert set(role.get("ManagedPolicyArns", [])) <= MANAGED, name


def test_every_resource_in_a_statement_is_the_templates_own(expanded: Any) -> None:
    for name, statement in statements(expanded):
        for resource in listed(statement.get("Resource", [])):
            if resource not in ("*", *EXECUTIONS):
                assert list(references(resource)), f"{name}: {resource}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_function_may_use_what_its_environment_names(folder: str, template: Any, expanded: Any) -> None:
    """Every address in the environment is one that its statement names, and the reverse."""
    function = of_type(template, "AWS::Serverless::Function")[f"{stem(folder)}Function"]
    (statement,) = [s for n, s in statements(expanded) if n == f"{stem(folder)}FunctionRole" and "Principal" not in s]
    parameters = template["Parameters"].keys() | template["Conditions"].keys() | {"R2AccountId"}
    named = set(references(statement["Resource"]))
    if folder == "callback":
        named.remove("FinetuneStateMachine")  # which the token names by itself
    assert set(references(own_variables(function))) - parameters == named


def test_machine_may_use_what_it_calls(machine: Any, machine_name: str, machine_resource: Any, expanded: Any) -> None:
    services = {
        "arn:aws:states:::sns:publish": "sns:Publish",
        "arn:aws:states:::dynamodb:updateItem": "dynamodb:UpdateItem",
        "arn:aws:states:::aws-sdk:dynamodb:updateItem.waitForTaskToken": "dynamodb:UpdateItem",
    }
    wanted = {services.get(task["Resource"], "lambda:InvokeFunction") for task in tasks(machine).values()}
    role = f"{machine_name.capitalize()}StateMachineRole"
    granted = [s for n, s in statements(expanded) if n == role and "Principal" not in s]
    named = [statement for statement in granted if statement["Resource"] != "*"]

    assert {action for statement in named for action in statement["Action"]} == wanted
    assert {name for statement in named for name in references(statement["Resource"])} == set(
        references(machine_resource["DefinitionSubstitutions"])
    )


# ------------------------------------------------------------------ parameters and outputs


def test_every_parameter_says_what_it_is_and_has_a_default(template: Any) -> None:
    for name, facts in template["Parameters"].items():
        assert len(facts["Description"]) > 15, name
        assert facts["Description"].endswith("."), name
        assert "Default" in facts, name


def test_every_parameter_is_used(template: Any) -> None:
    rest = {key: template[key] for key in ("Globals", "Resources", "Conditions")}
    text = json.dumps(rest)
    used = set(references(rest)) | set(re.findall(r"\$\{(\w+)\}", text))
    assert template["Parameters"].keys() - used == set()


def test_every_parameter_is_in_a_group_or_stands_for_all(template: Any) -> None:
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    grouped = [name for group in groups for name in group["Parameters"]]
    assert len(grouped) == len(set(grouped))
    assert template["Parameters"].keys() - set(grouped) == {"Architecture"}


def test_outputs_describe_themselves_and_point_at_something(template: Any) -> None:
    for name, output in template["Outputs"].items():
        assert output["Description"].endswith("."), name
        pointed = set(references(output["Value"])) | set(re.findall(r"\$\{(\w+)\}", json.dumps(output["Value"])))
        assert pointed & template["Resources"].keys(), name


def test_outputs_tell_what_an_operator_needs(template: Any) -> None:
    secrets = of_type(template, "AWS::SecretsManager::Secret")
    assert template["Outputs"].keys() >= {"WebhookUrl", "StateMachineArn", "LedgerTable", "NotifyDeadLetterQueueArn"}
    assert template["Outputs"].keys() >= {f"{name}Arn" for name in secrets}


@pytest.mark.parametrize("architecture", ["arm64", "x86_64"])
def test_one_parameter_sets_every_architecture(architecture: str, template: Any) -> None:
    source = yaml_parse(deploy.TEMPLATE.read_text())
    built = deploy._expand(source, deploy.parameters_of(source, {"Architecture": architecture}))
    assert architecture in template["Parameters"]["Architecture"]["AllowedValues"]
    for name, function in of_type(built, "AWS::Lambda::Function").items():
        assert function["Architectures"] == [{"Ref": "Architecture"}], name
    layers = {name: facts for name, facts in template["Resources"].items() if facts["Type"].endswith("LayerVersion")}
    for name, layer in layers.items():
        assert layer["Metadata"] == {"BuildMethod": "python3.13", "BuildArchitecture": {"Ref": "Architecture"}}, name
        assert layer["Properties"]["CompatibleArchitectures"] == [{"Ref": "Architecture"}], name


# ------------------------------------------------------------------ ledger, queues, secrets, API


def test_ledger_is_kept_and_grows_as_it_is_used(template: Any) -> None:
    (ledger,) = (facts for facts in template["Resources"].values() if facts["Type"] == "AWS::DynamoDB::Table")
    properties = ledger["Properties"]
    assert properties["BillingMode"] == "PAY_PER_REQUEST"
    assert properties["TimeToLiveSpecification"] == {"AttributeName": "expires_at", "Enabled": True}
    assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
    assert properties["SSESpecification"] == {"SSEEnabled": True}
    assert ledger["DeletionPolicy"] == ledger["UpdateReplacePolicy"] == "Retain"


def test_notifications_wait_longer_than_they_are_retried(template: Any) -> None:
    queues = of_type(template, "AWS::SQS::Queue")
    queue, dead = queues["NotifyQueue"], queues["NotifyDeadLetterQueue"]
    attempts = queue["RedrivePolicy"]["maxReceiveCount"]
    span = sum(notify.pause_seconds(reception) for reception in range(1, attempts + 1))
    timeout = of_type(template, "AWS::Serverless::Function")["NotifyFunction"]["Timeout"]

    assert queue["RedrivePolicy"]["deadLetterTargetArn"] == {"Fn::GetAtt": ["NotifyDeadLetterQueue", "Arn"]}
    assert queue["VisibilityTimeout"] >= 6 * timeout
    assert 3 * 86_400 <= span <= queue["MessageRetentionPeriod"]
    assert dead["MessageRetentionPeriod"] > queue["MessageRetentionPeriod"]
    assert all(facts["SqsManagedSseEnabled"] for facts in queues.values())
    assert max(notify.pause_seconds(n) for n in range(1, attempts + 1)) <= 43_200  # the longest that SQS takes


def test_notify_has_time_for_its_attempts(template: Any) -> None:
    assert of_type(template, "AWS::Serverless::Function")["NotifyFunction"]["Timeout"] > 2 * posting.TIMEOUT_SECONDS


def test_final_states_reach_the_queue_or_the_dead_letters(template: Any) -> None:
    subscription = of_type(template, "AWS::SNS::Subscription")["FinalStatesToNotify"]
    (policy,) = of_type(template, "AWS::SQS::QueuePolicy").values()
    (statement,) = policy["PolicyDocument"]["Statement"]

    assert subscription["RawMessageDelivery"] is True
    assert set(references(subscription)) == {"FinalStatesTopic", "NotifyQueue", "NotifyDeadLetterQueue"}
    assert {name for queue in policy["Queues"] for name in references(queue)} == {
        "NotifyQueue",
        "NotifyDeadLetterQueue",
    }
    assert statement["Action"] == "sqs:SendMessage"
    assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
    assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": {"Ref": "FinalStatesTopic"}}}


def test_queue_hands_over_one_message_at_a_time(expanded: Any) -> None:
    (mapping,) = of_type(expanded, "AWS::Lambda::EventSourceMapping").values()
    assert mapping["BatchSize"] == 1
    assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


def test_no_secret_is_in_an_environment_or_a_parameter(template: Any) -> None:
    secrets = of_type(template, "AWS::SecretsManager::Secret")
    words = re.compile(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|API_?KEY", re.IGNORECASE)
    for name, function in of_type(template, "AWS::Serverless::Function").items():
        for variable, value in own_variables(function).items():
            if words.search(variable):
                assert variable.endswith("_ARN"), f"{name}: {variable}"
                assert value["Ref"] in secrets, f"{name}: {variable}"
    assert [name for name in template["Parameters"] if words.search(name)] == []
    assert "{{resolve:" not in deploy.TEMPLATE.read_text()


def test_no_secret_is_written_into_the_template(template: Any) -> None:
    values = {
        name: facts.get("SecretString") for name, facts in of_type(template, "AWS::SecretsManager::Secret").items()
    }
    assert {name: value for name, value in values.items() if value not in (None, "[]", "{}")} == {}


def test_api_is_throttled(template: Any) -> None:
    (api,) = of_type(template, "AWS::Serverless::HttpApi").values()
    assert api["DefaultRouteSettings"].keys() == {"ThrottlingBurstLimit", "ThrottlingRateLimit"}


# ------------------------------------------------------------------ sweeping


def test_sweeper_comes_at_its_rate_and_no_sweep_is_repeated(template: Any, expanded: Any) -> None:
    (schedule,) = of_type(expanded, "AWS::Scheduler::Schedule").values()
    (invoked,) = of_type(expanded, "AWS::Lambda::EventInvokeConfig").values()
    rate = template["Parameters"]["SweepRate"]
    assert schedule["ScheduleExpression"] == {"Ref": "SweepRate"}
    assert schedule["Target"]["Arn"] == {"Fn::GetAtt": ["ReconcileFunction", "Arn"]}
    assert schedule["Target"]["RetryPolicy"]["MaximumRetryAttempts"] == invoked["MaximumRetryAttempts"] == 0
    assert "Name" not in schedule, "two stacks of one account would share it"
    assert schedules.seconds_of(rate["Default"]) == 3600
    assert re.fullmatch(rate["AllowedPattern"], rate["Default"])


def test_schedule_may_invoke_the_sweeper_alone(expanded: Any) -> None:
    granted = [statement for name, statement in statements(expanded) if name == "ReconcileFunctionSweepRole"]
    (statement,) = (statement for statement in granted if "Principal" not in statement)
    assert statement["Action"] == "lambda:InvokeFunction"
    assert set(references(statement["Resource"])) == {"ReconcileFunction"}


def test_a_sweep_is_over_before_the_next_may_begin(template: Any) -> None:
    timeout = of_type(template, "AWS::Serverless::Function")["ReconcileFunction"]["Timeout"]
    assert reconcile.RESERVE_SECONDS < timeout < reconcile.LEASE_SECONDS


def test_what_may_still_be_under_way_is_left_alone(template: Any) -> None:
    longest = max(function["Timeout"] for function in of_type(template, "AWS::Serverless::Function").values())
    assert longest <= reconcile.SAFETY_SECONDS


def test_what_a_person_must_look_at_raises_the_alarm(template: Any) -> None:
    filters = of_type(template, "AWS::Logs::MetricFilter")
    assert "ReconcileLogGroup" in {name for facts in filters.values() for name in references(facts["LogGroupName"])}
    for facts in filters.values():
        assert facts["FilterPattern"] == '{ $.alarm = "*" }'
        (metric,) = facts["MetricTransformations"]
        assert metric["MetricName"] == of_type(template, "AWS::CloudWatch::Alarm")["OperatorNeeded"]["MetricName"]
    failed = of_type(template, "AWS::CloudWatch::Alarm")["SweepFailed"]
    assert failed["Dimensions"] == [{"Name": "FunctionName", "Value": {"Ref": "ReconcileFunction"}}]


def reference_targets(value: Any) -> Iterator[str]:
    yield from references(value)
    yield from re.findall(r"\$\{(\w+)(?:\.\w+)?\}", json.dumps(value))


def test_every_reference_has_its_target(template: Any) -> None:
    known = (
        template["Resources"].keys() | template["Parameters"].keys() | {"HasStorageEndpoint", "HasNotificationEmail"}
    )
    assert set(reference_targets(template["Resources"])) - known == set()
