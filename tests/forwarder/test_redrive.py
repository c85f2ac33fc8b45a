"""redrive.mjs against a double of Cloudflare's API, by https://developers.cloudflare.com/queues/configuration/pull-consumers/."""

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug import Request, Response

from local import npm
from local.cloudflare import FORWARDER, forwarder
from local.gateway import Server
from tests.forwarder.world import event

WORKER = forwarder({})
(EVENTS,) = WORKER["queueConsumers"]
(DEAD_LETTERS,) = WORKER["queueProducers"].values()
TOKEN = "a token"


class Api(Server):
    """Two queues of one account; what is pulled is leased until it is let go or given back."""

    def __init__(self) -> None:
        super().__init__()
        self.letters: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.leased: set[str] = set()
        self.refuses = ""
        self.start(Request.application(self._respond))

    def die(self, body: Any, *, at: float = 0, kind: str = "json") -> None:
        text = json.dumps(body)
        number = str(len(self.letters))
        self.letters.append(
            {
                "id": number,
                "lease_id": f"lease {number}",
                "timestamp_ms": int((at or time.time() - 60) * 1000),
                "attempts": 1,
                "metadata": {"CF-Content-Type": kind},
                "body": text if kind == "text" else base64.b64encode(text.encode()).decode(),
            }
        )

    def _respond(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {TOKEN}"
        what = request.path.removeprefix("/accounts/an account/queues")
        given = json.loads(request.get_data() or b"null")
        if self.refuses and what.endswith(self.refuses):
            return Response(json.dumps({"success": False, "errors": [{"code": 10000, "message": "no"}]}), 403)
        result: Any = None
        if not what:
            result = [{"queue_name": name, "queue_id": name} for name in ("another", EVENTS, DEAD_LETTERS)]
        elif what == f"/{DEAD_LETTERS}/messages/pull":
            free = [each for each in self.letters if each["lease_id"] not in self.leased]
            result = {"messages": free[: given["batch_size"]]}
            self.leased |= {each["lease_id"] for each in result["messages"]}
        elif what == f"/{DEAD_LETTERS}/messages/ack":
            acked = {each["lease_id"] for each in given["acks"]}
            self.letters = [each for each in self.letters if each["lease_id"] not in acked]
            self.leased -= acked | {each["lease_id"] for each in given["retries"]}
        elif what == f"/{EVENTS}/messages/batch":
            assert len(given["messages"]) <= 100
            self.sent += given["messages"]
        else:
            return Response(json.dumps({"success": False, "errors": [what]}), 404)
        return Response(json.dumps({"success": True, "errors": [], "messages": [], "result": result}))


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as api:
        yield api


def redrive(api: Api, *arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    try:
        node = npm.node()
    except npm.NoNode as missing:
        pytest.skip(str(missing))
    account = {"CLOUDFLARE_ACCOUNT_ID": "an account", "CLOUDFLARE_API_TOKEN": token}
    return subprocess.run(
        [node, FORWARDER / "redrive.mjs", *arguments],
        env={**os.environ, **account, "CLOUDFLARE_API_BASE_URL": api.url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def letter(key: str) -> dict[str, Any]:
    return {"reason": "the webhook answered 401", "attempts": 1, "died": "2026-03-05", "event": event(key)}


def test_every_dead_letter_is_sent_again_as_the_event_that_it_was(api: Api) -> None:
    keys = [f"日本 {number}.jsonl" for number in range(120)]
    for key in keys:
        api.die(letter(key))
    api.die(event("given up.jsonl"))
    api.die(letter("text.jsonl"), kind="text")

    ran = redrive(api)

    assert ran.returncode == 0, ran.stderr
    assert [each["body"] for each in api.sent] == [event(key) for key in (*keys, "given up.jsonl", "text.jsonl")]
    assert {each["content_type"] for each in api.sent} == {"json"}
    assert (api.letters, api.leased) == ([], set())
    assert "sent  日本 0.jsonl  the webhook answered 401" in ran.stdout
    assert ran.stdout.endswith("122 dead letters sent again\n")


def test_listing_leaves_them_where_they_are(api: Api) -> None:
    api.die(letter("a.jsonl"))

    ran = redrive(api, "--list")

    assert ran.stdout == "dead  a.jsonl  the webhook answered 401\n1 dead letter\n"
    assert (api.sent, len(api.letters), api.leased) == ([], 1, set())


def test_what_dies_again_meanwhile_is_not_sent_again(api: Api) -> None:
    api.die(letter("a.jsonl"))
    api.die(letter("again.jsonl"), at=time.time() + 60)

    redrive(api)

    assert [each["body"]["object"]["key"] for each in api.sent] == ["a.jsonl"]
    assert (len(api.letters), api.leased) == (1, set())


@pytest.mark.parametrize("refuses", ["batch", "ack", "pull"])
def test_no_letter_is_lost_where_cloudflare_refuses(api: Api, refuses: str) -> None:
    api.die(letter("a.jsonl"))
    api.refuses = refuses

    ran = redrive(api)

    assert ran.returncode == 1
    assert "Cloudflare answered 403" in ran.stderr
    assert len(api.letters) == 1


def test_it_says_what_it_needs(api: Api) -> None:
    ran = redrive(api, token="")
    assert (ran.returncode, ran.stderr) == (1, "set CLOUDFLARE_ACCOUNT_ID and CLOUDFLARE_API_TOKEN\n")
