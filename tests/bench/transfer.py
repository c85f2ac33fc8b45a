"""How fast a dataset gets from the bucket to the service, and in how much memory, against what bounds it.

`python -m tests.bench.transfer [--mb 200 --mb 2000] [--runs 3] [--line 75]` starts an embedded stack and prints, for
each size, the median of as many runs and the peak memory of a process that does nothing else: a plain download, a plain
upload by the service's own client, what Tunedrop does without and with its check, and the whole downloaded before it is
uploaded. At last the upload function itself, with everything that it does. Every figure of a size is measured with the
same stack, and what arrives is compared by its sha256. With `--line` all of them reach bucket and service over a line
of that speed, such as the 75 MB/s of a function; without, over a loopback that is faster than the check can be.

It takes four times the dataset on the disk. The emulated bucket takes up to 2 GB of memory while it is given 8 GB; what
is downloaded whole takes as much as it has.
"""

import argparse
import hashlib
import io
import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import urllib3

from local.deploy import ROOT
from local.drop import bucket_client
from local.stack import Address
from tests.bench.line import Line

KEY = "bench/transfer.data"  # which starts no run
DATASET = "bench/transfer.jsonl"
WAYS = {
    "download": "plain download, by boto3",
    "upload": "plain upload, by the client",
    "buffered": "download whole, then upload whole",
    "transfer": "Tunedrop, the bytes alone",
    "rules": "Tunedrop, checked, no tokens counted",
    "checked": "Tunedrop, checked, tokens counted",
}
FILE_LIMIT = 512_000_000


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, action="append", help="size of the dataset; may be given again")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--line", type=float, metavar="MB", help="so many MB a second in each direction; else loopback")
    parser.add_argument("--way", choices=WAYS, action="append", help="only these")
    parser.add_argument("--no-function", action="store_true", help="leave the function itself out")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measured(*options.child)))
        return 0
    for mb in options.mb or [200, 2000]:
        table(mb, options.runs, options.line, options.way or list(WAYS), function=not options.no_function)
    return 0


def table(mb: int, runs: int, line: float | None, ways: list[str], *, function: bool) -> None:
    """Prints the figures of one size."""
    where = f"a line of {line:g} MB/s in each direction" if line else "loopback, which no function has"
    print(f"{mb} MB over {where}: median (least - most) of {runs} runs, processor time, peak memory", flush=True)
    with tempfile.TemporaryDirectory() as folder, stack(line) as (near, address):
        file = Path(folder) / "data.jsonl"
        sha256 = write_dataset(file, mb * 1_000_000)
        bucket_client(near).upload_file(str(file), address.bucket, KEY)
        found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for _ in range(runs):
            for way in ways:
                child = [sys.executable, "-m", "tests.bench.transfer", "--child", way, address.to_json(), str(file)]
                answer = subprocess.run(child, stdout=subprocess.PIPE, check=True, cwd=ROOT)
                found[way].append(json.loads(answer.stdout))
                assert arrived(near) == ([] if way == "download" else [sha256]), f"{way}: other bytes have arrived"
                forget(near)
        plain = [statistics.median(seconds(found[way])) for way in ("download", "upload") if way in found]
        bound = max(plain, default=0)
        for way in ways:
            row(WAYS[way], found[way], bound)
        if function:
            bucket_client(near).delete_object(Bucket=near.bucket, Key=KEY)  # a disk holds only so much
            took = [of_the_function(near, file, mb * 1_000_000, number) for number in range(runs)]
            row("the upload function, its init apart", took, bound)


