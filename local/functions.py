"""AWS Lambda on one machine: each function in worker processes of its own, driven by the real runtime client.

A worker can import its function's folder, its layers and the runtime, nothing else, and sees the environment that
Lambda would give it. Failures come back word for word as Lambda reports them, because state machines match on them.
Not emulated: the limit on memory, the throttling of the CPU, and retries of asynchronous invocations.
"""

import importlib.util
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO, Literal, Self

from local import bootstrap

INIT_SECONDS = 10  # what Lambda grants to initialisation, before the function's own time begins to count
PAYLOAD_BYTES = 6_291_456  # of a synchronous request
RESPONSE_BYTES = 6_291_556
LOG_TAIL_BYTES = 4096
RUNTIME = ("awslambdaric", "runtime_client", "snapshot_restore_py", "simplejson")

Failure = Literal["exit", "timeout", "error", "kill_before", "kill_after"]


class FunctionNotFound(LookupError):
    """No function has this name."""


class Closed(RuntimeError):
    """The emulation has been closed."""


class PayloadTooLarge(ValueError):
    """The request is larger than Lambda accepts (`PAYLOAD_BYTES`)."""


@dataclass(frozen=True)
class Function:
    """A function as the template declares it."""

    name: str
    arn: str
    handler: str
    code: Path
    layers: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_seconds: int = 3
    memory_mb: int = 128


@dataclass(frozen=True)
class Invocation:
    """The answer of `Lambda.invoke`: `function_error` is None on success, as in the API's header.

    `log_tail` is the end of the function's log since the invocation began; invocations under way at the same time mix.
    """

    request_id: str
    payload: bytes
    function_error: str | None
    log_tail: bytes


@dataclass(frozen=True)
class Fault:
    """A scripted failure of the next invocations of a function.

    `exit` and `kill_before`: the worker dies when it is about to be given the request (reported as exit status 1, or as
    killed). `kill_after` and `timeout`: the handler carries the request out, and its answer is lost with the worker
    (reported as killed, or, without the wait, as timed out). `error`: `error_type` is reported and nothing is run.
    """

    fault: Failure
    times: int = 1
    error_type: str = "InjectedFault"
    error_message: str = "a fault scripted for a test"


@dataclass(frozen=True)
class _Request:
    id: str
    payload: bytes
    fault: Failure | None


@dataclass(frozen=True)
class _Answer:
    """`status` is the end of the REPORT line, where the platform and not the handler speaks."""

    payload: bytes
    error: bool = False
    status: str = ""


@dataclass(frozen=True)
class _Exit:
    """A worker's end: `reason` in Lambda's words."""

    reason: str


def _failure(error_type: str, message: str, **rest: object) -> _Answer:
    payload = json.dumps({"errorMessage": message, "errorType": error_type, **rest}).encode()
    status = "\tStatus: timeout" if error_type == "Sandbox.Timedout" else f"\tStatus: error\tError Type: {error_type}"
    return _Answer(payload, error=True, status=status)


def _exit_reason(status: int) -> str:
    if status == 0:
        return "Runtime exited without providing a reason"
    what = f"signal: {(signal.strsignal(-status) or 'unknown').lower()}" if status < 0 else f"exit status {status}"
    return f"Runtime exited with error: {what}"


