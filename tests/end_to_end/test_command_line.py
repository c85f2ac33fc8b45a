"""`python -m local` as people run it: what it prints and answers to the shell, and that it leaves nothing behind."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from local.stack import Address
from tests.local.provider_support import lines
from tests.workflow.running import RunningStack, chat, until

EXAMPLES = Path(__file__).parents[2] / "events/examples"
DOCUMENTED = {
    *("s3", "bucket", "access_key_id", "secret_access_key", "webhook", "webhook_secret", "callbacks"),
    *("callback_secret", "api", "api_token", "provider", "aws"),
}
UP_WITHIN_SECONDS = 5.0
FAST = ("--time-scale", "1500")


def local(*arguments, timeout=120):
    command = [sys.executable, "-m", "local", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def processes_of(group):
    """The processes that were started by a stack in a session of its own, those they have started included."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if state != "Z" and group.encode() in environment:
            found.append(int(entry.name))
    return found


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "plants.jsonl"
    file.write_bytes(lines(chat("the command line", number) for number in range(12)))
    return file


@pytest.fixture(scope="module")
def stack():
    stack = RunningStack()
    yield stack
    stack.assert_settled()
    stack.close()


@pytest.fixture
def at(stack, tmp_path):
    """The options that say which stack is meant, since several may run on this machine."""
    note = tmp_path / "stack.json"
    note.write_text(json.dumps(stack.address))
    return "--stack", note


# up


def test_up_prints_one_line_with_everything_in_time():
    begun = time.monotonic()
    stack = RunningStack()
    seconds = time.monotonic() - begun
    try:
        assert stack.address.keys() >= DOCUMENTED
        assert stack.address.keys() == {field.name for field in fields(Address)}
        assert requests.head(stack.address["webhook"], timeout=20).status_code == 200
        busy = os.getloadavg()[0] / (os.cpu_count() or 1)
        assert seconds < UP_WITHIN_SECONDS * max(1.0, busy)
    finally:
        stack.process.send_signal(signal.SIGINT)
        rest = stack.process.stdout.read()
        assert stack.process.wait(20) == 130
    assert rest == "", "with --json there is one line and nothing else"


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_up_leaves_no_process_and_no_note_behind(ending, monkeypatch, file):
    mark = f"TUNEDROP_TEST_MARK={os.urandom(8).hex()}"
    monkeypatch.setenv(*mark.split("="))
    stack = RunningStack()
    stack.drop(file.name, file.read_bytes())  # every function and the service have processes of their own
    stack.process.send_signal(ending)

    assert stack.process.wait(20) == {signal.SIGKILL: -signal.SIGKILL}.get(ending, 130)
    until(lambda: processes_of(mark), lambda found: not found, 10)
    if ending != signal.SIGKILL:
        note = Path(stack.address["logs"]).parent / "stack.json"
        assert not note.exists()


def test_up_describes_itself_to_people():
    command = [sys.executable, "-u", "-m", "local", "up"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = ""
        while "logs" not in said:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            said += line
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert "webhook" in said
    assert "Ctrl-C" in said
    assert errors == ""


def test_stacks_run_side_by_side_and_know_nothing_of_each_other(stack, file):
    other = RunningStack()
    try:
        places = ("s3", "webhook", "aws", "provider", "control", "logs")
        assert not {stack.address[place] for place in places} & {other.address[place] for place in places}
        run_id = other.drop("side-by-side.jsonl", file.read_bytes())
        assert other.ended(run_id).state == "succeeded"
        assert not stack.was_started(run_id)
        assert stack.keys("side-by-side") == set()
    finally:
        other.close()


def test_port_is_the_first_of_six():
    for _ in range(5):  # some server may be there; not what asks the system for any port: those it gives are higher
        first = random.randrange(20_000, 30_000)
        try:
            stack = RunningStack("--port", str(first))
        except AssertionError:
            continue
        break
    else:
        pytest.fail("no six free ports in a row")
    try:
        ports = {
            urlsplit(stack.address[name]).port for name in ("aws", "s3", "api", "control", "workers_ai", "provider")
        }
        assert ports == set(range(first, first + 6))
    finally:
        stack.close()


def test_a_port_that_is_taken_is_a_sentence_and_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = local("up", "--json", "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "in use" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("RunDeadlineHour=5", "RunDeadlineHours"),
        ("LogLevel=LOUD", "DEBUG, INFO, WARNING, ERROR"),
        ("RunDeadlineHours=soon", "RunDeadlineHours"),
        ("RunDeadlineHours=-1", "RunDeadlineHours"),
        ("Provider=nobody", "nobody"),
        ("Providers={", "Providers is not valid JSON"),
        ('Providers={"lab": {"like": "nobody"}}', "lab.like must be one of"),
        ('Providers={"lab": {"uploads": 1}}', "lab.uploads is no such key"),
    ],
)
def test_a_setting_that_the_template_does_not_allow_is_a_sentence_and_2(setting, says):
    done = local("up", "--json", "--set", setting)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("scale", ["0", "nan", "fast"])
