"""The HTTP side: routes, keys, bodies in and out, and the faults that tests ask for."""

import dataclasses
import hmac
import json
import os
import re
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request as BaseRequest
from werkzeug.wrappers import Response
from werkzeug.wsgi import wrap_file

from local.provider import shapes
from local.provider.callbacks import Callbacks
from local.provider.faults import Faults
from local.provider.files import Incoming
from local.provider.jobs import Plan, new_id
from local.provider.manners import MIB, Manners
from local.provider.shapes import ApiError
from local.provider.state import State
from local.provider.training import count_tokens

_JSON_LIMIT = 16 * MIB
_FORM_OVERHEAD = MIB
_REQUESTS_KEPT = 20_000

_ROUTES = Map(
    [
        Rule(path, methods=[method], endpoint=endpoint)
        for method, path, endpoint in (
            ("POST", "/v1/files", "create_file"),
            ("GET", "/v1/files", "list_files"),
            ("GET", "/v1/files/<file_id>", "file"),
            ("DELETE", "/v1/files/<file_id>", "delete_file"),
            ("GET", "/v1/files/<file_id>/content", "file_content"),
            ("POST", "/v1/uploads", "create_upload"),
            ("POST", "/v1/uploads/<upload_id>/parts", "add_part"),
            ("POST", "/v1/uploads/<upload_id>/complete", "complete_upload"),
            ("POST", "/v1/uploads/<upload_id>/cancel", "cancel_upload"),
            ("POST", "/v1/fine_tuning/jobs", "create_job"),
            ("GET", "/v1/fine_tuning/jobs", "list_jobs"),
            ("GET", "/v1/fine_tuning/jobs/<job_id>", "job"),
            ("POST", "/v1/fine_tuning/jobs/<job_id>/cancel", "cancel_job"),
            ("POST", "/v1/fine_tuning/jobs/<job_id>/pause", "pause_job"),
            ("POST", "/v1/fine_tuning/jobs/<job_id>/resume", "resume_job"),
            ("GET", "/v1/fine_tuning/jobs/<job_id>/events", "list_events"),
            ("GET", "/v1/fine_tuning/jobs/<job_id>/checkpoints", "list_checkpoints"),
            ("GET", "/v1/models", "list_models"),
            ("GET", "/v1/models/<path:name>", "model"),
            ("DELETE", "/v1/models/<path:name>", "delete_model"),
            ("POST", "/v1/chat/completions", "chat"),
            ("GET", "/_emulator", "control_clock"),
            ("GET", "/_emulator/faults", "control_list_faults"),
            ("POST", "/_emulator/faults", "control_add_fault"),
            ("DELETE", "/_emulator/faults", "control_clear_faults"),
            ("POST", "/_emulator/jobs/next", "control_plan"),
            ("GET", "/_emulator/ledger", "control_ledger"),
            ("GET", "/_emulator/manners", "control_manners"),
            ("PATCH", "/_emulator/manners", "control_change_manners"),
            ("PUT", "/_emulator/callback", "control_callback"),
        )
    ],
    strict_slashes=False,
    merge_slashes=False,
)
_PLAN = shapes.record(
    {"outcome": shapes.one_of("succeeded", "failed", "cancelled", "paused", "stuck")},
    {
        "error": shapes.record(
            {}, {"code": shapes.text(), "message": shapes.text(), "param": shapes.nullable(shapes.text())}
        ),
        "after_seconds": shapes.nullable(shapes.number()),
        "duration_seconds": shapes.nullable(shapes.number()),
        "times": shapes.integer(1),
    },
)
_CALLBACK = shapes.record({"url": shapes.nullable(shapes.text(1)), "secret": shapes.nullable(shapes.text(1))})


class Request(BaseRequest):
    """A request whose files go straight to where they will stay."""

    incoming: Callable[[str | None], Incoming]
    lag: float = 0
    """Simulated seconds until listings show what this request creates."""

    def __init__(self, environ: dict[str, Any]) -> None:
        super().__init__(environ)
        self.received: list[Incoming] = []

    def _get_file_stream(
        self,
        total_content_length: int | None,  # noqa: ARG002
        content_type: str | None,  # noqa: ARG002
        filename: str | None = None,
        content_length: int | None = None,  # noqa: ARG002
    ) -> Any:
        self.received.append(self.incoming(filename))
        return self.received[-1]