@contextmanager
def stack(line: float | None) -> Iterator[tuple[Address, Address]]:
    """An embedded stack of its own: its addresses, and those that lead through the line, which its functions use."""
    command = [sys.executable, "-m", "local", "up", "--json", "--time-scale", "1"]
    with ExitStack() as ends:
        ways = [ends.enter_context(closing(Line(line * 1e6).to())) for _ in range(2)] if line else []
        for name, proxy, path in zip(("StorageEndpoint", "ProviderBaseUrl"), ways, ("", "/v1"), strict=False):
            command += ["--set", f"{name}={proxy.url}{path}"]
        process = ends.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT))
        ends.callback(process.terminate)
        assert process.stdout is not None
        near = Address(**json.loads(process.stdout.readline()))
        far = near
        if ways:
            far = replace(near, s3=ways[0].lead_to(near.s3), provider=ways[1].lead_to(near.provider))
        yield near, far


def arrived(address: Address) -> list[str]:
    """The sha256 of each file that the service holds."""
    listed = asked(address, "GET", "/files").json()["data"]
    ledger = urllib3.request("GET", f"{address.provider_control}/ledger").json()
    digests = {file["id"]: file["sha256"] for file in ledger["files"]}
    return [digests[file["id"]] for file in listed]


def forget(address: Address) -> None:
    """Deletes every file at the service: a disk holds only so much."""
    for file in asked(address, "GET", "/files").json()["data"]:
        asked(address, "DELETE", f"/files/{file['id']}")


def asked(address: Address, method: str, path: str) -> Any:
    """What the service answers."""
    headers = {"authorization": f"Bearer {address.provider_key}"}
    return urllib3.request(method, address.provider + path, headers=headers)


def seconds(found: list[dict[str, float]]) -> list[float]:
    """The times of a way's runs."""
    return [figures["seconds"] for figures in found]


def row(name: str, found: list[dict[str, float]], bound: float) -> None:
    """One line of the table; `bound` seconds is what the slower of the plain ways took."""
    times = seconds(found)
    middle = statistics.median(times)
    ratio = f"{middle / bound:5.2f} times the slower plain way" if bound else ""
    peak = max(figures["peak"] for figures in found)
    cpu = statistics.median(figures.get("cpu", math.nan) for figures in found)
    spent = "" if math.isnan(cpu) else f"{cpu:.2f} s"
    print(
        f"{name:40} {middle:7.2f} ({min(times):.2f} - {max(times):.2f}) s {spent:>8} {peak:6.0f} MB  {ratio}",
        flush=True,
    )