def test_a_time_scale_that_is_none_is_2(scale):
    done = local("up", "--time-scale", scale)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_set_reaches_the_functions(file):
    stack = RunningStack("--set", "BucketName=garden", "--set", "DefaultModel=gpt-4.1-nano-2025-04-14")
    try:
        assert stack.address["bucket"] == "garden"
        ended = stack.ended(stack.drop("plants.jsonl", file.read_bytes()))
        assert (ended.state, ended.run["model"]) == ("succeeded", "gpt-4.1-nano-2025-04-14")
    finally:
        stack.close()


# drop


def test_drop_follows_a_run_to_its_model(stack, at, file):
    done = local("drop", file, "--key", "shelf/plants.jsonl", *at)

    assert done.returncode == 0, done.stderr
    assert "Your model is ready." in done.stdout
    assert "shelf/plants.jsonl" in done.stdout
    assert "notified" in done.stdout
    assert stack.keys("shelf/") == {"shelf/plants.jsonl"}


def test_drop_takes_what_lies_beside_the_file_with_it(stack, at):
    done = local("drop", EXAMPLES / "orchard.jsonl", "--key", "beside/fruit.jsonl", "--json", *at)

    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["state"] == "succeeded"
    assert run["validation_file_id"]
    assert stack.keys("beside/") == {"beside/fruit.jsonl", "beside/fruit.job.json", "beside/fruit.validation.jsonl"}


def test_drop_of_a_broken_file_says_why_and_1(at):
    done = local("drop", EXAMPLES / "broken.jsonl", *at)

    assert done.returncode == 1
    assert "line 3" in done.stdout
    assert "nothing was paid" in done.stdout


def test_drop_in_json_prints_one_object(at):
    done = local("drop", EXAMPLES / "broken.jsonl", "--key", "json.jsonl", "--json", *at)

    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["state"] == "rejected"


def test_drop_of_no_file_is_2(at, tmp_path):
    done = local("drop", tmp_path / "nothing.jsonl", *at)
    assert done.returncode == 2
    assert "nothing.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


def test_drop_of_what_starts_no_run_is_2(at, file):
    done = local("drop", file, "--key", "plants.txt", *at)
    assert done.returncode == 2
    assert "does not end in .jsonl" in done.stderr


def test_drop_of_a_folder_is_2(at, tmp_path):
    done = local("drop", tmp_path, *at)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("note", [None, "no JSON", "[]"])
def test_drop_without_a_stack_is_2(tmp_path, file, note):
    path = tmp_path / "stack.json"
    if note is not None:
        path.write_text(note)
    done = local("drop", file, "--stack", path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip()


def test_drop_into_a_stack_that_has_ended_is_2(tmp_path, file, stack):
    note = tmp_path / "stack.json"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}"
    note.write_text(json.dumps(stack.address | {"s3": nobody, "control": nobody}))
    done = local("drop", file, "--stack", note)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


# demo, and other services


def test_demo_shows_the_whole_way(file):
    done = local("demo", "--json", *FAST)

    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert run["state"] == "succeeded"
    assert run["key"] == "orchard.jsonl"
    assert run["trained_tokens"] > 0
    assert run["estimated_cost_usd"] > 0


def test_several_services_have_a_key_each(file):
    lab = {"lab": {"like": "openai", "base_url": "http://127.0.0.1:9/v1"}}
    own = ("--set", "Provider=own", "--set", f"Providers={json.dumps({'own': {'like': 'openai'}, **lab})}")
    stack = RunningStack(*own, "--provider-key", json.dumps({"own": "sk-own", "lab": "sk-lab"}))
    try:
        assert stack.address["provider_key"] == "sk-own"
        ended = stack.ended(stack.drop("plants.jsonl", file.read_bytes()))
        assert (ended.state, ended.run["provider"]) == ("succeeded", "own")
        stack.put("other.job.json", b'{"provider": "none"}')
        refused = stack.ended(stack.drop("other.jsonl", file.read_bytes()))
        assert "there are lab, own" in refused.message
    finally:
        stack.close()


@pytest.mark.parametrize("key", ['{"lab": "sk-lab"}', "{", '{"openai": 1}'])
def test_a_key_for_another_service_than_the_default_is_2(key):
    done = local("up", "--provider-key", key)
    assert done.returncode == 2
    assert 'JSON with one for it: {"openai": ' in done.stderr
    assert "sk-lab" not in done.stderr
    assert "Traceback" not in done.stderr


def test_another_service_takes_the_place_of_the_emulated_one(file):
    key = "sk-another"
    command = [sys.executable, "-m", "local.provider", "--api-key", key, "--time-scale", "1500"]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        where = json.loads(service.stdout.readline())
        stack = RunningStack("--provider-url", where["url"], "--provider-key", key)
        try:
            assert stack.address["provider"] == where["url"]
            assert stack.address["provider_control"] is None
            run_id = stack.drop("plants.jsonl", file.read_bytes())
            run = until(lambda: stack.run(run_id), lambda run: run and run["finished_at"])
            assert run["state"] == "succeeded"
            until(lambda: stack.notifications(run_id), bool)
        finally:
            stack.close()
        taken = requests.get(where["control"] + "/ledger", timeout=20).json()
        assert [job["metadata"]["run_id"] for job in taken["jobs"]] == [run_id]
    finally:
        service.terminate()
        service.wait(20)
