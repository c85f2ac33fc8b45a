"""Two services side by side: a run goes to the one that its job specification names, and stays with it."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import urllib3

from local.functions import Lambda
from local.provider.client import ProviderProcess
from tests.functions.world import PROVIDER_KEY, TIME_SCALE, World, resource, sample

LAB_KEY = "sk-of-the-lab"
FIRST = {"upload": "first", "create_job": "first", "poll_status": "first", "collect": "after_success"}


@pytest.fixture
def lab(world: World) -> Iterator[ProviderProcess]:
    """A second service, in LiteLLM's manners, configured beside the first."""
    secrets = world.client("secretsmanager")
    arn = world.functions["UploadFunction"].environment["PROVIDER_SECRET_ARN"]
    with ExitStack() as parts:
        process = parts.enter_context(ProviderProcess(0, LAB_KEY, TIME_SCALE, time.time(), manners="litellm"))
        profiles = json.dumps({"lab": {"like": "litellm", "base_url": process.url}})
        functions = {
            name: replace(function, environment={**function.environment, "PROVIDERS": profiles})
            if "PROVIDER" in function.environment
            else function
            for name, function in world.functions.items()
        }
        parts.enter_context(patch.object(world, "functions", functions))
        secrets.put_secret_value(SecretId=arn, SecretString=json.dumps({"openai": PROVIDER_KEY, "lab": LAB_KEY}))
        parts.callback(secrets.put_secret_value, SecretId=arn, SecretString=PROVIDER_KEY)
        yield process


def jobs_at(service: ProviderProcess) -> list[Any]:
    return list(urllib3.request("GET", f"{service.control}/ledger").json()["jobs"])


def specify(world: World, **specification: Any) -> None:
    key = sample("upload.first")["key"].removesuffix(".jsonl") + ".job.json"
    world.client("s3").put_object(Bucket=world.bucket, Key=key, Body=json.dumps(specification).encode())


def begun(world: World) -> Mapping[str, Any]:
    """The event of a run whose dataset is there."""
    event = sample("upload.first")
    world.drop("orchard.jsonl", event["key"])
    etag = world.client("s3").head_object(Bucket=world.bucket, Key=event["key"])["ETag"].strip('"')
    return {**event, "etag": etag}


def test_a_run_goes_to_the_service_that_it_names_and_stays_with_it(world: World, lab: ProviderProcess) -> None:
    event = begun(world)
    specify(world, provider="lab", model="gpt-4.1-mini", seed=7)
    before = len(world.order("GET", "/ledger")["jobs"])

    assert world.handle("upload.first", event)["state"] == "waiting"
    deadline = time.monotonic() + 20
    while (answer := world.handle("create_job.first", event))["state"] != "training":
        assert time.monotonic() < deadline, answer
    while (answer := world.handle("poll_status.first", event))["state"] != "succeeded":
        assert time.monotonic() < deadline, answer
    published = world.handle("collect.after_success", {**event, "answer": answer})

    assert (published["run"]["provider"], published["run"]["state"]) == ("lab", "succeeded")
    assert [job["id"] for job in jobs_at(lab)] == [published["run"]["job_id"]]
    assert len(world.order("GET", "/ledger")["jobs"]) == before


def test_a_run_that_names_none_goes_to_the_default(world: World, lab: ProviderProcess) -> None:
    event = begun(world)
    world.handle("upload.first", event)
    assert world.run(event).provider == "openai"


@pytest.mark.parametrize("folder", FIRST)
def test_profiles_that_cannot_be_read_are_named_in_the_functions_log(world: World, tmp_path: Path, folder: str) -> None:
    function = world.functions[resource(folder)]
    broken = {**function.environment, "PROVIDERS": '{"lab": {"like": "nobody"}}'}
    with Lambda([replace(function, environment=broken)], aws_endpoint=world.aws, logs=tmp_path) as service:
        answer = service.invoke(function.name, json.dumps(sample(f"{folder}.{FIRST[folder]}")).encode())
    assert json.loads(answer.payload)["errorType"].endswith("InvalidProviders")
    assert "Providers: lab.like must be one of openai, azure" in (tmp_path / f"{function.name}.log").read_text()


def test_a_service_without_a_key_is_refused_with_those_that_have_one(world: World, lab: ProviderProcess) -> None:
    event = begun(world)
    specify(world, provider="nebius")
    answer = world.handle("upload.first", event)
    assert (answer["state"], answer["error"]["code"]) == ("rejected", "unknown_provider")
    assert "there are lab, openai" in answer["error"]["message"]
