"""The embedded stack: the real template, state machine and handlers, around emulations of AWS, R2 and the provider."""

import base64
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import urllib3
from samtranslator.yaml_helper import yaml_parse
from tunedrop.errors import Unauthorised
from tunedrop.providers import profile_of, read_profiles
from tunedrop.secret_store import keys_of
from werkzeug import Request, Response

from local import deploy
from local.functions import Lambda
from local.gateway import Gateway, Server
from local.http_api import HttpApi
from local.provider.client import ProviderProcess
from local.provider.manners import MANNERS
from local.queues import Poller
from local.r2 import Forwarder, Object, guarded, keep_on_disk, notifying, streaming
from local.receiver import Receiver

WEBHOOK_PATH = "/events/r2"
R2_ACCOUNT = "0123456789abcdef0123456789abcdef"
STACKS = deploy.ROOT / ".local"
DEFAULT_TIME_SCALE = 60.0
HEARTBEAT_MINUTES = 60


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a stack is to be: `port` is the first of its ports, 0 for any; `provider_url` another service to use.
    `provider_key` is its key, or JSON with those of several services.

    `parameters` are template.yaml's own. `time_scale` seconds pass for waits, deadlines and the emulated provider in
    one real second; against another service than the emulated one time is real unless it is given.
    """

    port: int = 0
    provider_url: str | None = None
    provider_key: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    time_scale: float | None = None

    @property
    def scale(self) -> float:
        """The time scale that holds."""
        if self.time_scale is not None:
            return self.time_scale
        return 1.0 if self.provider_url else DEFAULT_TIME_SCALE


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where everything is; what is null is not part of the template yet."""

    s3: str
    bucket: str
    access_key_id: str
    secret_access_key: str
    webhook: str
    webhook_secret: str
    callbacks: str
    callback_secret: str
    api: str
    api_token: str | None
    provider: str
    provider_key: str
    provider_control: str | None
    aws: str
    control: str
    ledger: str
    state_machine: str
    logs: str
    time_scale: float
    pid: int

    def to_json(self) -> str:
        """The addresses as one line of JSON."""
        return json.dumps(asdict(self))


class Stack:
    """A running embedded stack; close it, or use it as a context manager."""

    def __init__(self, options: Options) -> None:
        """Starts everything; raises `deploy.InvalidParameter` before anything is left running."""
        with ExitStack() as parts:
            self.address = self._start(options, parts)
            self._parts = parts.pop_all()

    def close(self) -> None:
        """Ends everything that was started."""
        self._parts.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, options: Options, parts: ExitStack) -> Address:
        deploy.check({"ProviderBaseUrl": options.provider_url or "", **options.parameters})
        started = time.time()
        port = iter(range(options.port, options.port + 5)) if options.port else iter([0] * 5)
        gateway = parts.enter_context(Gateway(next(port)))
        s3 = parts.enter_context(Server(next(port)))
        api = parts.enter_context(HttpApi(next(port)))
        control = parts.enter_context(Server(next(port)))
        folder = STACKS / f"stack-{gateway.port}"

        callback_url = f"{api.url}/callbacks/{_default(options.parameters)}"
        callback_secret = _webhook_secret()
        manners = _manners(options.parameters)
        secret = options.provider_key or "sk-emulation-" + secrets.token_hex(12)
        key = _key_of(_default(options.parameters), secret)
        provider = None
        if not options.provider_url:
            provider = parts.enter_context(
                ProviderProcess(next(port), key, options.scale, started, (callback_url, callback_secret), manners)
            )
        functions = parts.enter_context(
            Lambda((), aws_endpoint=gateway.url, logs=folder / "logs", time_scale=options.scale, clock_start=started)
        )
        gateway.serve(functions, time_scale=options.scale)

        webhook_secret, receiver_secret = _webhook_secret(), _webhook_secret()
        self.receiver = parts.enter_context(Receiver(receiver_secret))
        storage = {"access_key_id": secrets.token_hex(16), "secret_access_key": secrets.token_hex(32)}
        provider_url = options.provider_url or (provider.url if provider else "")
        deployment = deploy.deploy(
            gateway.url,
            {
                **({} if options.provider_url or manners == "openai" else {"DefaultModel": _model_of(manners)}),
                "AllowLoopback": "true",
                "CallbackHeartbeatMinutes": "0" if options.provider_url else str(HEARTBEAT_MINUTES),
                "ProviderBaseUrl": provider_url,
                "StorageEndpoint": s3.url,
                **options.parameters,
            },
            {
                "CallbackSecret": json.dumps({callback_url.rsplit("/", 1)[1]: callback_secret}),
                "NotificationSecret": json.dumps([{"url": self.receiver.url, "secret": receiver_secret}]),
                "ProviderSecret": secret,
                "StorageSecret": json.dumps(storage),
                "WebhookSecret": webhook_secret,
            },
        )
        for function in deployment.functions:
            functions.create(function)
        self.functions = functions
        api.serve(functions, deployment.routes)
        for mapping in deployment.queues:
            parts.enter_context(Poller(mapping, functions, gateway.url))

        self.forwarder = Forwarder(api.url + WEBHOOK_PATH, webhook_secret)
        parts.callback(self.forwarder.close)
        # Runs are timed by the scaled clock: what happens to their datasets must be too.
        bucket_clock = lambda: started + (time.time() - started) * options.scale  # noqa: E731
        self.access_key_ids = {storage["access_key_id"]}
        s3.start(guarded(_r2(self.forwarder, bucket_clock), self.access_key_ids))
        bucket = deployment.parameters["BucketName"]
        deploy.client("s3", gateway.url).create_bucket(Bucket=bucket)

        address = Address(
            s3=s3.url,
            bucket=bucket,
            **storage,
            webhook=api.url + WEBHOOK_PATH,
            webhook_secret=webhook_secret,
            callbacks=callback_url,
            callback_secret=callback_secret,
            api=api.url,
            api_token=None,
            provider=provider_url,
            provider_key=key,
            provider_control=provider.control if provider else None,
            aws=gateway.url,
            control=control.url,
            ledger=deployment.outputs["LedgerTable"],
            state_machine=deployment.outputs["StateMachineArn"],
            logs=str(folder / "logs"),
            time_scale=options.scale,
            pid=os.getpid(),
        )
        control.start(Request.application(self._control))
        note = folder / "stack.json"
        note.write_text(address.to_json())
        parts.callback(note.unlink, missing_ok=True)
        return address

    def _control(self, request: Request) -> Response:
        """The stack's own interface, for those who watch it and those who test it."""
        what = request.path.strip("/")
        if request.method == "POST":
            given = json.loads(request.get_data())
            if what == "faults":
                self.functions.inject(given.pop("function"), given)
            elif what == "restart":
                self.functions.restart(given["function"])
            elif what == "access_keys":
                self.access_key_ids.clear()
                self.access_key_ids.update(given["accepted"])
            elif what == "receiver":
                self.receiver.refuse(**given)
            else:
                return Response(status=404)
            return Response(status=204)
        answers = {
            "": lambda: asdict(self.address),
            "deliveries": lambda: [asdict(delivery) for delivery in self.forwarder.deliveries],
            "notifications": lambda: self.receiver.received,
        }
        if what not in answers:
            return Response(status=404)
        return Response(json.dumps(answers[what]()), mimetype="application/json")


