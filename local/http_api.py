"""API Gateway's HTTP API in front of the functions: routes, payload format 2.0, limits and errors.

Rules: "Working with AWS Lambda proxy integrations for HTTP APIs" and "Quotas for HTTP APIs" in the API Gateway guide.
"""

import base64
import json
import re
import urllib.parse
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from werkzeug import Request, Response

from local.functions import Closed, Invocation, Lambda, PayloadTooLarge
from local.gateway import Server

BODY_BYTES = 10_485_760
INTEGRATION_SECONDS = 30
_TEXT = re.compile(r"text/.*|application/(json|javascript|xml|[^;]*\+(json|xml))")
_CONCURRENCY = 64


@dataclass(frozen=True)
class Route:
    """`method` may be ANY; `path` has `{name}` for a segment and a last `{name+}` for the rest, or is `$default`."""

    method: str
    path: str
    function: str

    @property
    def key(self) -> str:
        """The route's key, as API Gateway writes it."""
        return self.path if self.path == "$default" else f"{self.method} {self.path}"

    def match(self, method: str, path: str) -> Mapping[str, str] | None:
        """The path's parameters, or None when the route is not for this request."""
        if self.path == "$default":
            return {}
        if self.method not in ("ANY", method):
            return None
        found = re.fullmatch(_pattern(self.path), path)
        return found and found.groupdict()

    @property
    def rank(self) -> tuple[object, ...]:
        """Smaller is more specific: fixed segments before `{name}` before `{name+}`, a method before ANY."""
        kinds = [2 if s.endswith("+}") else 1 if s.startswith("{") else 0 for s in self.path.split("/")]
        return (self.path == "$default", kinds, self.method == "ANY")


class HttpApi(Server):
    """An HTTP API on a port of 127.0.0.1, answering from `serve` on."""

    def __init__(self, port: int = 0, *, integration_seconds: float = INTEGRATION_SECONDS):
        super().__init__(port)
        self._integration_seconds = integration_seconds
        self._executor = ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="http-api")

    def serve(self, functions: Lambda, routes: Iterable[Route]) -> Self:
        """Answer from now on, by the most specific of the routes."""
        self._functions = functions
        self._routes = sorted(routes, key=lambda route: route.rank)
        return self.start(Request.application(self._respond))

    def close(self) -> None:
        """Take no more requests and free the port."""
        super().close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _respond(self, request: Request) -> Response:
        body = request.get_data(cache=False)
        if len(body) > BODY_BYTES:
            return _message(413, "Request Entity Too Large")
        for route in self._routes:
            if (parameters := route.match(request.method, request.path)) is not None:
                break
        else:
            return _message(404, "Not Found")
        payload = json.dumps(self._event(request, body, route, parameters)).encode()
        invocation = self._executor.submit(self._functions.invoke, route.function, payload)
        try:
            return shape(invocation.result(self._integration_seconds))
        except PayloadTooLarge:
            return _message(413, "Request Entity Too Large")
        except (TimeoutError, Closed):
            return _message(503, "Service Unavailable")

    def _event(self, request: Request, body: bytes, route: Route, parameters: Mapping[str, str]) -> dict[str, Any]:
        now = datetime.now(UTC)
        source = request.remote_addr or "127.0.0.1"
        headers = {name.lower(): value for name, value in request.headers.items()}
        cookies = headers.pop("cookie", "")
        headers |= {"x-forwarded-for": source, "x-forwarded-proto": "http", "x-forwarded-port": str(self.port)}
        event = {
            "version": "2.0",
            "routeKey": route.key,
            "rawPath": request.path,
            "rawQueryString": request.query_string.decode("latin-1"),
            "headers": headers,
            "requestContext": {
                "accountId": self._functions.account,
                "apiId": "local",
                "domainName": request.host,
                "domainPrefix": request.host.partition(".")[0],
                "http": {
                    "method": request.method,
                    "path": request.path,
                    "protocol": request.environ["SERVER_PROTOCOL"],
                    "sourceIp": source,
                    "userAgent": request.headers.get("User-Agent", ""),
                },
                "requestId": str(uuid.uuid4()),
                "routeKey": route.key,
                "stage": "$default",
                "time": f"{now:%d/%b/%Y:%H:%M:%S %z}",
                "timeEpoch": int(now.timestamp() * 1000),
            },
            "isBase64Encoded": False,
        }
        query = urllib.parse.parse_qs(event["rawQueryString"], keep_blank_values=True)
        optional = {
            "cookies": [cookie.strip() for cookie in cookies.split(";") if cookie.strip()],
            "queryStringParameters": {name: ",".join(values) for name, values in query.items()},
            "pathParameters": parameters,
        }
        event |= {name: value for name, value in optional.items() if value}
        if body:
            event["body"], event["isBase64Encoded"] = _body(request.content_type or "", body)
        return event


def shape(invocation: Invocation) -> Response:
    """The HTTP answer that API Gateway makes of a function's: 500 when the function failed or answers nonsense."""
    failed = _message(500, "Internal Server Error")
    if invocation.function_error:
        return failed
    answer = json.loads(invocation.payload)
    if not isinstance(answer, dict) or "statusCode" not in answer:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return Response(text, 200, content_type="application/json")
    try:
        status = int(answer["statusCode"])
        body = answer.get("body") or ""
        content = base64.b64decode(body, validate=True) if answer.get("isBase64Encoded") else body.encode()
        headers = [(str(name), _header(value)) for name, value in (answer.get("headers") or {}).items()]
        headers += [("Set-Cookie", str(cookie)) for cookie in answer.get("cookies") or []]
    except (ValueError, TypeError, AttributeError):
        return failed
    if not 100 <= status <= 599:
        return failed
    content_type = next((value for name, value in headers if name.lower() == "content-type"), None)
    response = Response(content, status, content_type=content_type or "text/plain;charset=UTF-8")
    response.headers.extend((name, value) for name, value in headers if name.lower() != "content-type")
    return response


def _pattern(path: str) -> str:
    pieces = re.split(r"\{(\w+)(\+?)\}", path)
    fixed, names, greedy = pieces[::3], pieces[1::3], pieces[2::3]
    groups = [f"(?P<{name}>{'.+' if plus else '[^/]+'})" for name, plus in zip(names, greedy, strict=True)]
    return "".join(re.escape(text) + group for text, group in zip(fixed, [*groups, ""], strict=True))


def _body(content_type: str, body: bytes) -> tuple[str, bool]:
    """The event's body, and whether it is base64: text stays text, anything else is encoded."""
    if _TEXT.match(content_type.lower()):
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(body).decode(), True


def _header(value: object) -> str:
    if not isinstance(value, str | int | float):
        raise TypeError("a header is a string, a number or a boolean")
    return json.dumps(value) if isinstance(value, bool) else str(value)


def _message(status: int, text: str) -> Response:
    return Response(json.dumps({"message": text}), status, content_type="application/json")
