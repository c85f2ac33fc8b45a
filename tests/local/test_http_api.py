import http.client
import json
import time

import pytest

from local.functions import Invocation
from local.http_api import HttpApi, Route, shape
from tests.local.small_functions import emulate, write_function

SHOW = """
    import time
    def handler(event, context):
        if "sleep" in event["rawPath"]: time.sleep(6)
        if "raise" in event["rawPath"]: raise LookupError("secret detail")
        return {"event": event}
    """

ROUTES = [
    Route("GET", "/runs", "show"),
    Route("GET", "/runs/{id}", "show"),
    Route("GET", "/runs/latest", "show"),
    Route("POST", "/runs/{id}/cancel", "show"),
    Route("ANY", "/files/{proxy+}", "show"),
    Route("GET", "/files/{proxy+}", "show"),
    Route("HEAD", "/events/r2", "show"),
    Route("POST", "/events/r2", "show"),
]


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("http")
    with emulate(folder, write_function(folder, SHOW, name="show", timeout_seconds=8)) as functions:
        yield functions


@pytest.fixture(scope="module")
def api(functions):
    with HttpApi(integration_seconds=2).serve(functions, ROUTES) as api:
        yield api


def ask(api, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def event_of(api, *request, **rest):
    response, content = ask(api, *request, **rest)
    assert response.status == 200, content
    return json.loads(content)["event"]


@pytest.mark.parametrize(
    ("method", "path", "key", "parameters"),
    [
        ("GET", "/runs", "GET /runs", None),
        ("GET", "/runs/7f", "GET /runs/{id}", {"id": "7f"}),
        ("GET", "/runs/latest", "GET /runs/latest", None),
        ("POST", "/runs/a%20b/cancel", "POST /runs/{id}/cancel", {"id": "a b"}),
        ("GET", "/files/a/b.jsonl", "GET /files/{proxy+}", {"proxy": "a/b.jsonl"}),
        ("DELETE", "/files/a", "ANY /files/{proxy+}", {"proxy": "a"}),
    ],
)
def test_the_most_specific_route_answers(api, method, path, key, parameters):
    event = event_of(api, method, path)

    assert (event["routeKey"], event.get("pathParameters")) == (key, parameters)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("POST", "/runs"), ("GET", "/runs/"), ("GET", "/runs/1/2"), ("GET", "/files/"), ("HEAD", "/runs")],
)
def test_no_route_is_not_found(api, method, path):
    response, content = ask(api, method, path)

    assert response.status == 404
    assert content == (b"" if method == "HEAD" else b'{"message": "Not Found"}')


def test_the_default_route_takes_the_rest(functions):
    with HttpApi().serve(functions, [*ROUTES, Route("ANY", "$default", "show")]) as api:
        assert event_of(api, "PUT", "/runs")["routeKey"] == "$default"
        assert event_of(api, "GET", "/runs")["routeKey"] == "GET /runs"


def test_the_event_is_format_2(api):
    headers = {"X-Mixed-Case": "a", "Cookie": "one=1; two=2", "Content-Type": "application/json", "User-Agent": "t/1"}
    before = int(time.time() * 1000)

    event = event_of(api, "POST", "/runs/7/cancel?a=1&a=2&b=x%26y&c=", body='{"é": 1}'.encode(), headers=headers)

    context = event["requestContext"]
    assert event["version"] == "2.0"
    assert (event["rawPath"], event["rawQueryString"]) == ("/runs/7/cancel", "a=1&a=2&b=x%26y&c=")
    assert event["queryStringParameters"] == {"a": "1,2", "b": "x&y", "c": ""}
    assert event["cookies"] == ["one=1", "two=2"]
    assert event["headers"]["x-mixed-case"] == "a"
    assert "cookie" not in event["headers"]
    assert all(name == name.lower() for name in event["headers"])
    assert (event["body"], event["isBase64Encoded"]) == ('{"é": 1}', False)
    assert context["http"] == {
        "method": "POST",
        "path": "/runs/7/cancel",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "t/1",
    }
    assert (context["accountId"], context["stage"], context["routeKey"]) == (
        "123456789012",
        "$default",
        "POST /runs/{id}/cancel",
    )
    assert context["domainName"] == f"127.0.0.1:{api.port}"
    assert before <= context["timeEpoch"] <= time.time() * 1000
    assert time.strptime(context["time"], "%d/%b/%Y:%H:%M:%S %z")


