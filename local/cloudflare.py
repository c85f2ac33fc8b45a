"""Cloudflare's half in its own runtime: R2, the queue and the forwarder in miniflare, which is workerd.

R2 and the queue are miniflare's. It lets S3 clients into a bucket, at `S3_PATH`, and emits no events. So all requests
go through `local.r2.notifying`, which makes R2's messages of those that have changed something; here they are put into
the queue, and the real forwarder takes them from there, under the settings of its own wrangler.jsonc. Keys that a URL
cannot hold as they are, with a segment of `..` or a line break, are out of reach of miniflare's S3, not of the rest.
"""

import http.client
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote_plus, urlsplit

import urllib3
from botocore.exceptions import ClientError
from tunedrop.bucket import s3_client
from tunedrop.events import ObjectEvent, parse
from tunedrop.secret_store import KnownSecret
from werkzeug import Request, Response

from local import npm
from local.deploy import ROOT
from local.gateway import Server, WsgiApp
from local.r2 import Delivery, dating, notifying

S3_PATH = "/cdn-cgi/local/r2/s3"
FORWARDER = ROOT / "functions" / "r2_forwarder"
_RUNNER = ROOT / "local" / "workerd.mjs"
_EVENTS = """
export default {
  async fetch(request, env) {
    await env.EVENTS.send(await request.json(), { contentType: "json" });
    return new Response(null, { status: 204 });
  },
};
"""
_BLOCK = 1 << 18
_ENDED_SECONDS = 10
_WEBHOOK_SECONDS = 60
_OF_ONE_CONNECTION = {"connection", "expect", "keep-alive", "transfer-encoding"}


