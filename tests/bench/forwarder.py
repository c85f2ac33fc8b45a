"""How fast Cloudflare's half is, in workerd: a drop's way to its execution, and the forwarder at batches of 100.

`python -m tests.bench.forwarder [--runs N]` prints the median, the least and the most of N runs. The queue waits for no
batch to fill here, as it does for `max_batch_timeout` on an account. A drop is measured by turns in a stack whose
R2 is played by Python and in one whose R2, queue and forwarder are workerd's: the difference is theirs.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from werkzeug import Response

from local.deploy import client
from local.drop import bucket_client
from local.stack import Address
from tests.bench.stack import deliveries, stack, until
from tests.forwarder.world import Webhook, World, event, message

BATCH = 100
BATCHES = 20


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    print(f"median (least - most) of {runs} runs")
    with stack([]) as python, stack([], "--cloudflare", "workerd") as workerd:
        figures: dict[str, list[float]] = {"python": [], "workerd": []}
        for number in range(runs + 1):
            for name, address in (("python", python), ("workerd", workerd)):
                taken = one_put(address, f"{number}.jsonl")
                if number:  # the first finds the functions cold
                    figures[name].append(taken)
    for name, taken in figures.items():
        row(f"put -> execution started, R2 played by {name}", taken, "s", 3)
    with Webhook() as webhook, tempfile.TemporaryDirectory() as folder:
        webhook.always = lambda: Response('{"accepted":[],"ignored":[]}', 202)
        world = World(webhook, Path(folder) / "log")
        with world.workerd:
            row(f"forwarder alone, batches of {BATCH}", [alone(world) for _ in range(runs)], "messages/s", 0)
            row("with the queue", [by_queue(world) for _ in range(runs)], "messages/s", 0)
    return 0


def row(name: str, figures: list[float], unit: str, digits: int) -> None:
    """One line of the table."""
    low, middle, high = (f"{each:.{digits}f}" for each in (min(figures), statistics.median(figures), max(figures)))
    print(f"{name:48} {middle} ({low} - {high}) {unit}", flush=True)


def one_put(address: Address, key: str) -> float:
    """Seconds from a put to the start of its execution; the run is rejected, and costs nothing."""
    s3 = bucket_client(address)
    began = time.time()
    s3.put_object(Bucket=address.bucket, Key=key, Body=b"no dataset\n")

    def run_id() -> str | None:
        told = (each for each in deliveries(address) if each["message"]["object"]["key"] == key and each["answer"])
        return next((str(each["answer"]["accepted"][0]["run_id"]) for each in told), None)

    machine = address.state_machine.replace(":stateMachine:", ":execution:")
    execution = client("stepfunctions", address.aws).describe_execution(executionArn=f"{machine}:{until(run_id)}")
    return float(execution["startDate"].timestamp() - began)


def alone(world: World) -> float:
    """Messages per second that are handed to the forwarder batch by batch."""
    batch = [message(event(f"some/folder/{number}.jsonl")) for number in range(BATCH)]
    began = time.monotonic()
    for _ in range(BATCHES):
        world.deliver(*batch)
    return BATCH * BATCHES / (time.monotonic() - began)


def by_queue(world: World) -> float:
    """Messages per second from the first that is put into the queue to the last that the webhook has got."""
    world.webhook.posts.clear()
    batch = [event(f"some/folder/{number}.jsonl") for number in range(BATCH)]
    began = time.monotonic()
    for _ in range(BATCHES):
        world.send(*batch)
    until(lambda: sum(len(post.records) for post in world.webhook.posts) >= BATCH * BATCHES or None)
    return BATCH * BATCHES / (time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
