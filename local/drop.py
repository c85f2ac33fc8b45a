"""Dropping a file into a running stack, and following its run to the end."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3
from tunedrop.bucket import s3_client
from tunedrop.clock import seconds
from tunedrop.ledger import DynamoLedger, UnknownRun
from tunedrop.runs import CONFIG, WEIGHTS, Run, adapter_key, adapter_name
from tunedrop.secret_store import KnownSecret
from tunedrop.texts import text_of

from local.deploy import client
from local.stack import Address

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LOOK_SECONDS = 0.2
STEP_SECONDS = 1.0
ACCEPTED_SECONDS = 60.0
BESIDE = (".validation.jsonl", ".job.json")


class NotAccepted(RuntimeError):
    """The drop started no run; the message says what the webhook answered."""


def drop(address: Address, file: Path, key: str | None, say: Callable[[str], None]) -> Run:
    """Puts `file` into the bucket, what lies beside it first, and tells of its run until its final state has arrived.

    Raises `NotAccepted` when no run was started, OSError when the file cannot be read.
    """
    key = key or file.name
    file.open("rb").close()  # what cannot be read is said before anything is dropped
    s3 = bucket_client(address)
    for ending in BESIDE:
        beside = file.with_name(file.name.removesuffix(".jsonl") + ending)
        if beside.exists() and key.endswith(".jsonl"):
            s3.upload_file(str(beside), address.bucket, key.removesuffix(".jsonl") + ending)
            say(f"dropped   {beside.name}")
    before = len(_get(address.control, "deliveries"))
    s3.upload_file(str(file), address.bucket, key)
    say(f"dropped   {file.name} as {address.bucket}/{key}")
    run_id = _run_id(address, key, before)
    say(f"accepted  run {run_id}")
    return _follow(address, run_id, say)


def drop_adapter(address: Address, folder: Path, say: Callable[[str], None]) -> Run:
    """Puts the adapter in `folder` into the bucket, under the folder's name, and tells of its run to its end.

    Raises `NotAccepted` when no run was started, OSError when a file cannot be read.
    """
    name, files = folder.resolve().name, [folder / file for file in (CONFIG, WEIGHTS)]
    for file in files:
        file.open("rb").close()  # what cannot be read is said before anything is dropped
    s3 = bucket_client(address)
    before = len(_get(address.control, "deliveries"))
    for file in files:
        s3.upload_file(str(file), address.bucket, adapter_key(name, file.name))
        say(f"dropped   {adapter_key(name, file.name)}, {file.stat().st_size:,} bytes")
    run_id = _run_id(address, adapter_key(name, WEIGHTS), before)
    say(f"accepted  run {run_id}")
    return _follow(address, run_id, say)


def ask_adapter(address: Address, run: Run, prompt: str) -> str:
    """What the published adapter answers; the request is the one that anybody's program would make."""
    order = {"messages": [{"role": "user", "content": prompt}], "raw": True, "lora": run.fine_tuned_model}
    headers = {"authorization": f"Bearer {address.workers_ai_token}"}
    answer = urllib3.request("POST", f"{address.workers_ai}/run/{run.model}", json=order, headers=headers, timeout=60)
    return str(answer.json()["result"]["response"])


def bucket_client(address: Address) -> "S3Client":
    """An S3 client for the stack's bucket, set up as the functions' own is."""
    keys = {"access_key_id": address.access_key_id, "secret_access_key": address.secret_access_key}
    return s3_client(address.s3, KnownSecret(json.dumps(keys)))


def printer(*, as_json: bool) -> Callable[[str], None]:
    """What tells people how it goes: lines with the time that has passed; nothing where a machine reads."""
    if as_json:
        return lambda _: None
    began = time.monotonic()
    dim, plain = ("\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "")

    def say(line: str) -> None:
        print(f"{dim}{time.monotonic() - began:6.1f} s{plain}  {line}", flush=True)

    return say


def _get(control: str, what: str) -> Any:
    return urllib3.request("GET", f"{control}/{what}", timeout=10).json()


def _run_id(address: Address, key: str, before: int) -> str:
    """The run that the webhook started for the drop."""
    end = time.monotonic() + ACCEPTED_SECONDS
    while time.monotonic() < end:
        for delivery in _get(address.control, "deliveries")[before:]:
            if delivery["message"]["object"]["key"] != key or delivery["status"] is None:
                continue
            answer = delivery["answer"] or {}
            for accepted in answer.get("accepted", []):
                return str(accepted["run_id"])
            if delivery["status"] < 500:
                reasons = "; ".join(ignored["reason"] for ignored in answer.get("ignored", []))
                raise NotAccepted(f"the webhook answered {delivery['status']}: {reasons or json.dumps(answer)}")
        time.sleep(LOOK_SECONDS)
    raise NotAccepted(f"the webhook did not accept the event within {ACCEPTED_SECONDS:g} s; see {address.logs}")


def _follow(address: Address, run_id: str, say: Callable[[str], None]) -> Run:
    ledger = DynamoLedger(client("dynamodb", address.aws), address.ledger)
    shown, events = "", _events(address)
    while True:
        try:
            run = ledger.get(run_id)
        except UnknownRun:
            time.sleep(LOOK_SECONDS)
            continue
        if run.state != shown:
            shown = run.state
            say(f"{shown:9} {_detail(run)}".rstrip())
        if run.job_id:
            for message in events(run.job_id):
                say(f"{'':9} {message}")
        if run.is_final and _arrived(address, run_id):
            say("notified  the final state has arrived at the webhook receiver")
            return run
        time.sleep(LOOK_SECONDS)


def _detail(run: Run) -> str:
    if run.is_final:
        return f"after {seconds(run.finished_at or run.created_at) - seconds(run.created_at):,.0f} s on the run's clock"
    if adapter_name(run.key):
        return f"checked, for {run.model}" if run.state == "uploading" and run.model else ""
    details = {
        "waiting": f"{run.examples} examples checked and uploaded as {run.file_id}",
        "training": f"{run.job_id} on {run.model}",
    }
    return details.get(run.state, "")


def _arrived(address: Address, run_id: str) -> bool:
    return any(note["message"]["data"]["run_id"] == run_id for note in _get(address.control, "notifications"))


def _events(address: Address) -> Callable[[str], Iterator[str]]:
    """New messages of a job, each once; what a service cannot tell is not missed."""
    seen: set[str] = set()
    next_step = [0.0]

    def news_of(job_id: str) -> Iterator[str]:
        headers = {"authorization": f"Bearer {address.provider_key}"}
        url = f"{address.provider}/fine_tuning/jobs/{job_id}/events?limit=20"
        try:
            listed = urllib3.request("GET", url, headers=headers, timeout=10).json()["data"]
        except (urllib3.exceptions.HTTPError, ValueError, KeyError):
            return
        news = [event for event in reversed(listed) if event["id"] not in seen]
        seen.update(event["id"] for event in news)
        steps = [event for event in news if event.get("type") == "metrics"]
        # A job makes steps faster than anybody reads: of those since the last look one is told, and of these few.
        told = steps[-1:] if steps and time.monotonic() >= next_step[0] else []
        if told:
            next_step[0] = time.monotonic() + STEP_SECONDS
        for event in news:
            if event.get("type") != "metrics" or event in told:
                yield str(event["message"])

    return news_of


def summary(run: Run) -> str:
    """What is printed at the end: the text that mail and Slack get."""
    return "\n" + text_of(run).rstrip()
