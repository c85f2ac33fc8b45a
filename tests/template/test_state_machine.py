"""The graph that cfn-lint and `sam validate` do not look at, and the errors that it deals with."""

import inspect
import re
from typing import Any

import pytest
from tunedrop import errors
from tunedrop.runs import FINAL, Run
from tunedrop.steps import Done, take

from local import deploy
from tests.template.reading import ENDS, FOLDERS, MACHINE, function_of, of_type, reachable, stem, targets, tasks

LAST = "Publish final state"
STEPS = ("upload", "create_job", "poll_status", "collect")

LEAVES = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.TunedropError) and not kind.__subclasses__()
}
# https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html and, for Lambda's own,
# https://docs.aws.amazon.com/step-functions/latest/dg/sfn-best-practices.html#bp-lambda-serviceexception
OF_LAMBDA = {
    "Lambda.AWSLambdaException",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.SdkClientException",
    "Lambda.ServiceException",
    "Lambda.TooManyRequestsException",
    "Lambda.Unknown",
    "Runtime.ExitError",
    "Runtime.OutOfMemory",
    "Sandbox.Timedout",
}
OF_STEP_FUNCTIONS = {"States.Timeout"}
TRANSIENT_OF_LAMBDA = {name for name in OF_LAMBDA if name.startswith("Lambda.") and name != "Lambda.Unknown"}
DEATHS = {"Lambda.Unknown", "Runtime.ExitError", "Runtime.OutOfMemory", "Sandbox.Timedout", "States.Timeout"}


EVERYTHING = "States.ALL"


def retries(state: Any) -> list[Any]:
    """The retriers that repeat; one of no attempts takes its errors out of those that follow."""
    return [retry for retry in state["Retry"] if retry["MaxAttempts"]]


def retried(state: Any) -> set[str]:
    return {name for retry in retries(state) for name in retry["ErrorEquals"]}


def escaping() -> set[str]:
    """The names of our errors that a step taken with `take` lets out to the state machine."""
    run = Run(
        run_id="r", state="waiting", bucket="b", key="k", etag="e", created_at="9999-01-01T00:00:00Z", updated_at=""
    )
    found = set()
    for name, kind in LEAVES.items():
        error = (
            kind("code", "message")
            if issubclass(kind, errors.Final)
            else kind("message", 30.0)
            if kind in (errors.Throttled, errors.NotYet)
            else kind("message")
        )

        def step(error: Exception = error) -> Done:
            raise error

        try:
            take(step, run, 1.0)
        except kind:
            found.add(name)
    return found


def test_every_target_exists(machine: Any) -> None:
    states = machine["States"]
    assert machine["StartAt"] in states
    assert {
        name: targets(state) - states.keys() for name, state in states.items() if targets(state) - states.keys()
    } == {}


def test_every_state_is_reached(machine: Any) -> None:
    assert reachable(machine["States"], machine["StartAt"]) == machine["States"].keys()


def test_every_state_leads_to_an_end(machine: Any) -> None:
    states = machine["States"]
    ends = {name for name, state in states.items() if state["Type"] in ENDS}
    assert {name for name in states if not reachable(states, name) & ends} == set()


def test_only_succeed_and_fail_end(machine: Any) -> None:
    """A failed run looks failed: nothing ends by the way."""
    for name, state in machine["States"].items():
        assert "End" not in state, name
        assert bool(targets(state)) == (state["Type"] not in ENDS), name


def test_no_end_but_by_way_of_publishing(machine: Any) -> None:
    states = machine["States"]
    unpublished = reachable(states, machine["StartAt"], without=frozenset({LAST}))
    assert {name for name in unpublished if states[name]["Type"] in ENDS} == set()


def test_publishing_leads_to_an_end_at_once(machine: Any) -> None:
    assert {machine["States"][name]["Type"] for name in reachable(machine["States"], LAST)} == {"Task", "Choice", *ENDS}
    assert [name for name in reachable(machine["States"], LAST) if machine["States"][name]["Type"] == "Task"] == [LAST]


def test_a_run_that_could_not_be_published_fails(machine: Any) -> None:
    (catch,) = machine["States"][LAST]["Catch"]
    assert machine["States"][catch["Next"]]["Type"] == "Fail"


def test_every_task_is_guarded(machine: Any) -> None:
    for name, task in tasks(machine).items():
        assert task.get("TimeoutSeconds", 0) > 0 or task["TimeoutSecondsPath"] == "$.answer.wait_seconds", name
        assert task["Retry"], name
        assert task["Catch"][-1]["ErrorEquals"] == ["States.ALL"], name


def test_every_catch_keeps_what_is_known(machine: Any) -> None:
    """A Catch without ResultPath would replace the run by the error."""
    for name, task in tasks(machine).items():
        assert all(catch["ResultPath"].startswith("$.") for catch in task["Catch"]), name


def test_every_retry_backs_off_with_jitter(machine: Any) -> None:
    for name, task in tasks(machine).items():
        for retry in retries(task):
            assert retry["JitterStrategy"] == "FULL", name
            assert retry["BackoffRate"] >= 1.5, name
            assert retry["IntervalSeconds"] >= 1, name
            assert retry["MaxDelaySeconds"] > retry["IntervalSeconds"], name
            assert 1 <= retry["MaxAttempts"] <= 100, name


def test_errors_are_retried_by_exact_names_that_exist(machine: Any) -> None:
    for name, task in tasks(machine).items():
        service = {"dynamodb": "DynamoDB.", "sns": "SNS.", "aws-sdk": "DynamoDb."}.get(
            task["Resource"].removeprefix("arn:aws:states:::").split(":")[0]
        )
        for error in retried(task):
            if error == EVERYTHING:
                continue
            known = error in (OF_STEP_FUNCTIONS if service else OF_STEP_FUNCTIONS | OF_LAMBDA | LEAVES.keys())
            assert known or (service and error.startswith(service)), f"{name}: {error}"