def write_dataset(file: Path, size: int, subject: str = "plant") -> str:
    """A valid dataset of about `size` bytes, no example like another: its sha256."""
    text = b"Water it when the top inch of the soil is dry, less in winter, and keep it out of the wind. " * 8
    asked, told = b'{"messages": [{"role": "user", "content": "', b'"}, {"role": "assistant", "content": "'
    example = b'%bHow do I look after %b number %%d?%b%%d: %b"}]}\n' % (asked, subject.encode(), told, text)
    sha256 = hashlib.sha256()
    with file.open("wb") as target:
        for number in range(size // 890):
            line = example % (number, number)
            sha256.update(line)
            target.write(line)
    return sha256.hexdigest()


def measured(way: str, address: str, file: str) -> dict[str, float]:
    """Seconds, seconds of the processor, and peak megabytes of one way, in this process."""
    work = prepared(way, Address(**json.loads(address)), Path(file))
    began, spent = time.monotonic(), time.process_time()
    work()
    took, spent = time.monotonic() - began, time.process_time() - spent
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return {"seconds": took, "cpu": spent, "peak": int(peak.split()[1]) / 1024}


def prepared(way: str, address: Address, file: Path) -> Callable[[], object]:
    """A way, ready to go: what has to be imported and made for it is no part of its time."""
    if way == "download":
        import boto3  # noqa: F401

        s3 = bucket_client(address)
        s3.head_object(Bucket=address.bucket, Key=KEY)
        return lambda: s3.download_fileobj(address.bucket, KEY, Nothing())
    if way in ("upload", "buffered"):
        import openai

        client = openai.OpenAI(api_key=address.provider_key, base_url=address.provider, max_retries=0)
        client.files.list()
        s3 = bucket_client(address)

        def upload(content: Any, size: int) -> None:
            if size <= FILE_LIMIT:
                client.files.create(file=("plain.jsonl", content), purpose="fine-tune")
            else:
                arguments: dict[str, Any] = {"mime_type": "application/jsonl", "purpose": "fine-tune"}
                if not isinstance(content, bytes):
                    content = file
                else:
                    arguments |= {"filename": "plain.jsonl", "bytes": size}
                client.uploads.upload_file_chunked(file=content, **arguments)

        def buffered() -> None:
            body = s3.get_object(Bucket=address.bucket, Key=KEY)["Body"].read()
            upload(body, len(body))

        return buffered if way == "buffered" else lambda: upload(file.open("rb"), file.stat().st_size)
    return tunedrop(way, address)


def tunedrop(way: str, address: Address) -> Callable[[], object]:
    """Tunedrop's own parts, put together as the upload step does it."""
    from datetime import UTC, datetime

    from tunedrop.bucket import S3Bucket
    from tunedrop.ledger import DynamoLedger
    from tunedrop.preflight import Wanted, make_ready, preflight
    from tunedrop.provider import OpenAIProvider
    from tunedrop.providers import PROFILES
    from tunedrop.runs import Run, RunRequest
    from tunedrop.secret_store import KnownSecret
    from tunedrop.transfer import Outgoing

    from local.deploy import client

    keys = {"access_key_id": address.access_key_id, "secret_access_key": address.secret_access_key}
    bucket = S3Bucket(address.bucket, address.s3, KnownSecret(json.dumps(keys)))
    provider = OpenAIProvider(PROFILES["openai"], address.provider, KnownSecret(address.provider_key))
    ledger = DynamoLedger(client("dynamodb", address.aws), address.ledger)
    run = ledger.begin(Run.of(RunRequest(uuid.uuid4().hex, address.bucket, KEY, "", None)))
    today = datetime.now(UTC).date()
    wanted = Wanted(today=today, model="gpt-4.1-mini", at_home=False, count_tokens=way == "checked")
    provider.files_named("none")
    if way != "transfer":
        make_ready("gpt-4.1-mini")  # as the function does at its start

    def work() -> None:
        stored = bucket.open(KEY)
        with Outgoing(run.run_id, f"{run.run_id}.jsonl", stored.size, provider=provider, ledger=ledger) as sending:
            chunks = sending.through(stored.chunks)
            if way == "transfer":
                for _ in chunks:
                    pass
            else:
                report = preflight(chunks, None, None, wanted).report
                assert report.valid, report.errors
            sending.commit()

    return work


class Nothing(io.RawIOBase):
    """A file that keeps nothing."""

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return offset

    def write(self, data: Any) -> int:
        return len(data)


def of_the_function(address: Address, file: Path, size: int, number: int) -> dict[str, float]:
    """Seconds and peak megabytes of the upload function, in all its calls, on a dataset that is dropped now."""
    sha256 = write_dataset(file, size, f"tree {number}")  # the same one again would be a duplicate
    log = Path(address.logs) / "UploadFunction.log"
    before = len(log.read_text()) if log.exists() else 0
    bucket_client(address).upload_file(str(file), address.bucket, DATASET)
    end = time.monotonic() + 3600
    while time.monotonic() < end:
        text = log.read_text()[before:] if log.exists() else ""
        calls = re.findall(r"\tDuration: ([\d.]+) ms.*Max Memory Used: (\d+) MB", text)
        files = arrived(address)
        if files and calls and len(calls) == text.count("START RequestId"):
            assert files == [sha256], "other bytes have arrived"
            forget(address)
            peak = max(int(peak) for _, peak in calls)
            return {"seconds": sum(float(took) for took, _ in calls) / 1000, "peak": peak}
        time.sleep(1)
    raise TimeoutError


if __name__ == "__main__":
    sys.exit(main())