class Service:
    """The WSGI application."""

    def __init__(self, state: State, callbacks: Callbacks, api_key: str) -> None:
        self._state = state
        self._callbacks = callbacks
        self._faults = Faults()
        self._expected = f"Bearer {api_key}".encode()
        self._requests: deque[dict[str, Any]] = deque(maxlen=_REQUESTS_KEPT)
        self._changing = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "")
        base = self._state.manners.base_path
        if path.startswith(f"{base}/"):
            environ["PATH_INFO"] = "/v1" + path.removeprefix(base)
        request = Request(environ)
        request.incoming = self._state.incoming
        answer = self._carry_out if request.path.startswith("/_emulator") else self._with_faults
        response = answer(request)
        response.headers["x-emulation"] = "tunedrop"
        response.headers["x-request-id"] = new_id("req_", 32)
        return response(environ, start_response)

    def _with_faults(self, request: Request) -> Response:
        entry = {"method": request.method, "path": request.path, "status": None, "at": int(self._state.clock.now())}
        self._requests.append(entry)
        fault = self._faults.take(request.method, request.path)
        request.lag = fault.get("delay_listing", 0)
        after = fault.get("after", False)
        if "hang" in fault and not after:
            time.sleep(fault["hang"])
        if fault.get("reset") == "before":
            _reset(request)
        replaced = _replacement(fault)
        response = self._carry_out(request) if after or not replaced else replaced
        if "hang" in fault and after:
            time.sleep(fault["hang"])
        if fault.get("reset") == "after":
            _reset(request)
        response = _altered(fault, replaced or response)
        entry["status"] = response.status_code
        return response

    def _carry_out(self, request: Request) -> Response:
        try:
            if request.path.startswith("/v1"):
                self._authenticate(request)
            endpoint, arguments = _ROUTES.bind_to_environ(request.environ).match()
            own = getattr(self, f"_{endpoint}", None)
            # Where there is no body and no query to read, the state answers by itself.
            answer = own(request, **arguments) if own else getattr(self._state, endpoint)(**arguments)
            return answer if isinstance(answer, Response) else _json(answer)
        except ApiError as error:
            failure = error
        except NotFound:
            failure = ApiError(404, f"Invalid URL ({request.method} {request.path})")
        except MethodNotAllowed:
            failure = ApiError(405, f"Not allowed to {request.method} on {request.path}.", code="method_not_supported")
        except RequestEntityTooLarge:
            failure = ApiError(413, "The request is larger than allowed.", code="request_too_large")
        except HTTPException as error:
            failure = ApiError(error.code or 500, error.description or error.name)
        for content in request.received:
            content.discard()
        own = request.path.startswith("/_emulator")
        answer = _json(failure.envelope if own else failure.body(self._state.manners.error_form), failure.status)
        answer.headers.update(failure.headers)
        return answer

    def _authenticate(self, request: Request) -> None:
        given = request.headers.get("Authorization")
        if given is None:
            raise ApiError(401, "No API key was given: send it as `Authorization: Bearer KEY`.")
        if not hmac.compare_digest(given.encode(), self._expected):
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    # Files and uploads

    def _create_file(self, request: Request) -> Any:
        limit = self._state.manners.file_limit
        content, fields = _form(request, "file", limit)
        expiry = {
            key: fields.pop(f"expires_after[{key}]")
            for key in ("anchor", "seconds")
            if f"expires_after[{key}]" in fields
        }
        if re.fullmatch(r"[0-9]{1,9}", expiry.get("seconds", "")):
            expiry["seconds"] = int(expiry["seconds"])
        body = fields | ({"expires_after": expiry} if expiry else {})
        shapes.record({"purpose": shapes.FILE_PURPOSES}, {"expires_after": shapes.EXPIRY})(body, "")
        if not content.bytes:
            raise ApiError(400, "The file is empty.", param="file")
        if content.bytes > limit:
            raise ApiError(413, f"A file holds at most {limit // MIB} MB.", param="file")
        return self._state.create_file(content, body["purpose"], body.get("expires_after"), lag=request.lag)

    def _list_files(self, request: Request) -> Any:
        most = self._state.manners.files_page_limit
        also = {"purpose": shapes.text(1), "order": shapes.one_of("asc", "desc")}
        return self._state.list_files(shapes.paging(request.args, most, most, also))

    def _file_content(self, request: Request, file_id: str) -> Any:
        path, filename = self._state.file_content(file_id)
        body = wrap_file(request.environ, path.open("rb"), 1 << 16)
        response = Response(body, mimetype="application/octet-stream", direct_passthrough=True)
        response.content_length = path.stat().st_size
        response.headers.set("Content-Disposition", "attachment", filename=filename)
        return response

    def _create_upload(self, request: Request) -> Any:
        return self._state.create_upload(_body(request, shapes.upload_request(self._state.manners)))

    def _add_part(self, request: Request, upload_id: str) -> Any:
        content, fields = _form(request, "data", self._state.manners.part_limit)
        shapes.record({})(fields, "")
        return self._state.add_part(upload_id, content)

    def _complete_upload(self, request: Request, upload_id: str) -> Any:
        body = _body(request, shapes.COMPLETION_OF_UPLOAD)
        return self._state.complete_upload(upload_id, body["part_ids"], body.get("md5"), lag=request.lag)

    # Jobs

    def _create_job(self, request: Request) -> Any:
        body = _body(request, shapes.job_request(self._state.manners))
        return self._state.create_job(body, idempotency_key=request.headers.get("Idempotency-Key"), lag=request.lag)

    def _list_jobs(self, request: Request) -> Any:
        also = {"metadata": shapes.anything}
        return self._state.list_jobs(shapes.paging(request.args, 20, self._state.manners.jobs_page_limit, also))

    def _list_events(self, request: Request, job_id: str) -> Any:
        return self._state.list_events(job_id, shapes.paging(request.args, 20, self._state.manners.jobs_page_limit))

    def _list_checkpoints(self, request: Request, job_id: str) -> Any:
        return self._state.list_checkpoints(
            job_id, shapes.paging(request.args, 10, self._state.manners.jobs_page_limit)
        )

    # Models

    def _chat(self, request: Request) -> Any:
        body = _body(request, shapes.CHAT_REQUEST)
        if body.get("stream"):
            raise ApiError(400, "This emulation does not stream.", param="stream", code="unsupported_value")
        model = self._state.manners.aliases.get(body["model"], body["model"])
        self._state.served(model)
        said = next((m.get("content") for m in reversed(body["messages"]) if m["role"] == "user"), None)
        content = f"[Emulated by Tunedrop: no model was asked. This is an echo in the name of {model}.] {_plain(said)}"
        message = {"role": "assistant", "content": content, "refusal": None}
        asked, answered = count_tokens(body["messages"]), count_tokens(content)
        return {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion",
            "created": int(self._state.clock.now()),
            "model": model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered},
        }

    # Control, for tests

    def _control_clock(self, _request: Request) -> Any:
        return {"now": self._state.clock.now(), "time_scale": self._state.clock.scale}

    def _control_list_faults(self, _request: Request) -> Any:
        return {"faults": self._faults.view()}

    def _control_add_fault(self, request: Request) -> Any:
        return self._faults.add(_body(request, shapes.anything))

    def _control_clear_faults(self, _request: Request) -> Any:
        self._faults.clear()
        return {"faults": []}

    def _control_plan(self, request: Request) -> Any:
        body = _body(request, _PLAN)
        plan = Plan(**{key: value for key, value in body.items() if key != "times"})
        self._state.plan([plan] * body.get("times", 1))
        return body

    def _control_ledger(self, _request: Request) -> Any:
        return self._state.ledger() | {"requests": list(self._requests)}

    def _control_manners(self, _request: Request) -> Any:
        return dataclasses.asdict(self._state.manners)

    def _control_change_manners(self, request: Request) -> Any:
        known = {field.name: shapes.anything for field in dataclasses.fields(Manners)}
        changes = _body(request, shapes.record({}, known))
        with self._changing:
            self._state.manners = dataclasses.replace(self._state.manners, **changes)
        return dataclasses.asdict(self._state.manners)

    def _control_callback(self, request: Request) -> Any:
        body = _body(request, _CALLBACK)
        try:
            self._callbacks.direct(body["url"], body["secret"])
        except ValueError as error:
            raise ApiError(400, str(error), param="secret") from error
        return {"url": body["url"]}