def test_no_error_is_listed_twice_in_a_task(machine: Any) -> None:
    """Only the first retrier that lists an error counts."""
    for name, task in tasks(machine).items():
        names = [error for retry in task["Retry"] for error in retry["ErrorEquals"]]
        assert len(names) == len(set(names)), name


@pytest.mark.parametrize("name", [LAST, "Publish notice", "Record what is known"])
def test_no_unlisted_error_keeps_a_run_from_being_told_of(machine: Any, name: str) -> None:
    """A service may fail in ways that no list has; States.ALL stands alone and last, as Step Functions demands."""
    task = machine["States"][name]
    assert [retry["ErrorEquals"] for retry in task["Retry"] if EVERYTHING in retry["ErrorEquals"]] == [[EVERYTHING]]
    assert task["Retry"][-1]["ErrorEquals"] == [EVERYTHING]


def test_a_final_state_is_published_for_half_a_day_and_more(machine: Any) -> None:
    retry = machine["States"][LAST]["Retry"][-1]
    delays = [
        min(retry["IntervalSeconds"] * retry["BackoffRate"] ** attempt, retry["MaxDelaySeconds"])
        for attempt in range(retry["MaxAttempts"])
    ]
    assert sum(delays) / 2 >= 12 * 3600 * 0.9, "jitter halves them on average"


def test_no_final_error_is_retried(machine: Any) -> None:
    final = {name for name, kind in LEAVES.items() if issubclass(kind, errors.Final)}
    for name, task in tasks(machine).items():
        assert retried(task) & final == set(), name


def test_every_function_survives_lambdas_own_faults_and_its_death(machine: Any) -> None:
    for name, task in tasks(machine).items():
        if function_of(task):
            assert retried(task) >= TRANSIENT_OF_LAMBDA | DEATHS, name


def test_what_a_step_lets_out_is_retried(machine: Any) -> None:
    """What asks for patience is repeated; what does not becomes an answer inside the step, never an error."""
    assert escaping() == {"Transient"}
    patience = {name for name, kind in LEAVES.items() if not issubclass(kind, errors.Final)}
    for name, task in tasks(machine).items():
        folder = function_of(task)
        if folder == "collect":  # lets out whatever asks for patience; it creates nothing, so no outcome is unknown
            assert retried(task) & LEAVES.keys() == patience - {"UnknownOutcome", "NotYet"}
        elif folder:
            assert retried(task) & LEAVES.keys() == escaping(), name


def test_a_task_outlasts_its_function(machine: Any, template: Any) -> None:
    functions = of_type(template, "AWS::Serverless::Function")
    for name, task in tasks(machine).items():
        folder = function_of(task)
        if folder:
            assert task["TimeoutSeconds"] > functions[f"{stem(folder)}Function"]["Timeout"], name


def test_state_function_and_substitution_have_one_name(machine: Any) -> None:
    steps = {function_of(task): name for name, task in tasks(machine).items() if "${" in task["Resource"]}
    assert set(steps) == set(STEPS)
    assert set(STEPS) <= set(FOLDERS)
    for folder, name in steps.items():
        assert name.lower().replace(" ", "_").startswith(str(folder)), name


def test_substitutions_are_those_that_the_template_gives(template: Any) -> None:
    used = set(re.findall(r"\$\{(\w+)\}", MACHINE.read_text()))
    (properties,) = of_type(template, "AWS::Serverless::StateMachine").values()
    assert used == set(properties["DefinitionSubstitutions"])
    assert deploy.ROOT / properties["DefinitionUri"] == MACHINE


def test_names_are_short_enough(machine: Any) -> None:
    assert max(map(len, machine["States"])) <= 80


def test_waits_take_the_functions_word_and_ask_it_again(machine: Any) -> None:
    states = machine["States"]
    paths = ("SecondsPath", "TimeoutSecondsPath")
    waits = {name: state for name, state in states.items() if any(path in state for path in paths)}
    assert set(waits) == {"Wait to upload", "Wait to create", "Wait for the job"}
    for name, wait in waits.items():
        asked = states[wait["Next"]]
        assert {wait[path] for path in paths if path in wait} == {"$.answer.wait_seconds"}, name
        assert asked["Type"] == "Task", name
        assert name in targets(states[asked["Next"]]), name


def test_states_that_the_machine_names_are_those_of_a_run(machine: Any) -> None:
    named = {
        choice["StringEquals"]
        for state in machine["States"].values()
        for choice in state.get("Choices", [])
        if "StringEquals" in choice
    }
    told = {
        state["Parameters"]["run"].get("state", "failed")  # or what the answer says
        for name, state in machine["States"].items()
        if name.startswith("Tell of")
    }
    assert named == {"waiting", "training", "succeeded"}
    assert told == {"succeeded", "failed"}
    assert told <= set(FINAL)


@pytest.mark.parametrize("name", ["Tell of the model alone", "Tell of the failure alone"])
def test_what_is_told_without_results_is_a_run(machine: Any, name: str) -> None:
    """The document that the machine makes up by itself reads as a run, like any other."""
    given = machine["States"][name]["Parameters"]["run"]
    document = {key.removesuffix(".$"): value for key, value in given.items()}
    run = Run.from_document(document)
    assert run.is_final
    assert run.document().keys() >= document.keys()


def test_history_holds_no_data(template: Any) -> None:
    (properties,) = of_type(template, "AWS::Serverless::StateMachine").values()
    assert properties["Logging"]["IncludeExecutionData"] is False