class _RuntimeApi(BaseHTTPRequestHandler):
    """The Lambda runtime API (2018-06-01) of one worker."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_RuntimeServer"

    def do_GET(self) -> None:
        """`/runtime/invocation/next`: wait for the next request."""
        worker = self.server.worker
        request = worker.next_request()
        if request is None:
            self.close_connection = True
            return
        function = worker.function
        self._reply(
            200,
            request.payload,
            {
                "Content-Type": "application/json",
                "Lambda-Runtime-Aws-Request-Id": request.id,
                "Lambda-Runtime-Deadline-Ms": str(int((time.time() + function.timeout_seconds) * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": function.arn,
                "Lambda-Runtime-Trace-Id": f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]};Sampled=0",
            },
        )

    def do_POST(self) -> None:
        """`/runtime/invocation/ID/response`, `…/error` and `/runtime/init/error`: the function's answer."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.worker.answered(self.path.rsplit("/runtime/", 1)[1], body)
        self._reply(202, b'{"status":"OK"}\n', {})

    def _reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _RuntimeServer(ThreadingHTTPServer):
    # A port per worker: the runtime's client takes `host:port` only, and has no other way to say which worker it is.
    daemon_threads = True
    block_on_close = False

    def __init__(self, worker: "_Worker"):
        super().__init__(("127.0.0.1", 0), _RuntimeApi)
        self.worker = worker

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a worker that was killed leaves a broken connection behind."""


class _Worker:
    """One process: serves one request at a time until it dies."""

    def __init__(self, function: Function, environment: Mapping[str, str], log: BinaryIO):
        self.function = function
        self.alive = True
        self.init_ms = 0.0
        self.peak_kb = 0
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._answers: SimpleQueue[_Answer | _Exit] = SimpleQueue()
        self._serving: _Request | None = None
        self._init_error: _Answer | None = None
        self._exit_reason: str | None = None
        self._ready = threading.Event()
        self._server = _RuntimeServer(self)
        self._started = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 - the command is ours
            [sys._base_executable, "-S", "-P", "-B", bootstrap.__file__, function.handler],
            env={**environment, "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._server.server_port}"},
            cwd=function.code,
            stdin=subprocess.PIPE,  # the worker ends when this closes: see `bootstrap`
            stdout=log,
            stderr=log,
            process_group=0,
        )
        self._end = threading.Thread(target=self._await_end, daemon=True)
        self._end.start()
        threading.Thread(target=self._listen, daemon=True).start()

    def serve(self, request: _Request) -> tuple[_Answer, float]:
        """Have one request carried out: the answer, or the failure as Lambda reports it, and the milliseconds."""
        seconds = self.function.timeout_seconds
        if not self._ready.wait(INIT_SECONDS + seconds):
            return self._timed_out(request), seconds * 1000.0
        begun = time.monotonic()
        self._serving = request
        self._requests.put(request)
        try:
            answer = self._answers.get(timeout=seconds)
        except Empty:
            return self._timed_out(request), seconds * 1000.0
        spent = (time.monotonic() - begun) * 1000
        if isinstance(answer, _Answer):
            return answer, spent
        if request.fault == "timeout":
            return self._timed_out(request), spent
        message = f"RequestId: {request.id} Error: {answer.reason}"
        return self._init_error or _failure("Runtime.ExitError", message), spent

    def kill(self) -> None:
        """End the process and whatever it started, without waiting for it."""
        self.alive = False
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def join(self) -> None:
        """Wait until the process has ended."""
        self._end.join()

    def next_request(self) -> _Request | None:
        """What the runtime is given next; None when it is to be given nothing more."""
        self._initialised()
        request = self._requests.get()
        if request and request.fault in ("exit", "kill_before"):
            self._exit_reason = _exit_reason(1 if request.fault == "exit" else -signal.SIGKILL)
            self.kill()
            return None
        return request

    def answered(self, what: str, body: bytes) -> None:
        """Take what the runtime posts to `what`, the end of the address."""
        self.peak_kb = _peak_memory_kb(self._process.pid)
        if what == "init/error":
            self._init_error = _Answer(body, error=True)
        elif self._serving and self._serving.fault in ("kill_after", "timeout"):
            self.kill()
        elif what.endswith("/error"):
            self._answers.put(_Answer(body, error=True))
        elif len(body) > RESPONSE_BYTES:
            self.kill()  # the runtime does not survive the refusal of its answer
            message = f"Response payload size exceeded maximum allowed payload size ({RESPONSE_BYTES} bytes)."
            self._answers.put(_failure("Function.ResponseSizeTooLarge", message))
        else:
            self._answers.put(_Answer(body))

    def _initialised(self) -> None:
        if not self._ready.is_set():
            self.init_ms = (time.monotonic() - self._started) * 1000
            self._ready.set()

    def _timed_out(self, request: _Request) -> _Answer:
        self.peak_kb = _peak_memory_kb(self._process.pid) or self.peak_kb
        self.kill()
        message = f"RequestId: {request.id} Error: Task timed out after {self.function.timeout_seconds:.2f} seconds"
        return _failure("Sandbox.Timedout", message)

    def _listen(self) -> None:
        while self.alive:
            self._server.handle_request()
        self._server.server_close()

    def _await_end(self) -> None:
        status = self._process.wait()
        self.kill()  # what the process had started and left behind
        self._process.stdin.close()
        self._answers.put(_Exit(self._exit_reason or _exit_reason(status)))
        self._initialised()
        self._requests.put(None)
        with suppress(OSError):  # the listener waits for a connection: give it one, so that it ends too
            socket.create_connection(self._server.server_address).close()


class _Pool:
    """The workers of one function."""

    def __init__(self, function: Function, environment: Mapping[str, str], log: Path, max_workers: int):
        self.function = function
        self.faults: deque[Fault] = deque()
        self._environment = environment
        self._log = log
        self._max_workers = max_workers
        self._changed = threading.Condition()
        self._idle: list[_Worker] = []
        self._workers: set[_Worker] = set()
        self._fresh: set[_Worker] = set()
        self._closed = False

    def invoke(self, payload: bytes) -> Invocation:
        fault = self._next_fault()
        request = _Request(str(uuid.uuid4()), payload, fault.fault if fault else None)
        if fault and fault.fault == "error":
            answer = _failure(fault.error_type, fault.error_message, requestId=request.id, stackTrace=[])
            return Invocation(request.id, answer.payload, "Unhandled", b"")
        worker = self._take()
        begin = self._log.stat().st_size
        self._write(f"START RequestId: {request.id} Version: $LATEST")
        try:
            answer, milliseconds = worker.serve(request)
        finally:
            fresh = self._give_back(worker)
        self._report(request, answer, worker, milliseconds, init_ms=worker.init_ms if fresh else 0.0)
        return Invocation(request.id, answer.payload, "Unhandled" if answer.error else None, self._tail(begin))

    def warm(self) -> None:
        """Start a worker, unless there is one, without waiting for its initialisation."""
        with self._changed:
            if not self._workers and not self._closed:
                self._idle.append(self._start())

    def restart(self) -> None:
        """End the idle workers: the next requests find new ones, as after a deployment."""
        with self._changed:
            for worker in self._idle:
                worker.kill()
                self._workers.discard(worker)
                self._fresh.discard(worker)
            self._idle.clear()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            workers = list(self._workers)
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join()

    def _next_fault(self) -> Fault | None:
        with self._changed:
            if not self.faults:
                return None
            fault = self.faults.popleft()
            if fault.times > 1:
                self.faults.appendleft(replace(fault, times=fault.times - 1))
            return fault

    def _start(self) -> _Worker:
        stream = f"{datetime.now(UTC):%Y/%m/%d}/[$LATEST]{uuid.uuid4().hex}"
        with self._log.open("ab") as log:
            worker = _Worker(self.function, {**self._environment, "AWS_LAMBDA_LOG_STREAM_NAME": stream}, log)
        self._workers.add(worker)
        self._fresh.add(worker)
        return worker

    def _take(self) -> _Worker:
        with self._changed:
            while True:
                if self._closed:
                    raise Closed(self.function.name)
                while self._idle:
                    worker = self._idle.pop()
                    if worker.alive or worker in self._fresh:  # one that died while starting has an error to tell
                        return worker
                    self._workers.discard(worker)
                if len(self._workers) < self._max_workers:
                    return self._start()
                self._changed.wait()

    def _give_back(self, worker: _Worker) -> bool:
        """Whether this was the worker's first request."""
        with self._changed:
            fresh = worker in self._fresh
            self._fresh.discard(worker)
            if worker.alive:
                self._idle.append(worker)
            else:
                self._workers.discard(worker)
            self._changed.notify()
            return fresh

    def _report(
        self, request: _Request, answer: _Answer, worker: _Worker, milliseconds: float, *, init_ms: float
    ) -> None:
        if answer.status:
            self._write(json.loads(answer.payload)["errorMessage"])
        init = f"\tInit Duration: {init_ms:.2f} ms" if init_ms else ""
        self._write(
            f"END RequestId: {request.id}\n"
            f"REPORT RequestId: {request.id}\tDuration: {milliseconds:.2f} ms"
            f"\tBilled Duration: {math.ceil(milliseconds + init_ms)} ms\tMemory Size: {self.function.memory_mb} MB"
            f"\tMax Memory Used: {math.ceil(worker.peak_kb / 1024)} MB{init}{answer.status}"
        )

    def _write(self, line: str) -> None:
        with self._log.open("ab") as log:
            log.write(line.encode() + b"\n")

    def _tail(self, begin: int) -> bytes:
        with self._log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(begin, end - LOG_TAIL_BYTES))
            return log.read()


