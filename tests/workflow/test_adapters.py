"""Adapters: the second state machine with the real functions, from a drop to an answer."""

import json

import pytest
import requests
from tunedrop.runs import CONFIG, WEIGHTS

from local.adapter import config, shapes, small_adapter, weights
from tests.workflow.running import settled_stack, until

BASE = "mistralai/Mistral-7B-Instruct-v0.2"
LLAMA = "meta-llama/Llama-3.3-70B-Instruct"


@pytest.fixture(scope="module")
def running():
    """A stack whose service hands out the adapters that it trains."""
    with settled_stack("--set", "Provider=nebius", "--set", f"DefaultModel={LLAMA}") as running:
        running.takes_metadata = False
        yield running


def drop(stack, name, files):
    """Puts an adapter's files, in their order; the id of the run that its weights have started."""
    for file, body in files.items():
        stack.put(f"adapters/{name}/{file}", body)
    return stack.started(f"adapters/{name}/{WEIGHTS}")


def ask(stack, run, prompt):
    order = {"messages": [{"role": "user", "content": prompt}], "raw": True, "lora": run["fine_tuned_model"]}
    headers = {"authorization": f"Bearer {stack.address['workers_ai_token']}"}
    url = f"{stack.address['workers_ai']}/run/{run['model']}"
    return requests.post(url, json=order, headers=headers, timeout=20).json()["result"]["response"]


def finetunes(stack, name):
    return [found for found in stack.workers_ai("GET", "/ledger")["finetunes"] if found["name"] == name]


def test_a_dropped_adapter_answers(stack):
    ended = stack.ended(drop(stack, "orchard-desk", small_adapter(BASE)))

    assert (ended.state, ended.run["fine_tuned_model"]) == ("succeeded", "orchard-desk")
    assert ask(stack, ended.run, "What of pears?").endswith("What of pears?")
    (finetune,) = finetunes(stack, "orchard-desk")
    assert ended.run["finetune_id"] == finetune["id"]
    assert finetune["assets"][CONFIG]["config"]["model_type"] == "mistral"
    assert ended.notification["message"]["data"] == ended.run
    assert stack.states(ended.run["run_id"]) == [
        "Publish adapter",
        "Adapter published?",
        "Collect results",
        "Publish final state",
        "Succeeded?",
        "Run succeeded",
    ]


def test_a_trained_adapter_is_published_where_the_job_specification_wishes_it(stack, key, dataset):
    """Two pipelines joined by the bucket alone."""
    wish = {"deploy": {"workers_ai": {"name": "Orders Desk"}}}
    stack.put(key.replace(".jsonl", ".job.json"), json.dumps(wish).encode())
    first = stack.ended(stack.drop(key, dataset()))
    weights_key = f"adapters/{first.run['run_id']}/{WEIGHTS}"

    assert first.state == "succeeded"
    assert weights_key in first.run["next_step"]
    second = stack.ended(stack.started(weights_key))

    assert (second.state, second.run["fine_tuned_model"]) == ("succeeded", "orders-desk")
    assert second.notification["message"]["data"]["source_run_id"] == first.run["run_id"]
    assert second.jobs == second.files == []
    assert ask(stack, second.run, "Where is my order?").endswith("Where is my order?")


def test_a_trained_adapter_is_not_published_where_nobody_wishes_it(stack, key, dataset):
    ended = stack.ended(stack.drop(key, dataset()))

    weights_key = f"results/{ended.run['run_id']}/{WEIGHTS}"
    assert weights_key in ended.run["result_keys"]
    assert stack.delivery(weights_key)["answer"]["accepted"] == []
    assert stack.keys(f"adapters/{ended.run['run_id']}/") == set()


def test_a_deployment_that_cannot_be_costs_nothing(stack, key, dataset):
    wish = {"deploy": {"workers_ai": True}, "model": "meta-llama/Meta-Llama-3.1-8B-Instruct"}
    stack.put(key.replace(".jsonl", ".job.json"), json.dumps(wish).encode())
    ended = stack.ended(stack.drop(key, dataset()))

    assert (ended.state, ended.code, ended.jobs) == ("rejected", "unsupported_base", [])


def test_an_invalid_adapter_is_rejected_with_its_place(stack):
    files = {CONFIG: json.dumps(config(BASE, rank=64)).encode(), WEIGHTS: weights(shapes(rank=64))}
    ended = stack.ended(drop(stack, "too-large", files))

    assert (ended.state, ended.code) == ("rejected", "rank_too_large")
    assert ended.message.startswith("adapter_config.json, r: the rank is 64")
    assert finetunes(stack, "too-large") == []


def test_weights_without_their_configuration_end_as_missing(stack):
    ended = stack.ended(drop(stack, "alone", {WEIGHTS: weights(shapes(), seed=2)}))

    assert (ended.state, ended.code) == ("missing", "config_missing")
    assert len(stack.waits(ended.run["run_id"], "Wait to publish")) > 1
    assert finetunes(stack, "alone") == []


def test_a_configuration_that_comes_late_is_waited_for(stack):
    files = small_adapter(BASE, seed=3)
    run_id = drop(stack, "late", {WEIGHTS: files[WEIGHTS]})
    until(lambda: stack.states(run_id), lambda states: "Wait to publish" in states)
    stack.put(f"adapters/late/{CONFIG}", files[CONFIG])

    assert stack.ended(run_id).state == "succeeded"


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("*/finetunes", {"reset": "after"}),
        ("*/finetunes", {"status": 500, "after": True, "delay_listing": 200}),
        ("*/finetune-assets", {"status": 502, "after": True}),
    ],
    ids=["creation lost", "listed late", "file lost"],
)
def test_a_finetune_is_created_once_whatever_becomes_of_an_answer(stack, path, fault, request):
    name = f"once-{request.node.callspec.id.replace(' ', '-')}"
    stack.workers_ai("POST", "/faults", {"method": "POST", "path": path, "fault": fault})
    ended = stack.ended(drop(stack, name, small_adapter(BASE, seed=sum(name.encode()))))

    assert ended.state == "succeeded"
    assert len(finetunes(stack, name)) == 1
    assert stack.workers_ai("GET", "/faults")["faults"] == []


@pytest.mark.parametrize("fault", ["kill_before", "kill_after"])
def test_a_function_that_dies_leaves_one_finetune(stack, fault):
    stack.crash("PublishAdapterFunction", fault)
    ended = stack.ended(drop(stack, f"dies-{fault}", small_adapter(BASE, seed=sum(fault.encode()))))

    assert ended.state == "succeeded"
    assert len(finetunes(stack, ended.run["fine_tuned_model"])) == 1


def test_a_function_that_always_dies_is_told_of_all_the_same(stack):
    stack.crash("PublishAdapterFunction", "exit", times=5)
    ended = stack.ended(drop(stack, "dies-for-good", small_adapter(BASE, seed=11)))

    assert (ended.state, ended.code) == ("failed", "Runtime.ExitError")
    assert ended.execution["error"] == "failed"


def test_an_end_that_cannot_be_recorded_is_published_all_the_same(stack):
    stack.crash("CollectFunction", "exit", times=5)
    run_id = drop(stack, "not-recorded", small_adapter(BASE, seed=12))
    ended = stack.ended(run_id)

    assert (ended.state, ended.code) == ("succeeded", "end_not_recorded")
    assert ended.run["fine_tuned_model"] == "not-recorded"