def running() -> Address | None:
    """The youngest stack that runs on this machine out of this folder."""
    notes = sorted(STACKS.glob("stack-*/stack.json"), key=lambda note: note.stat().st_mtime, reverse=True)
    for note in notes:
        address = Address(**json.loads(note.read_text()))
        if answers(address):
            return address
    return None


def answers(address: Address) -> bool:
    """Whether the stack runs."""
    try:
        return urllib3.request("GET", address.control, retries=False, timeout=2).status == 200
    except urllib3.exceptions.HTTPError:
        return False


def _manners(parameters: Mapping[str, str]) -> str:
    """The service that the emulated one is to be like: what the provider's profile is like."""
    return profile_of(_default(parameters), read_profiles(parameters.get("Providers", ""))).like


def _default(parameters: Mapping[str, str]) -> str:
    """The name of the provider that trains where a job specification names none."""
    return parameters.get("Provider", "openai")


def _key_of(provider: str, secret: str) -> str:
    """Its key, where the secret may hold those of several."""
    try:
        return keys_of(secret, provider)[provider]
    except (KeyError, Unauthorised):
        raise deploy.InvalidParameter(
            f'the provider key must be that of {provider}, or JSON with one for it: {{"{provider}": "…"}}'
        ) from None


def _model_of(manners: str) -> str:
    """A model that the emulated service trains, in place of the default, which it may not know."""
    supervised = [name for name, methods in MANNERS[manners].models.items() if "supervised" in methods]
    default = deploy.parameters_of(yaml_parse(deploy.TEMPLATE.read_text()), {})["DefaultModel"]
    return default if default in supervised else supervised[0]


def _webhook_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def _r2(forwarder: Forwarder, clock: Callable[[], float]) -> Any:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends

    keep_on_disk()

    def stored(bucket: str, key: str) -> tuple[str, int] | None:
        found = s3_backends[deploy.ACCOUNT]["aws"].get_object(bucket, key)
        return (found.etag.strip('"'), found.size) if found else None

    def content(bucket: str, key: str) -> Object | None:
        backend = s3_backends[deploy.ACCOUNT]["aws"]
        found = backend.get_object(bucket, key) if bucket in backend.buckets else None
        if found is None:
            return None

        def read(offset: int, count: int) -> bytes:
            with found.lock:
                found._value_buffer.seek(offset)
                return bytes(found._value_buffer.read(count))

        etag = found.etag.strip('"')
        content_type = found.metadata.get("Content-Type", "binary/octet-stream")
        return Object(etag, found.size, content_type, found.last_modified_RFC1123, read)

    moto = streaming(DomainDispatcherApplication(create_backend_app), content)
    return notifying(moto, R2_ACCOUNT, stored, forwarder.tell, clock)
