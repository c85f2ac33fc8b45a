"""The emulated AWS endpoint: Lambda's `Invoke` is answered by `local.functions`, everything else by moto.

Also what moto's Step Functions interpreter needs to run here: its configuration and the scaling of its waits.
"""

import base64
import functools
import inspect
import io
import json
import math
import os
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Self

from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler, make_server

from local.functions import Closed, FunctionNotFound, Invocation, Lambda, PayloadTooLarge

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

INVOKE_PREFIX, INVOKE_SUFFIX = "/2015-03-31/functions/", "/invocations"
# Calls whose condition and effect are one: moto looks and writes in two steps, and serves each request in a thread.
_ATOMIC = ("DynamoDB_", "AWSStepFunctions.StartExecution")
# A function's pause before its message comes again. The queue's own time-out is not scaled: it guards real work.
_PAUSE_OF_A_MESSAGE = "AmazonSQS.ChangeMessageVisibility"
_POLL_SECONDS = 0.1  # how soon a server, or a wait of a stopped execution, notices that it should end


class Server:
    """A WSGI application on a port of 127.0.0.1 (a free one when `port` is 0), in threads of this process.

    The port is taken at once, so that it can be told to others; requests are answered after `start`.
    """

    def __init__(self, port: int = 0, handler: type[WSGIRequestHandler] = WSGIRequestHandler):
        quiet = type("Handler", (handler,), {"log_request": lambda *_, **__: None, "disable_nagle_algorithm": True})
        # Werkzeug ends the whole process when a port is taken; this raises OSError.
        with socket.create_server(("127.0.0.1", port)) as taken:
            self._server = make_server(
                "127.0.0.1", port, _not_yet, threaded=True, request_handler=quiet, fd=taken.fileno()
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_SECONDS,), daemon=True)
        self.port = self._server.port
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, app: WsgiApp) -> Self:
        """Answer requests with `app` from now on."""
        self._server.app = app
        self._thread.start()
        return self

    def close(self) -> None:
        """Take no more requests and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Gateway(Server):
    """The endpoint for all AWS clients. One to a process: moto keeps its port and its state in globals.

    Made first, because the functions need its address; `serve` then gives it the functions.
    """

    def __init__(self, port: int = 0):
        from moto.moto_server.werkzeug_app import MotoRequestHandler

        super().__init__(port, MotoRequestHandler)

    def serve(self, functions: Lambda, *, time_scale: float = 1.0) -> Self:
        """Answer from now on.

        Waits and retry pauses of state machines, and pauses that a function asks for its message, take 1/`time_scale`
        of their time.
        """
        configure_moto(self.port)
        scale_waits(time_scale)
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

        moto = DomainDispatcherApplication(create_backend_app)
        return self.start(application(functions, moto, time_scale=time_scale))


def configure_moto(port: int) -> None:
    """Have moto execute state machines, and reach what they call on `port`: before its interpreter is imported."""
    os.environ["MOTO_PORT"] = str(port)
    from moto.core.config import default_user_config

    default_user_config["stepfunctions"] = {"execute_state_machine": True}
    _tell_times_as_text()


def _tell_times_as_text() -> None:
    """Put `$$.Execution.StartTime` into the context object as Step Functions does; moto leaves it a datetime."""
    from moto.stepfunctions.parser.backend import execution_worker

    class Execution(dict[str, Any]):
        def __init__(self, *, StartTime: datetime, **rest: Any) -> None:  # noqa: N803 - Step Functions' spelling
            at = StartTime.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            super().__init__(StartTime=at, **rest)

    execution_worker.ExecutionData = Execution


def scale_waits(scale: float) -> None:
    """Shorten the interpreter's `Wait` states and retry pauses by `scale`; 1 is the time on the wall.

    A stopped execution ends within a tenth of a second. `TimeoutSeconds` is not scaled: it guards real work. What a
    task takes from its input by `TimeoutSecondsPath` is: that is the timer of a wait which may be ended early. Called
    again, it replaces the scale.
    """
    from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
    from moto.stepfunctions.parser.asl.component.common.timeouts.timeout import TimeoutSecondsPath
    from moto.stepfunctions.parser.asl.component.state.wait.wait_function.wait_function import WaitFunction

    def pause(env: Any, seconds: float) -> None:
        end = time.monotonic() + seconds / scale
        while env.is_running() and (left := end - time.monotonic()) > 0:
            # In slices: moto's event only flickers, and one that flickers between two looks is lost.
            env.program_state_event.wait(min(left, _POLL_SECONDS))

    class PausesOfRetrier(threading.local):
        """Stands for the module `time` in moto's retrier, and knows whose pause it is: one execution a thread."""

        env: Any = None

        def sleep(self, seconds: float) -> None:
            pause(self.env, seconds)

    pauses = PausesOfRetrier()
    evaluate = inspect.unwrap(retrier_decl.RetrierDecl._eval_body)

    @functools.wraps(evaluate)
    def eval_body(retrier: Any, env: Any) -> None:
        pauses.env = env
        evaluate(retrier, env)

    timer = inspect.unwrap(TimeoutSecondsPath._eval_seconds)

    @functools.wraps(timer)
    def eval_seconds(timeout: Any, env: Any) -> float:
        return timer(timeout, env) / scale

    TimeoutSecondsPath._eval_seconds = eval_seconds
    WaitFunction._wait_interval = lambda _, env, wait_seconds: pause(env, wait_seconds)
    retrier_decl.RetrierDecl._eval_body = eval_body
    retrier_decl.time = pauses


