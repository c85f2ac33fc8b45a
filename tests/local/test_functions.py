import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from local.functions import Closed, Fault, FunctionNotFound, PayloadTooLarge
from tests.local.small_functions import emulate, write_function

DOER = """
    import os, signal, sys, time

    def handler(event, context):
        match event:
            case {"sleep": seconds}: time.sleep(seconds)
            case {"raise": message}: raise LookupError(message)
            case {"exit": status}: sys.exit(status)
            case {"signal": number}: os.kill(os.getpid(), number)
            case {"answer_bytes": count}: return "x" * count
            case {"append": path}: open(path, "a").write("done")
            case {"print": text}: print(text)
        return {"pid": os.getpid(), "event": event}
    """


@pytest.fixture
def doer(tmp_path):
    with emulate(tmp_path, write_function(tmp_path, DOER, timeout_seconds=2, memory_mb=256)) as functions:
        yield functions


def call(functions, event, name="probe"):
    invocation = functions.invoke(name, json.dumps(event).encode())
    return invocation, json.loads(invocation.payload)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, *, within: float = 3) -> bool:
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_a_worker_sees_its_own_variables_and_lambdas_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("LEAK", "from the parent")
    source = "import os\ndef handler(event, context): return dict(os.environ)"
    function = write_function(tmp_path, source, environment={"TABLE": "runs"}, memory_mb=512)

    with emulate(tmp_path, function, time_scale=60) as functions:
        _, environment = call(functions, {})

    runtime = environment.pop("LAMBDA_RUNTIME_DIR")
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", environment.pop("AWS_LAMBDA_LOG_STREAM_NAME"))
    assert re.fullmatch(r"127\.0\.0\.1:\d+", environment.pop("AWS_LAMBDA_RUNTIME_API"))
    assert environment.pop("_X_AMZN_TRACE_ID").startswith("Root=1-")
    assert environment == {
        "TABLE": "runs",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_SESSION_TOKEN": "testing",
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
        "AWS_LAMBDA_FUNCTION_NAME": "probe",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/probe",
        "LAMBDA_TASK_ROOT": str(function.code),
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/opt/bin",
        "PYTHONPATH": f"{function.code}:{runtime}",
        "TZ": ":UTC",
        "_HANDLER": "handler.handler",
    }


def test_a_worker_imports_its_folder_and_its_layers_only(tmp_path):
    layer, package = tmp_path / "layer", tmp_path / "package"
    (layer / "python").mkdir(parents=True)
    (layer / "python" / "from_layer.py").write_text("word = 'layer'")
    package.mkdir()
    (package / "from_package.py").write_text("word = 'package'")
    source = """
        import importlib.util, os, from_layer, from_package
        def handler(event, context):
            found = [name for name in event if importlib.util.find_spec(name)]
            return [from_layer.word, from_package.word, os.getcwd(), found]
        """
    function = write_function(tmp_path, source, layers=(layer, package))

    with emulate(tmp_path, function) as functions:
        _, answer = call(functions, ["moto", "boto3", "pytest", "openai", "tunedrop", "local", "functions", "json"])

    assert answer == ["layer", "package", str(function.code), ["json"]]


def test_the_context_tells_the_request_the_arn_and_the_time_left(tmp_path):
    source = """
        def handler(event, context):
            left = context.get_remaining_time_in_millis()
            return [context.aws_request_id, context.invoked_function_arn, left, context.memory_limit_in_mb]
        """
    with emulate(tmp_path, write_function(tmp_path, source, timeout_seconds=7)) as functions:
        invocation, (request_id, arn, left, memory) = call(functions, {})

    assert (request_id, arn) == (invocation.request_id, "arn:aws:lambda:eu-west-1:123456789012:function:probe")
    assert 6000 < left <= 7000
    assert memory == "128"


def test_a_worker_is_reused_and_a_raised_error_leaves_it_alive(doer):
    _, first = call(doer, {})
    invocation, failure = call(doer, {"raise": "no such thing"})
    _, second = call(doer, {})

    assert first["pid"] == second["pid"]
    assert invocation.function_error == "Unhandled"
    assert failure.keys() == {"errorMessage", "errorType", "requestId", "stackTrace"}
    assert (failure["errorType"], failure["errorMessage"]) == ("LookupError", "no such thing")
    assert failure["requestId"] == invocation.request_id
    assert "handler.py" in failure["stackTrace"][0]