class Lambda:
    """The service: `functions` by name, each with up to `max_workers_per_function` processes, started when needed.

    `aws_endpoint` is where the functions find the other emulated services. `logs` is a folder: it gets a file per
    function, `NAME.log`, with what the function prints and Lambda's START, END and REPORT lines. `time_scale` is how
    much faster than the wall the functions' business clock runs, counted from `clock_start` (epoch seconds, now unless
    given). Close it, or use it as a context manager.
    """

    def __init__(
        self,
        functions: Iterable[Function],
        *,
        aws_endpoint: str,
        logs: Path,
        region: str = "us-east-1",
        account: str = "123456789012",
        time_scale: float = 1.0,
        clock_start: float | None = None,
        max_workers_per_function: int = 8,
    ):
        self.region = region
        self.account = account
        self._runtime = tempfile.TemporaryDirectory(prefix="tunedrop-runtime-")
        _link_runtime(Path(self._runtime.name))
        emulation = {"AWS_ENDPOINT_URL": aws_endpoint}
        if time_scale != 1:
            start = time.time() if clock_start is None else clock_start
            emulation |= {bootstrap.CLOCK_START: repr(start), bootstrap.CLOCK_SCALE: repr(time_scale)}
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = logs
        self._emulation = emulation
        self._max_workers = max_workers_per_function
        self._pools: dict[str, _Pool] = {}
        for function in functions:
            self.create(function)

    def create(self, function: Function) -> None:
        """Add a function."""
        environment = {**_environment(function, self.region, self._runtime.name), **self._emulation}
        log = self._logs / f"{function.name}.log"
        self._pools[function.name] = _Pool(function, environment, log, self._max_workers)

    def invoke(self, name: str, payload: bytes = b"{}") -> Invocation:
        """Run a function on a JSON document and wait for its answer.

        A failure of the function is an `Invocation` with `function_error`. Raises `FunctionNotFound`,
        `PayloadTooLarge`, and `Closed` after `close`.
        """
        pool = self._pool(name)
        if len(payload) > PAYLOAD_BYTES:
            raise PayloadTooLarge(
                f"Request must be smaller than {PAYLOAD_BYTES} bytes for the InvokeFunction operation"
            )
        return pool.invoke(payload)

    def function(self, name: str) -> Function:
        """The function of this name. Raises `FunctionNotFound`."""
        return self._pool(name).function

    def inject(self, name: str, fault: Fault | Mapping[str, Any]) -> None:
        """Have the next `times` invocations of a function fail: a `Fault`, or its fields as data."""
        self._pool(name).faults.append(fault if isinstance(fault, Fault) else Fault(**fault))

    def restart(self, name: str) -> None:
        """End a function's idle workers, and with them what they have cached."""
        self._pool(name).restart()

    def warm(self, names: Iterable[str] | None = None) -> None:
        """Start a worker for each of the functions (all unless named), without waiting for their initialisation."""
        for name in self._pools if names is None else names:
            self._pool(name).warm()

    def close(self) -> None:
        """End every worker; requests under way fail as if the worker had been killed."""
        for pool in self._pools.values():
            pool.close()
        self._runtime.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pool(self, name: str) -> _Pool:
        try:
            return self._pools[name]
        except KeyError:
            raise FunctionNotFound(name) from None