def application(functions: Lambda, moto: WsgiApp, *, time_scale: float = 1.0) -> WsgiApp:
    """Lambda's `Invoke` in front of moto's application."""
    one_at_a_time = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if target.startswith(_ATOMIC):
            with one_at_a_time:
                return list(moto(environ, start_response))
        if target == _PAUSE_OF_A_MESSAGE:
            _shorten(environ, time_scale)
        if not (path.startswith(INVOKE_PREFIX) and path.endswith(INVOKE_SUFFIX)):
            return moto(environ, start_response)
        name = urllib.parse.unquote(path[len(INVOKE_PREFIX) : -len(INVOKE_SUFFIX)])
        return _invoke(functions, name, Request(environ))(environ, start_response)

    return serve


def _shorten(environ: dict[str, Any], time_scale: float) -> None:
    order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    order["VisibilityTimeout"] = math.ceil(order["VisibilityTimeout"] / time_scale)
    body = json.dumps(order).encode()
    environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))


def _invoke(functions: Lambda, identifier: str, request: Request) -> Response:
    # A name, a partial ARN (account:function:NAME) or an ARN; what follows the name is a qualifier.
    name = identifier.partition(":function:")[2].partition(":")[0] or identifier.partition(":")[0]
    payload = request.get_data() or b"{}"
    try:
        json.loads(payload)
    except ValueError as error:
        return _refusal(400, "InvalidRequestContentException", f"Could not parse request body into json: {error}")
    try:
        functions.function(name)
        if request.headers.get("X-Amz-Invocation-Type") == "Event":
            threading.Thread(target=_in_background, args=(functions, name, payload), daemon=True).start()
            return Response(status=202, headers={"X-Amz-Request-Id": str(uuid.uuid4())})
        answer = functions.invoke(name, payload)
    except PayloadTooLarge as error:
        return _refusal(413, "RequestTooLargeException", str(error))
    except FunctionNotFound:
        arn = f"arn:aws:lambda:{functions.region}:{functions.account}:function:{name}"
        return _refusal(404, "ResourceNotFoundException", f"Function not found: {arn}")
    except Closed:
        return _refusal(500, "ServiceException", "The emulation is shutting down")
    return _answer(answer, with_log=request.headers.get("X-Amz-Log-Type") == "Tail")


def _in_background(functions: Lambda, name: str, payload: bytes) -> None:
    try:
        functions.invoke(name, payload)
    except Closed:
        return


def _answer(invocation: Invocation, *, with_log: bool) -> Response:
    response = Response(invocation.payload, mimetype="application/json")
    response.headers["X-Amz-Request-Id"] = invocation.request_id
    response.headers["X-Amz-Executed-Version"] = "$LATEST"
    if invocation.function_error:
        response.headers["X-Amz-Function-Error"] = invocation.function_error
    if with_log:
        response.headers["X-Amz-Log-Result"] = base64.b64encode(invocation.log_tail).decode()
    return response


def _refusal(status: int, code: str, message: str) -> Response:
    body = {"Type": "User" if status < 500 else "Service", "Message": message}
    headers = {"X-Amzn-ErrorType": code, "X-Amz-Request-Id": str(uuid.uuid4())}
    return Response(json.dumps(body), status, headers, mimetype="application/json")


def _not_yet(_: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("503 Service Unavailable", [])
    return []