def _json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, mimetype="application/json")


def _body(request: Request, check: shapes.Check) -> Any:
    request.max_content_length = _JSON_LIMIT
    if request.mimetype != "application/json":
        raise ApiError(400, "The body must be sent as application/json.", code="unsupported_content_type")
    try:
        value = json.loads(request.get_data())
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not valid JSON.", code="invalid_json") from None
    check(value, "")
    return value


def _form(request: Request, name: str, limit: int) -> tuple[Incoming, dict[str, Any]]:
    """Return the one file of a multipart body, streamed to disk, and its other fields."""
    request.max_content_length = limit + _FORM_OVERHEAD
    if request.mimetype != "multipart/form-data":
        raise ApiError(400, "The body must be sent as multipart/form-data.", code="unsupported_content_type")
    files, fields = request.files, request.form.to_dict()
    shapes.record({name: shapes.anything})(files.to_dict(), "")
    if len(request.received) > 1:
        raise ApiError(400, "One file at a time.", param=name)
    return request.received[0], fields


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def _replacement(fault: dict[str, Any]) -> Response | None:
    """Return what a fault answers instead of the truth, if it does."""
    if "html" in fault:
        page = "<!doctype html><title>Emulated fault</title><h1>Emulated fault</h1>"
        return Response(page, fault["html"], mimetype="text/html")
    if "status" not in fault:
        return None
    error = ApiError(fault["status"], "Emulated fault.", kind="server_error" if fault["status"] >= 500 else "requests")
    body = fault.get("body", error.envelope)
    if isinstance(body, str):
        return Response(body, fault["status"], mimetype="text/plain")
    return _json(body, fault["status"])


def _altered(fault: dict[str, Any], response: Response) -> Response:
    """Return the answer with what a fault adds to it or cuts from it."""
    response.headers.update({key: str(value) for key, value in fault.get("headers", {}).items()})
    if "truncate" in fault:
        response.direct_passthrough = False
        whole = response.get_data()
        response.set_data(whole[: fault["truncate"]])
        if fault.get("whole_length"):
            response.content_length = len(whole)
    return response


def _reset(request: Request) -> NoReturn:
    """Close the connection with RST, as a crashed proxy would, and leave the server nothing to write to."""
    connection: socket.socket = request.environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())
    raise ConnectionResetError