def _environment(function: Function, region: str, runtime: str) -> dict[str, str]:
    """The function's own variables and what Lambda sets, nothing of this process's."""
    code = function.code.resolve()
    layers = [
        layer / "python" if (layer / "python").is_dir() else layer for layer in map(Path.resolve, function.layers)
    ]
    return {
        **function.environment,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_DEFAULT_REGION": region,
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
        "AWS_LAMBDA_FUNCTION_NAME": function.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
        "AWS_REGION": region,
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_SESSION_TOKEN": "testing",
        "LAMBDA_RUNTIME_DIR": runtime,
        "LAMBDA_TASK_ROOT": str(code),
        "LANG": "C.UTF-8",  # Lambda's en_US.UTF-8 is not on every machine, and Python would add LC_CTYPE
        "PATH": "/usr/local/bin:/usr/bin:/bin:/opt/bin",
        "PYTHONPATH": os.pathsep.join(str(path) for path in (code, *layers, runtime)),
        "TZ": ":UTC",
        "_HANDLER": function.handler,
    }


def _link_runtime(folder: Path) -> None:
    """Show the runtime's client, out of all that is installed beside it, in a folder of its own."""
    for name in RUNTIME:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"the emulation of Lambda needs {name}", name=name)
        source = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
        (folder / source.name).symlink_to(source)


def _peak_memory_kb(pid: int) -> int:
    """The most memory that a process has held, in KiB; 0 where the system does not tell."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return 0
