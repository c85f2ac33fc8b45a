"""A cold start pays for every import: a function loads what it uses while Lambda initialises it, and nothing else.

Each handler is imported in a fresh interpreter that sees its folder, the layers and the standard library alone.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import pytest
from samtranslator.yaml_helper import yaml_parse
from tunedrop.settings import MissingSetting

from local import deploy
from tests.functions import probe
from tests.functions.test_events import CASES
from tests.functions.world import FUNCTIONS, World, resource, sample

FIRST_EVENTS = {
    "webhook": "webhook.r2_put",
    "upload": "upload.first",
    "create_job": "create_job.first",
    "poll_status": "poll_status.first",
    "publish_adapter": "publish_adapter.first",
    "callback": "callback.succeeded",
    "collect": "collect.after_success",
    "notify": "notify.final_state",
    "reconcile": "reconcile.first",
}

CLIENT = ("openai", "pydantic", "httpx")
ENGINE = (
    "hyperscan",
    "toktok",
    "tunedrop.dataset",
    "tunedrop.job_specification",
    "tunedrop.preflight",
    "tunedrop.prices",
    "tunedrop.tokens",
)
# msgspec holds the providers' profiles, too; beside the client it takes 3 ms.
HEAVY = (*CLIENT, *ENGINE, "msgspec")
UNUSED = {
    "webhook": (*HEAVY, "tunedrop.bucket", "tunedrop.ledger", "tunedrop.provider", "tunedrop.upload"),
    "upload": ("standardwebhooks", "tunedrop.notify", "tunedrop.webhook"),
    "create_job": (*ENGINE, "standardwebhooks", "tunedrop.bucket", "tunedrop.notify", "tunedrop.upload"),
    "poll_status": (*ENGINE, "standardwebhooks", "tunedrop.bucket", "tunedrop.notify", "tunedrop.upload"),
    "publish_adapter": (*HEAVY, "standardwebhooks", "tunedrop.notify", "tunedrop.provider", "tunedrop.upload"),
    "callback": (*HEAVY, "tunedrop.bucket", "tunedrop.provider", "tunedrop.upload"),
    "collect": (*ENGINE, "standardwebhooks", "tunedrop.notify", "tunedrop.upload"),
    "reconcile": (*ENGINE, "standardwebhooks", "tunedrop.notify", "tunedrop.upload", "tunedrop.webhook"),
    "notify": (*HEAVY, "tunedrop.bucket", "tunedrop.provider", "tunedrop.upload"),
}
NEVER = ("aws_xray_sdk", "mypy_boto3_s3", "requests", "tunedrop.cli")
COSTLY = ("aws_lambda_powertools", "boto3", "botocore", *HEAVY, "standardwebhooks", "tunedrop", "urllib3")

OPTIONAL = (
    "PROVIDER_BASE_URL",
    "PROVIDERS",
    "ALLOW_LOOPBACK",
    "KEY_PREFIX",
    "KEY_SUFFIX",
    "WORKERS_AI_ACCOUNT_ID",
    "MALLOC_ARENA_MAX",  # the C library reads it
)
REQUIRED = [
    (folder, variable)
    for folder in FUNCTIONS
    for variable in yaml_parse(deploy.TEMPLATE.read_text())["Resources"][resource(folder)]["Properties"]["Environment"][
        "Variables"
    ]
    if variable not in OPTIONAL
]


def run_probe(
    world: World, folder: str, environment: Mapping[str, str], event: Any = None
) -> subprocess.CompletedProcess[str]:
    function = world.functions[resource(folder)]
    layers = [layer / "python" if (layer / "python").is_dir() else layer for layer in function.layers]
    path = os.pathsep.join(str(each) for each in (function.code, *layers))
    return subprocess.run(
        [sys._base_executable, "-S", "-P", "-B", probe.__file__],
        env={**environment, "PYTHONPATH": path, "AWS_LAMBDA_FUNCTION_NAME": function.name},
        input=json.dumps(event),
        capture_output=True,
        text=True,
        cwd=function.code,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def first_requests(the_world: World) -> Mapping[str, Any]:
    """What each function loaded at init and in its first request, by its folder."""
    seen = {}
    for folder, name in FIRST_EVENTS.items():
        the_world.clean()
        event = sample(name)
        CASES[name].given(the_world, event)
        ran = run_probe(the_world, folder, the_world.environment(folder), event)
        assert ran.returncode == 0, ran.stderr
        seen[folder] = json.loads(ran.stdout.splitlines()[-1])
    return seen


def of_packages(modules: list[str], packages: tuple[str, ...]) -> list[str]:
    return [name for name in modules if any(name == package or name.startswith(f"{package}.") for package in packages)]


def test_every_function_is_looked_at() -> None:
    assert set(FIRST_EVENTS) == set(UNUSED) == set(FUNCTIONS)


@pytest.mark.parametrize("folder", FUNCTIONS)
def test_init_loads_nothing_that_the_function_does_not_use(folder: str, first_requests: Mapping[str, Any]) -> None:
    assert of_packages(first_requests[folder]["at_init"], (*UNUSED[folder], *NEVER)) == []


@pytest.mark.parametrize("folder", FUNCTIONS)
def test_first_request_finds_everything_loaded(folder: str, first_requests: Mapping[str, Any]) -> None:
    assert of_packages(first_requests[folder]["later"], COSTLY) == []


@pytest.mark.parametrize("folder", FUNCTIONS)
def test_first_request_is_answered_with_nothing_but_the_layers(folder: str, first_requests: Mapping[str, Any]) -> None:
    answer = first_requests[folder]["answer"]
    if "body" in answer:
        answer = answer | {"body": json.loads(answer["body"])}
    assert answer == CASES[FIRST_EVENTS[folder]].answer


@pytest.mark.parametrize(("folder", "variable"), REQUIRED)
def test_missing_variable_is_named_at_init(folder: str, variable: str, world: World) -> None:
    environment = world.environment(folder) | {"AWS_LAMBDA_FUNCTION_NAME": resource(folder)}
    del environment[variable]

    with patch.dict(os.environ, environment, clear=True), pytest.raises(MissingSetting, match=rf"\b{variable}\b"):
        world.load(folder)


@pytest.mark.parametrize("folder", FUNCTIONS)
def test_everything_is_made_at_init(folder: str, world: World) -> None:
    """With all its variables a function initialises without asking anybody anything: nobody listens where it would."""
    environment = world.environment(folder) | {
        "AWS_LAMBDA_FUNCTION_NAME": resource(folder),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
    }

    with patch.dict(os.environ, environment, clear=True):
        world.load(folder)


@pytest.mark.parametrize("folder", FUNCTIONS)
def test_handler_is_wiring(folder: str) -> None:
    text = (deploy.ROOT / "functions" / folder / "handler.py").read_text()
    body = text[text.index("\ndef handler(") :].strip().splitlines()

    assert len(body) < 40
    assert len(text.splitlines()) < 60
    assert [file.name for file in (deploy.ROOT / "functions" / folder).iterdir() if file.is_file()] == ["handler.py"]
