"""The emulated service as a process, and what its tests say again and again."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai
import requests

KEY = "sk-emulated"


@dataclass
class Provider:
    """A running service, its client and its control."""

    process: subprocess.Popen[str]
    url: str
    control: str

    def __post_init__(self) -> None:
        self.client = openai.OpenAI(api_key=KEY, base_url=self.url, max_retries=0, timeout=20)

    @classmethod
    def start(cls, *options: str, time_scale: float = 2000) -> "Provider":
        command = [sys.executable, "-m", "local.provider", "--api-key", KEY, "--time-scale", str(time_scale), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        return cls(process, **json.loads(process.stdout.readline()))

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(10)

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {KEY}"} | options.pop("headers", {})
        return requests.request(method, self.url + path, headers=headers, timeout=20, **options)

    def order(self, method: str, path: str, body: Any = None) -> Any:
        answer = requests.request(method, self.control + path, json=body, timeout=20)
        assert answer.ok, answer.text
        return answer.json()

    def fault(self, method: str, path: str, fault: dict[str, Any], **counts: Any) -> None:
        self.order("POST", "/faults", {"method": method, "path": path, "fault": fault, **counts})

    def upload(self, content: bytes | None = None, purpose: str = "fine-tune", name: str = "data.jsonl") -> Any:
        file = self.client.files.create(file=(name, chats() if content is None else content), purpose=purpose)
        return until(lambda: self.client.files.retrieve(file.id), lambda found: found.status == "processed")

    def job(self, **options: Any) -> Any:
        if "training_file" not in options:
            options["training_file"] = self.upload().id
        return self.client.fine_tuning.jobs.create(**{"model": "gpt-4o-mini"} | options)

    def wait_for(self, job_id: str, *statuses: str) -> Any:
        return until(lambda: self.client.fine_tuning.jobs.retrieve(job_id), lambda job: job.status in statuses)


def until[T](ask: Callable[[], T], right: Callable[[T], bool], seconds: float = 10) -> T:
    deadline = time.monotonic() + seconds
    while not right(answer := ask()):
        assert time.monotonic() < deadline, f"still {answer}"
        time.sleep(0.005)
    return answer


def chats(count: int = 12) -> bytes:
    examples = (
        {
            "messages": [
                {"role": "user", "content": f"How do I water plant number {number}?"},
                {"role": "assistant", "content": f"Give it {number} spoons on Mondays, fewer in winter."},
            ]
        }
        for number in range(count)
    )
    return lines(examples)


def lines(examples: Any) -> bytes:
    return b"".join(json.dumps(example).encode() + b"\n" for example in examples)
