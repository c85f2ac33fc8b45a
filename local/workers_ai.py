"""The emulated Workers AI: finetunes, their two files, and prompts that they answer.

Strict in what Cloudflare's documentation states: the files' exact names and sizes, the rank, `model_type`, a hundred
finetunes, no deletion and no change of what was uploaded, and the envelope of its answers
(https://developers.cloudflare.com/workers-ai/features/fine-tunes/loras/, .../platform/errors/). The order of the files
is not looked at: the documentation has the weights first, Cloudflare's own wrangler the configuration. Where no code of
an error is documented, 1000 stands for it.
"""

import hashlib
import hmac
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tunedrop.runs import CONFIG, WEIGHTS
from tunedrop.workers_ai_models import MAX_RANK, served_models
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request as BaseRequest
from werkzeug.wrappers import Response

from local.provider.faults import Faults, met
from local.provider.shapes import ApiError

FILE_LIMIT = 300_000_000
FINETUNES_LIMIT = 100
MODEL_TYPES = ("mistral", "gemma", "llama")
FORM_OVERHEAD = 1 << 16
KEPT_BYTES = 4 << 20

_ROUTES = Map(
    [
        Rule(path, methods=[method], endpoint=endpoint)
        for method, path, endpoint in (
            ("GET", "/accounts/<account>/ai/finetunes", "listed"),
            ("POST", "/accounts/<account>/ai/finetunes", "created"),
            ("GET", "/accounts/<account>/ai/finetunes/public", "listed_public"),
            ("POST", "/accounts/<account>/ai/finetunes/<finetune>/finetune-assets", "uploaded"),
            ("POST", "/accounts/<account>/ai/run/<path:model>", "answered"),
        )
    ],
    strict_slashes=False,
    merge_slashes=False,
)


class _Error(Exception):
    """An answer other than success."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class _Received:
    """A file that is read to its end, of which its beginning is kept."""

    def __init__(self) -> None:
        self.size = 0
        self.start = b""
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Take more of it."""
        self.size += len(data)
        self._sha256.update(data)
        self.start += data[: KEPT_BYTES - len(self.start)]
        return len(data)

    def seek(self, _offset: int, _whence: int = 0) -> int:
        """The form parser goes back to the start once it is done; nobody reads it there."""
        return 0

    @property
    def sha256(self) -> str:
        """Its digest."""
        return self._sha256.hexdigest()


class Request(BaseRequest):
    """A request whose files are not kept."""

    lag: float = 0
    """Simulated seconds until the listing shows what it creates."""

    def __init__(self, environ: dict[str, Any]) -> None:
        super().__init__(environ)
        self.received: list[_Received] = []

    def _get_file_stream(self, *_: Any, **__: Any) -> Any:
        self.received.append(_Received())
        return self.received[-1]


@dataclass
class _Finetune:
    id: str
    name: str
    model: str
    description: str
    created_at: str
    listed_from: float
    assets: dict[str, _Received] = field(default_factory=dict)

    def view(self) -> dict[str, Any]:
        listed = ("id", "name", "model", "description", "created_at")
        return {name: getattr(self, name) for name in listed} | {"modified_at": self.created_at, "public": False}


