"""How fast the spine is: the stack's start, a drop's way, every function's cold start, the upload's memory.

`python -m tests.bench.stack [--runs N]` prints one table; every figure is the median of N runs of this one call, with
the least and the most. What a figure is held against is measured in the same run.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3

from local.deploy import ACCOUNT, BUILT_LAYERS, REGION, ROOT, client
from local.drop import bucket_client
from local.functions import Function, Lambda
from local.stack import Address

EXAMPLE = ROOT / "events/examples/orchard.jsonl"
SCALE = 600
LARGE_BYTES = 200_000_000
_START = "stepfunctions.describe_state_machine(stateMachineArn='{address.state_machine}')"
_READ = "dynamodb.get_item(TableName='{address.ledger}', Key={{'id': {{'S': 'none'}}}})"
FLOORS: dict[str, tuple[list[str], bool, str]] = {
    "WebhookFunction": (["stepfunctions"], False, _START),
    "UploadFunction": (["dynamodb", "secretsmanager", "s3"], True, _READ),
    "CreateJobFunction": (["dynamodb", "secretsmanager"], True, _READ),
    "PollStatusFunction": (["dynamodb", "secretsmanager"], True, _READ),
    "CollectFunction": (["dynamodb", "secretsmanager", "s3"], True, _READ),
    "NotifyFunction": (["dynamodb", "secretsmanager", "sqs"], False, _READ),
}
"""What each function cannot do without: its clients, whether the provider's, and one request."""
LAYERS = (*BUILT_LAYERS.values(), ROOT / "layers/tunedrop")


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"median (least - most) of {runs} runs")
    starts: list[float] = []
    accepted, published = [], []
    cold: dict[str, list[float]] = {}
    for _ in range(runs):
        with stack(starts) as address:
            to_execution, to_notification = one_drop(address)
            accepted.append(to_execution)
            published.append(to_notification)
            for name in FLOORS:
                cold.setdefault(name, []).append(first_request(Path(address.logs) / f"{name}.log"))
            for name, seconds_ in floors(address).items():
                cold.setdefault(f"floor of {name}", []).append(seconds_)
    row("stack up", starts, "s")
    row("drop -> execution started", accepted, "s")
    row("drop -> notified, less the emulated job's time", published, "s")
    with stack([]) as address:
        row("the same, functions warm: -> execution started", [one_drop(address)[0] for _ in range(runs)], "s")
        print(f"upload of {LARGE_BYTES / 1e6:.0f} MB: peak memory {upload_memory(address)} MB")
    print("init and first request, against a handler with the same clients that does one request and nothing else:")
    for name in FLOORS:
        row(name, cold[name], "s")
        row("  its floor", cold[f"floor of {name}"], "s")
        ratios = [a / b for a, b in zip(cold[name], cold[f"floor of {name}"], strict=True)]
        row("  ratio", ratios, "times")
    return 0


def row(name: str, figures: list[float], unit: str) -> None:
    """One line of the table."""
    print(f"{name:48} {statistics.median(figures):8.3f} ({min(figures):.3f} - {max(figures):.3f}) {unit}", flush=True)


def first_request(log: Path) -> float:
    """Seconds of initialisation and of the first request, as the function's first REPORT line has them."""
    found = re.search(r"\tDuration: ([\d.]+) ms.*\tInit Duration: ([\d.]+) ms", log.read_text())
    assert found, log
    return (float(found[1]) + float(found[2])) / 1000


def floors(address: Address) -> dict[str, float]:
    """Seconds of initialisation and first request of the least that each function could be."""
    with tempfile.TemporaryDirectory() as folder:
        functions = []
        for name, (clients, openai, request) in FLOORS.items():
            code = Path(folder) / name
            code.mkdir()
            made = [f"{service} = boto3.client({service!r})" for service in clients]
            if openai:
                made.append("provider = openai.OpenAI(api_key='none', max_retries=0)")
            lines = [
                "import boto3",
                "import openai" if openai else "",
                "from aws_lambda_powertools import Logger",
                "logger = Logger(service='floor')",
                *made,
                "@logger.inject_lambda_context",
                "def handler(event, context):",
                f"    {request.format(address=address)}",
                "    logger.info('done')",
            ]
            (code / "handler.py").write_text("\n".join(lines))
            arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"
            functions.append(Function(name, arn, "handler.handler", code, LAYERS, {}, 60, 512))
        logs = Path(folder) / "logs"
        with Lambda(functions, aws_endpoint=address.aws, logs=logs) as service:
            for function in functions:
                answer = service.invoke(function.name)
                assert answer.function_error is None, answer.payload
        return {function.name: first_request(logs / f"{function.name}.log") for function in functions}