@pytest.mark.parametrize(
    ("event", "error_type", "message"),
    [
        ({"sleep": 30}, "Sandbox.Timedout", "RequestId: {id} Error: Task timed out after 2.00 seconds"),
        ({"exit": 1}, "Runtime.ExitError", "RequestId: {id} Error: Runtime exited with error: exit status 1"),
        ({"exit": 0}, "Runtime.ExitError", "RequestId: {id} Error: Runtime exited without providing a reason"),
        ({"signal": 9}, "Runtime.ExitError", "RequestId: {id} Error: Runtime exited with error: signal: killed"),
        (
            {"answer_bytes": 6_291_555},
            "Function.ResponseSizeTooLarge",
            "Response payload size exceeded maximum allowed payload size (6291556 bytes).",
        ),
    ],
)
def test_what_ends_a_worker_is_reported_as_lambda_does_and_the_next_request_finds_a_fresh_one(
    doer, event, error_type, message
):
    _, before = call(doer, {})
    invocation, failure = call(doer, event)
    after, answer = call(doer, {})

    assert invocation.function_error == "Unhandled"
    assert failure == {"errorType": error_type, "errorMessage": message.format(id=invocation.request_id)}
    assert after.function_error is None
    assert answer["pid"] != before["pid"]
    assert gone(before["pid"])


def test_an_answer_of_exactly_the_limit_passes(doer):
    invocation, _ = call(doer, {"answer_bytes": 6_291_554})

    assert (invocation.function_error, len(invocation.payload)) == (None, 6_291_556)


@pytest.mark.parametrize(
    ("source", "error_type", "message"),
    [
        ("import nowhere", "Runtime.ImportModuleError", "Unable to import module 'handler': No module named 'nowhere'"),
        ("", "Runtime.HandlerNotFound", "Handler 'handler' missing on module 'handler'"),
        ("def (", "Runtime.UserCodeSyntaxError", "Syntax error in module 'handler': "),
        ("raise KeyError('TABLE')", "KeyError", "'TABLE'"),
        ("import os; os._exit(3)", "Runtime.ExitError", "Runtime exited with error: exit status 3"),
    ],
)
def test_a_failure_of_initialisation_is_reported_each_time(tmp_path, source, error_type, message):
    with emulate(tmp_path, write_function(tmp_path, source)) as functions:
        functions.warm()
        for _ in range(2):
            invocation, failure = call(functions, {})
            assert invocation.function_error == "Unhandled"
            assert failure["errorType"] == error_type
            assert message in failure["errorMessage"]


def test_an_initialisation_that_hangs_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr("local.functions.INIT_SECONDS", 0.1)
    function = write_function(tmp_path, "import time; time.sleep(60)", timeout_seconds=1)
    with emulate(tmp_path, function) as functions:
        _, failure = call(functions, {})

    assert failure["errorType"] == "Sandbox.Timedout"


def test_warming_initialises_before_the_first_request(tmp_path):
    source = "import os; open('started', 'x').close()\ndef handler(event, context): return 1"
    function = write_function(tmp_path, source)
    with emulate(tmp_path, function) as functions:
        functions.warm()
        end = time.monotonic() + 5
        while not (function.code / "started").exists() and time.monotonic() < end:
            time.sleep(0.02)
        functions.warm()

        assert (function.code / "started").exists()
        assert functions.invoke("probe").function_error is None


@pytest.mark.parametrize(
    ("fault", "error_type", "ending", "carried_out"),
    [
        ("exit", "Runtime.ExitError", "exit status 1", False),
        ("kill_before", "Runtime.ExitError", "signal: killed", False),
        ("kill_after", "Runtime.ExitError", "signal: killed", True),
        ("timeout", "Sandbox.Timedout", "timed out after 2.00 seconds", True),
        ("error", "Throttled", "slow down", False),
    ],
)
def test_scripted_faults_happen_as_often_as_told(doer, tmp_path, fault, error_type, ending, carried_out):
    trace = tmp_path / "trace"
    doer.inject("probe", {"fault": fault, "times": 2, "error_type": "Throttled", "error_message": "slow down"})

    failures = [call(doer, {"append": str(trace)})[1] for _ in range(2)]

    assert [failure["errorType"] for failure in failures] == [error_type] * 2
    assert all(failure["errorMessage"].endswith(ending) for failure in failures)
    assert trace.exists() == carried_out
    assert call(doer, {})[0].function_error is None


def test_faults_follow_one_another(doer):
    doer.inject("probe", Fault("error", error_type="First"))
    doer.inject("probe", Fault("error", error_type="Second"))

    assert [call(doer, {})[1].get("errorType") for _ in range(3)] == ["First", "Second", None]


