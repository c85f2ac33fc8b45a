"""The emulated Workers AI in this process, and what its tests say again and again."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from tunedrop.secret_store import KnownSecret
from tunedrop.workers_ai import CloudflareWorkersAi

from local.gateway import Server
from local.workers_ai import WorkersAiService

BASE = "mistralai/Mistral-7B-Instruct-v0.2"
MODEL = "@cf/mistral/mistral-7b-instruct-v0.2-lora"
LISTING, CREATION = ("GET", "/finetunes$"), ("POST", "/finetunes$")
ACCOUNT, TOKEN = "0123456789abcdef", "a-token-of-these-tests"


class RunningWorkersAi:
    """The service, its address, and a client for it."""

    def __init__(self, server: Server, service: WorkersAiService) -> None:
        self.url = server.url
        self.service = service
        self.client = CloudflareWorkersAi(self.url, ACCOUNT, KnownSecret(TOKEN))

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
        return requests.request(
            method, f"{self.url}/accounts/{ACCOUNT}/ai{path}", headers=headers, timeout=20, **options
        )

    def fault(self, method: str, path: str, fault: dict[str, Any], **counts: Any) -> None:
        order = {"method": method, "path": f"/accounts/{ACCOUNT}/ai{path}", "fault": fault, **counts}
        answer = requests.post(f"{self.url}/_emulator/faults", json=order, timeout=20)
        assert answer.ok, answer.text

    def faults(self) -> list[Any]:
        return requests.get(f"{self.url}/_emulator/faults", timeout=20).json()["faults"]

    def ledger(self) -> dict[str, Any]:
        return requests.get(f"{self.url}/_emulator/ledger", timeout=20).json()

    def clean(self) -> None:
        """Forgets everything."""
        requests.delete(f"{self.url}/_emulator/faults", timeout=20)
        self.service.finetunes.clear()
        self.service.requests.clear()
        self.service.page_size, self.service.limit, self.service._clock = None, 100, time.time


@contextmanager
def running_workers_ai() -> Iterator[RunningWorkersAi]:
    with Server(0) as server:
        service = WorkersAiService(ACCOUNT, TOKEN)
        server.start(service)
        yield RunningWorkersAi(server, service)