@contextmanager
def stack(starts: list[float], *options: str) -> Iterator[Address]:
    """A stack of its own; the seconds until it is up are added to `starts`."""
    began = time.monotonic()
    command = [sys.executable, "-m", "local", "up", "--json", "--time-scale", str(SCALE), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    try:
        address = Address(**json.loads(process.stdout.readline()))
        starts.append(time.monotonic() - began)
        yield address
    finally:
        process.terminate()
        process.wait()


def put(address: Address, key: str, file: Path) -> float:
    """Puts a file; the epoch second before it."""
    s3 = bucket_client(address)
    began = time.time()
    s3.upload_file(str(file), address.bucket, key)
    return began


def one_drop(address: Address) -> tuple[float, float]:
    """Seconds from a drop to its execution's start, and to its notification without the emulated job's own time."""
    key = f"bench/{time.monotonic_ns()}.jsonl"
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        # Another first example for every drop, lest it be a duplicate.
        example = {"messages": [{"role": "user", "content": key}, {"role": "assistant", "content": key}]}
        file.write(json.dumps(example).encode() + b"\n" + EXAMPLE.read_bytes())
        file.flush()
        began = put(address, key, Path(file.name))
    note = until(lambda: next((n for n in told(address) if n["message"]["data"]["key"] == key), None))
    ended = time.time()
    run = note["message"]["data"]
    execution = client("stepfunctions", address.aws).describe_execution(
        executionArn=address.state_machine.replace(":stateMachine:", ":execution:") + f":{run['run_id']}"
    )
    headers = {"authorization": f"Bearer {address.provider_key}"}
    job = urllib3.request("GET", f"{address.provider}/fine_tuning/jobs/{run['job_id']}", headers=headers).json()
    training = (job["finished_at"] - job["created_at"]) / address.time_scale
    return execution["startDate"].timestamp() - began, ended - began - training


def told(address: Address) -> list[dict[str, Any]]:
    """The notifications that have arrived."""
    found: list[dict[str, Any]] = urllib3.request("GET", f"{address.control}/notifications").json()
    return found


def until[Found](look: Callable[[], Found | None], within: float = 120) -> Found:
    """What `look` finds, as soon as it does; raises TimeoutError."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        if (found := look()) is not None:
            return found
        time.sleep(0.02)
    raise TimeoutError


def upload_memory(address: Address) -> int:
    """The most memory in MB that the upload function held with a dataset of `LARGE_BYTES`."""
    line = EXAMPLE.read_bytes()
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        for _ in range(LARGE_BYTES // len(line)):
            file.write(line)
        file.flush()
        put(address, "bench/large.jsonl", Path(file.name))
    log = Path(address.logs) / "UploadFunction.log"

    def uploaded() -> int | None:
        runs = [
            d["answer"]["accepted"]
            for d in deliveries(address)
            if d["message"]["object"]["key"] == "bench/large.jsonl" and d["answer"]
        ]
        if not runs:
            return None
        run_id = runs[0][0]["run_id"]
        executions = client("stepfunctions", address.aws).get_execution_history(
            executionArn=address.state_machine.replace(":stateMachine:", ":execution:") + f":{run_id}"
        )["events"]
        if not any(event["type"] == "LambdaFunctionSucceeded" for event in executions):
            return None
        return max(int(found) for found in re.findall(r"Max Memory Used: (\d+) MB", log.read_text()))

    return until(uploaded, 300)


def deliveries(address: Address) -> list[dict[str, Any]]:
    """What the bucket told the webhook."""
    found: list[dict[str, Any]] = urllib3.request("GET", f"{address.control}/deliveries").json()
    return found


if __name__ == "__main__":
    sys.exit(main())