def together(functions, events):
    answers = [None] * len(events)

    def run(index, event):
        answers[index] = call(functions, event)[1]

    threads = [threading.Thread(target=run, args=item) for item in enumerate(events)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


SPAN = """
    import os, time
    def handler(event, context):
        begin = time.monotonic()
        time.sleep(0.4)
        return [begin, time.monotonic(), os.getpid()]
    """


def test_concurrent_requests_overlap_in_processes_of_their_own(tmp_path):
    with emulate(tmp_path, write_function(tmp_path, SPAN)) as functions:
        (begin, end, pid), (other_begin, other_end, other_pid) = together(functions, [{}, {}])

    assert max(begin, other_begin) < min(end, other_end)
    assert pid != other_pid


def test_requests_beyond_the_cap_wait_for_their_turn(tmp_path):
    with emulate(tmp_path, write_function(tmp_path, SPAN), max_workers_per_function=1) as functions:
        (begin, end, pid), (other_begin, other_end, other_pid) = together(functions, [{}, {}])

    assert end <= other_begin or other_end <= begin
    assert pid == other_pid


def test_the_log_holds_what_was_printed_and_lambdas_own_lines(doer, tmp_path):
    cold, _ = call(doer, {"print": "hello"})
    warm, _ = call(doer, {})
    call(doer, {"exit": 1})
    log = (tmp_path / "logs" / "probe.log").read_text()

    figures = r"\tDuration: \d+\.\d\d ms\tBilled Duration: \d+ ms\tMemory Size: 256 MB\tMax Memory Used: [1-9]\d* MB"
    init = r"\tInit Duration: \d+\.\d\d ms"
    assert re.search(f"START RequestId: {cold.request_id} Version: \\$LATEST\nhello\nEND RequestId: ", log)
    assert re.search(f"^REPORT RequestId: {cold.request_id}{figures}{init}$", log, re.MULTILINE)
    assert re.search(f"^REPORT RequestId: {warm.request_id}{figures}$", log, re.MULTILINE)
    assert re.search(r"Status: error\tError Type: Runtime.ExitError$", log, re.MULTILINE)
    assert cold.log_tail.startswith(b"START RequestId: ")
    assert b"hello" not in warm.log_tail


def test_the_business_clock_runs_faster_and_every_worker_agrees_on_it(tmp_path):
    layer = tmp_path / "layer"
    (layer / "tunedrop").mkdir(parents=True)
    (layer / "tunedrop" / "__init__.py").touch()
    (layer / "tunedrop" / "clock.py").write_text("import time\ndef now(): return time.time()")
    source = """
        import os, time
        from tunedrop.clock import now
        def handler(event, context): return [now(), time.time(), [name for name in os.environ if "CLOCK" in name]]
        """
    function = write_function(tmp_path, source, layers=(layer,))
    start = time.time() - 10
    with emulate(tmp_path, function, time_scale=3600, clock_start=start) as functions:
        _, (business, real, names) = call(functions, {})

    assert business == pytest.approx(start + (real - start) * 3600, abs=3600)
    assert names == []


def test_unknown_functions_and_oversized_requests_are_refused(doer):
    with pytest.raises(FunctionNotFound):
        doer.invoke("nobody")
    with pytest.raises(PayloadTooLarge):
        doer.invoke("probe", b" " * 6_291_457)


def test_close_ends_every_process_and_what_it_started(tmp_path):
    source = """
        import os, subprocess
        child = subprocess.Popen(["sleep", "60"])
        def handler(event, context): return [os.getpid(), child.pid]
        """
    functions = emulate(tmp_path, write_function(tmp_path, source))
    _, pids = call(functions, {})
    assert all(alive(pid) for pid in pids)

    functions.close()

    assert all(gone(pid) for pid in pids)
    with pytest.raises(Closed):
        functions.invoke("probe")


def test_no_process_is_left_when_the_parent_is_killed(tmp_path):
    script = f"""
import pathlib, sys
sys.path.insert(0, {str(Path.cwd())!r})
from tests.local.small_functions import emulate, write_function
folder = pathlib.Path({str(tmp_path)!r})
source = "import os, time\\ndef handler(event, context): return os.getpid()"
functions = emulate(folder, write_function(folder, source))
print(functions.invoke("probe").payload.decode(), flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    worker = int(parent.stdout.readline())
    assert alive(worker)

    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()

    assert gone(worker)