class WorkersAiService:
    """The WSGI application: one account, one token.

    Beside Cloudflare's API it has `/_emulator/faults`, as the emulated fine-tuning service has, and
    `/_emulator/ledger`.
    """

    def __init__(
        self,
        account: str,
        token: str,
        clock: Callable[[], float] = time.time,
        page_size: int | None = None,
        limit: int = FINETUNES_LIMIT,
    ) -> None:
        """With a `page_size` the listing is paged, which is not documented and not ruled out either."""
        self.account = account
        self.token = token
        self.page_size = page_size
        self.limit = limit
        self.finetunes: list[_Finetune] = []
        self.requests: list[dict[str, Any]] = []
        self._clock = clock
        self._faults = Faults()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        request = Request(environ)
        if request.path.startswith("/_emulator/"):
            return self._control(request)(environ, start_response)
        fault = self._faults.take(request.method, request.path)
        request.lag = fault.get("delay_listing", 0)
        entry = {"method": request.method, "path": request.path, "status": None}
        self.requests.append(entry)
        response = met(fault, request, self._carry_out)
        entry["status"] = response.status_code
        return response(environ, start_response)

    def _control(self, request: Request) -> Response:
        what = request.path.removeprefix("/_emulator/")
        try:
            if (request.method, what) == ("POST", "faults"):
                answer: Any = self._faults.add(json.loads(request.get_data()))
            elif (request.method, what) == ("DELETE", "faults"):
                self._faults.clear()
                answer = {"faults": []}
            elif (request.method, what) == ("GET", "faults"):
                answer = {"faults": self._faults.view()}
            elif (request.method, what) == ("GET", "ledger"):
                answer = {"finetunes": [self._kept(finetune) for finetune in self.finetunes], "requests": self.requests}
            else:
                return Response(status=404)
        except ApiError as error:
            return _json(error.envelope, error.status)
        return _json(answer)

    def _kept(self, finetune: _Finetune) -> dict[str, Any]:
        assets = {
            name: {
                "size": asset.size,
                "sha256": asset.sha256,
                "config": _object(asset.start) if name == CONFIG else None,
            }
            for name, asset in finetune.assets.items()
        }
        return finetune.view() | {"assets": assets}

    def _carry_out(self, request: Request) -> Response:
        try:
            endpoint, arguments = _ROUTES.bind_to_environ(request.environ).match()
            self._authenticate(request, arguments.pop("account"))
            result = getattr(self, f"_{endpoint}")(request, **arguments)
        except _Error as error:
            failure = {"code": error.code, "message": str(error)}
            return _json({"success": False, "errors": [failure], "messages": [], "result": None}, error.status)
        except HTTPException as error:
            failure = {"code": 7003, "message": f"Could not route to {request.path}: {error.description}"}
            return _json({"success": False, "errors": [failure], "messages": [], "result": None}, error.code or 404)
        return _json({"success": True, "errors": [], "messages": [], **result})

    def _authenticate(self, request: Request, account: str) -> None:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
            raise _Error(401, 1000, "Invalid API Token")
        if account != self.account:
            raise _Error(403, 10000, "Authentication error")

    def _listed(self, request: Request) -> dict[str, Any]:
        shown = [finetune.view() for finetune in self.finetunes if finetune.listed_from <= self._clock()]
        if self.page_size is None:
            return {"result": shown}
        page = request.args.get("page", 1, type=int)
        part = shown[(page - 1) * self.page_size : page * self.page_size]
        info = {"page": page, "per_page": self.page_size, "count": len(part), "total_count": len(shown)}
        return {"result": part, "result_info": info}

    def _listed_public(self, _request: Request) -> dict[str, Any]:
        return {"result": []}

    def _created(self, request: Request) -> dict[str, Any]:
        order = _object(request.get_data()) if request.mimetype == "application/json" else None
        if order is None or not all(isinstance(order.get(key), str) and order[key] for key in ("model", "name")):
            raise _Error(400, 3003, "Request is missing headers or body: model and name, as JSON")
        if unknown := order.keys() - {"model", "name", "description", "public"}:
            raise _Error(400, 1000, f"unknown key {min(unknown)}")
        if order["model"] not in {model.name for model in served_models()}:
            raise _Error(400, 1000, f"MODEL_NOT_SUPPORTED: {order['model']}")
        if order["name"].startswith("cf-public-"):
            raise _Error(400, 1000, "the prefix cf-public- is reserved")
        with self._lock:
            if any(finetune.name == order["name"] for finetune in self.finetunes):
                raise _Error(400, 1000, f"a finetune of the name {order['name']} already exists")
            if len(self.finetunes) >= self.limit:
                raise _Error(400, 1000, f"the account has reached the limit of {self.limit} finetunes")
            at = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            made = _Finetune(
                id=str(uuid.uuid4()),
                name=order["name"],
                model=order["model"],
                description=str(order.get("description") or ""),
                created_at=at,
                listed_from=self._clock() + request.lag,
            )
            self.finetunes.append(made)
        return {"result": made.view()}

    def _uploaded(self, request: Request, finetune: str) -> dict[str, Any]:
        found = self._found(finetune)
        request.max_content_length = FILE_LIMIT + FORM_OVERHEAD
        if request.mimetype != "multipart/form-data" or "file" not in request.files:
            raise _Error(400, 3003, "Request is missing headers or body: file and file_name, as multipart/form-data")
        name, (received, *_) = request.form.get("file_name"), request.received
        if name not in (CONFIG, WEIGHTS):
            raise _Error(400, 1000, f"file_name must be {CONFIG} or {WEIGHTS}, exactly")
        if received.size >= FILE_LIMIT:
            raise _Error(413, 3006, "Request is too large")
        problem = _problem_of_config(received) if name == CONFIG else _problem_of_weights(received)
        if problem:
            raise _Error(400, 1000, problem)
        with self._lock:
            if name in found.assets:
                raise _Error(400, 1000, f"{name} is uploaded, and assets cannot be edited")
            found.assets[name] = received
        return {}

    def _answered(self, request: Request, model: str) -> dict[str, Any]:
        order = _object(request.get_data()) or {}
        known = {served.name for served in served_models()}
        if model not in known:
            raise _Error(400, 5007, f"No such model {model} or task")
        messages = order.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _Error(400, 3003, "Request is missing headers or body: messages")
        if order.get("raw") not in (True, "true") or not isinstance(order.get("lora"), str):
            raise _Error(400, 3003, "Request is missing headers or body: raw and lora")
        found = self._found(order["lora"])
        if found.model != model:
            raise _Error(400, 3037, f"AiError: Finetune {order['lora']} not found")
        if found.assets.keys() != {CONFIG, WEIGHTS}:
            raise _Error(400, 3039, "Finetune is missing required files (model.safetensors and config.json)")
        said = messages[-1].get("content", "") if isinstance(messages[-1], dict) else ""
        response = f"[Emulated by Tunedrop: no model was asked. This is an echo in the name of {found.name}.] {said}"
        return {"result": {"response": response}}

    def _found(self, name_or_id: str) -> _Finetune:
        for finetune in self.finetunes:
            if name_or_id in (finetune.id, finetune.name):
                return finetune
        raise _Error(400, 3037, f"AiError: Finetune {name_or_id} not found")


def _problem_of_config(received: _Received) -> str | None:
    config = _object(received.start)
    if config is None:
        return f"{CONFIG} is no JSON object"
    if config.get("model_type") not in MODEL_TYPES:
        return f"model_type in {CONFIG} must be one of {', '.join(MODEL_TYPES)}"
    rank = config.get("r")
    return None if isinstance(rank, int) and 0 < rank <= MAX_RANK else f"r in {CONFIG} must be at most {MAX_RANK}"


def _problem_of_weights(received: _Received) -> str | None:
    length = int.from_bytes(received.start[:8], "little")
    header = _object(received.start[8 : 8 + length])
    if header is None:
        return f"{WEIGHTS} is not in the format of safetensors"
    header.pop("__metadata__", None)
    try:
        end = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (KeyError, IndexError, TypeError):
        return f"the header of {WEIGHTS} does not say where its tensors are"
    return None if end == received.size else f"{WEIGHTS} has {received.size} bytes, and its header tells of {end}"


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, mimetype="application/json")