def test_what_a_request_does_not_have_the_event_does_not_have(api):
    event = event_of(api, "GET", "/runs")

    assert not {"body", "cookies", "queryStringParameters", "pathParameters"} & event.keys()
    assert event["isBase64Encoded"] is False


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("text/plain; charset=utf-8", b"abc", ("abc", False)),
        ("application/problem+json", b"{}", ("{}", False)),
        ("application/octet-stream", b"abc", ("YWJj", True)),
        ("application/x-www-form-urlencoded", b"a=1", ("YT0x", True)),
        ("application/json", b"\xff", ("/w==", True)),
    ],
)
def test_text_stays_text_and_the_rest_is_base64(api, content_type, body, expected):
    event = event_of(api, "POST", "/events/r2", body=body, headers={"Content-Type": content_type})

    assert (event["body"], event["isBase64Encoded"]) == expected


def test_head_reaches_its_route_and_answers_without_a_body(api):
    response, content = ask(api, "HEAD", "/events/r2")

    assert (response.status, content) == (200, b"")


def test_a_failure_of_the_function_keeps_its_details(api):
    response, content = ask(api, "GET", "/runs/raise")

    assert (response.status, json.loads(content)) == (500, {"message": "Internal Server Error"})


def test_a_function_that_takes_too_long_is_unavailable(api):
    response, content = ask(api, "GET", "/runs/sleep")

    assert (response.status, json.loads(content)) == (503, {"message": "Service Unavailable"})


@pytest.mark.parametrize("size", [10_485_761, 7_000_000])
def test_too_large_a_request_is_refused(api, size):
    response, content = ask(api, "POST", "/events/r2", body=b"x" * size)

    assert (response.status, json.loads(content)) == (413, {"message": "Request Entity Too Large"})


def shaped(answer):
    response = shape(Invocation("id", json.dumps(answer).encode(), None, b""))
    return response.status_code, response.headers["Content-Type"], response.get_data()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"statusCode": 204}, (204, "text/plain;charset=UTF-8", b"")),
        ({"statusCode": "201", "body": "é"}, (201, "text/plain;charset=UTF-8", "é".encode())),
        (
            {"statusCode": 200, "headers": {"content-type": "text/html"}, "body": "PGI+", "isBase64Encoded": True},
            (200, "text/html", b"<b>"),
        ),
        ({"ok": True}, (200, "application/json", b'{"ok": true}')),
        ("plain", (200, "application/json", b"plain")),
        ([1], (200, "application/json", b"[1]")),
    ],
)
def test_answers_are_shaped_as_api_gateway_does(answer, expected):
    assert shaped(answer) == expected


@pytest.mark.parametrize(
    "answer",
    [
        {"statusCode": "fine"},
        {"statusCode": 99},
        {"statusCode": None},
        {"statusCode": 200, "body": {"not": "text"}},
        {"statusCode": 200, "headers": ["no"]},
        {"statusCode": 200, "headers": {"X-A": {}}},
        {"statusCode": 200, "body": "!", "isBase64Encoded": True},
    ],
)
def test_a_malformed_answer_is_an_internal_error(answer):
    assert shaped(answer) == (500, "application/json", b'{"message": "Internal Server Error"}')


def test_headers_and_cookies_reach_the_client():
    answer = {
        "statusCode": 302,
        "headers": {"Location": "/x", "X-N": 1, "X-B": True},
        "cookies": ["a=1", "b=2; Path=/"],
    }

    headers = shape(Invocation("id", json.dumps(answer).encode(), None, b"")).headers

    assert (headers["Location"], headers["X-N"], headers["X-B"]) == ("/x", "1", "true")
    assert headers.getlist("Set-Cookie") == ["a=1", "b=2; Path=/"]