class Workerd:
    """Workers in miniflare; `url` is the first one's. Close it, or use it as a context manager."""

    def __init__(self, workers: Sequence[Mapping[str, Any]], log: Path) -> None:
        """Starts them; raises `npm.NoNode`, or OSError where they do not start."""
        command = [npm.node(), _RUNNER, npm.LOCK]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603 - the command is ours
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.url = self._start(json.dumps({"workers": workers}))
        if not self.url:
            self.close()
            raise OSError(f"workerd did not start; see {log}")

    def _start(self, options: str) -> str:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            return ""
        stdin.write(options + "\n")
        stdin.flush()
        return stdout.readline().strip()

    def close(self) -> None:
        """Ends them."""
        try:
            self._process.communicate(timeout=_ENDED_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def forwarder(bindings: Mapping[str, Any], **consumer: Any) -> dict[str, Any]:
    """The forwarder as miniflare's options have it, from its wrangler.jsonc.

    `bindings` come on top of its variables, `consumer` of the settings of its queue.
    """
    text = re.sub(r"^\s*//.*$", "", (FORWARDER / "wrangler.jsonc").read_text(), flags=re.MULTILINE)
    config = json.loads(text)
    (queue,), (dead_letters,) = config["queues"]["consumers"], config["queues"]["producers"]
    return {
        "name": config["name"],
        "modules": True,
        "rootPath": str(FORWARDER),
        "scriptPath": config["main"],
        "compatibilityDate": config["compatibility_date"],
        "bindings": {**config["vars"], **bindings},
        "queueProducers": {dead_letters["binding"]: dead_letters["queue"]},
        "queueConsumers": {
            queue["queue"]: {
                "maxBatchSize": queue["max_batch_size"],
                "maxBatchTimeout": queue["max_batch_timeout"],
                "maxRetries": queue["max_retries"],
                "retryDelay": queue["retry_delay"],
                "deadLetterQueue": queue["dead_letter_queue"],
                **consumer,
            }
        },
    }


class Cloudflare:
    """A bucket of R2 whose events the forwarder takes to the webhook, by way of the queue."""

    def __init__(self, bucket: str, storage: Mapping[str, str], webhook: str, secret: str, log: Path) -> None:
        """`storage` are the keys for the bucket; raises as `Workerd` does."""
        self.deliveries: list[Delivery] = []
        self._webhook = webhook
        self._http = urllib3.PoolManager(retries=False, timeout=_WEBHOOK_SECONDS)
        self._lock = threading.Lock()
        self._watch = Server().start(Request.application(self._pass_on))
        worker = forwarder({"WEBHOOK_URL": self._watch.url, "WEBHOOK_SECRET": secret}, maxBatchTimeout=0)
        credentials = {"accessKeyId": storage["access_key_id"], "secretAccessKey": storage["secret_access_key"]}
        (queue,) = worker["queueConsumers"]
        r2 = {
            "name": "r2",
            "modules": True,
            "script": _EVENTS,
            "compatibilityDate": worker["compatibilityDate"],
            "r2Buckets": {"BUCKET": {"id": bucket, "s3Credentials": credentials}},
            "queueProducers": {"EVENTS": queue},
        }
        try:
            self._workerd = Workerd([r2, worker], log)
        except BaseException:
            self._watch.close()
            raise
        self._s3 = s3_client(self._workerd.url + S3_PATH, KnownSecret(json.dumps(dict(storage))))

    def close(self) -> None:
        """Ends R2, the queue and the forwarder."""
        self._workerd.close()
        self._watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def s3(self, account: str, scaled: Callable[[float], float]) -> WsgiApp:
        """The bucket's S3 endpoint, at `S3_PATH`; what happens there is told by the `scaled` time."""
        dated = dating(_proxy(self._workerd.url), scaled)
        told = notifying(dated, account, self._stored, self._tell, lambda: scaled(time.time()))

        def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            path = environ["PATH_INFO"].removeprefix(S3_PATH)
            return told({**environ, "SCRIPT_NAME": S3_PATH, "PATH_INFO": path}, start_response)

        return serve

    def _stored(self, bucket: str, key: str) -> tuple[str, int] | None:
        try:
            found = self._s3.head_object(Bucket=bucket, Key=key)
        except ClientError:
            return None
        return found["ETag"].strip('"'), found["ContentLength"]

    def _tell(self, message: dict[str, Any]) -> None:
        with self._lock:
            self.deliveries.append(Delivery(message))
        self._http.request("POST", self._workerd.url, body=json.dumps(message).encode())

    def _pass_on(self, request: Request) -> Response:
        """What the forwarder posts, to the webhook as it is; and what came of it, for those who watch."""
        body = request.get_data()
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        answer = self._http.request("POST", self._webhook, body=body, headers=headers)
        self._note(body, headers.get("Webhook-Id", ""), answer)
        kept = {
            name: value for name, value in answer.headers.items() if name.lower() in ("content-type", "retry-after")
        }
        return Response(answer.data, answer.status, kept)

    def _note(self, body: bytes, message_id: str, answer: urllib3.BaseHTTPResponse) -> None:
        posted = {
            (unquote_plus(record["s3"]["object"]["key"]), record["eventTime"]) for record in json.loads(body)["Records"]
        }
        with self._lock:
            for delivery in self.deliveries:
                if (delivery.message["object"]["key"], delivery.message["eventTime"]) in posted:
                    delivery.id, delivery.attempts = message_id, delivery.attempts + 1
                    delivery.status, delivery.answer = answer.status, _about(delivery.message, answer)


def _about(message: Mapping[str, Any], answer: urllib3.BaseHTTPResponse) -> dict[str, Any] | None:
    """What the webhook answers about one of the messages."""
    try:
        whole = answer.json()
    except ValueError:
        return None
    (event,) = parse(json.dumps(message).encode())
    if "accepted" not in whole or not isinstance(event, ObjectEvent):
        return whole
    run_id = event.run_request().run_id
    accepted = [each for each in whole["accepted"] if each["run_id"] == run_id]
    others = {
        name: [each for each in whole.get(name, []) if each["key"] == event.key and not accepted]
        for name in ("ignored", "cancelling")
        if name in whole
    }
    return {"accepted": accepted, **others}


def _proxy(url: str) -> WsgiApp:
    """Hands requests on byte for byte, with the client's own Host: all of that is signed."""
    address = urlsplit(url).netloc

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        connection = http.client.HTTPConnection(address, timeout=_WEBHOOK_SECONDS)
        connection.putrequest(
            environ["REQUEST_METHOD"], environ["REQUEST_URI"], skip_host=True, skip_accept_encoding=True
        )
        headers = {name[5:].replace("_", "-").lower(): environ[name] for name in environ if name.startswith("HTTP_")}
        for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            if environ.get(name):
                headers[name.replace("_", "-").lower()] = environ[name]
        for name, value in headers.items():
            if name not in _OF_ONE_CONNECTION:
                connection.putheader(name, value)
        connection.endheaders()
        left = int(headers.get("content-length", 0))
        while left and (block := environ["wsgi.input"].read(min(left, _BLOCK))):
            connection.send(block)
            left -= len(block)
        answer = connection.getresponse()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in _OF_ONE_CONNECTION]
        start_response(f"{answer.status} {answer.reason}", kept)
        return iter(lambda: answer.read(_BLOCK), b"")

    return serve
