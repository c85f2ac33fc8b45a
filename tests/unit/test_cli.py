"""The command ``tunedrop check``."""

import io
import json
import subprocess
import sys

import pytest
from tunedrop.cli import main

from tests.unit.dataset.builders import chat, jsonl, numbered

GOOD = jsonl(*(numbered("chat", number) for number in range(12)))


@pytest.fixture
def file(tmp_path):
    """Writes a file and answers its name."""

    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        return str(path)

    return write


def answer(capsys, *arguments):
    code = main(["check", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_valid_file(file, capsys):
    code, report = answer(capsys, file("a.jsonl", GOOD), "--model", "gpt-4.1-mini")
    assert (code, report["valid"], report["examples"], report["bytes"]) == (0, True, 12, len(GOOD))
    assert report["tokens"]["encoding"] == "o200k_base"
    assert report["estimate"]["epochs"] == 8
    assert report["estimate"]["usd"] == pytest.approx(report["tokens"]["total"] * 8 * 5 / 1e6)


def test_a_rejected_file(file, capsys):
    code, report = answer(capsys, file("a.jsonl", GOOD + b"nope\n"))
    assert (code, report["valid"]) == (1, False)
    assert report["errors"][0] | {"message": ""} == {
        "file": "training",
        "line": 13,
        "code": "invalid_json",
        "path": None,
        "message": "",
    }


def test_a_validation_file(file, capsys):
    arguments = file("a.jsonl", GOOD), "--validation", file("a.validation.jsonl", b"[]\n")
    code, report = answer(capsys, *arguments)
    assert (code, report["errors"][0]["file"], report["errors"][0]["code"]) == (1, "validation", "data_type")


@pytest.mark.parametrize(
    ("job", "codes"),
    [
        ({}, []),
        ({"method": "supervised"}, []),
        ({"method": "dpo"}, ["wrong_method"]),
        ({"sufix": "x"}, ["unrecognized_key"]),
        ({"provider": "acme"}, ["unknown_provider"]),
        (b"{", ["invalid_json"]),
        ({"provider": "openai", "model": "gpt-4.1-nano"}, ["model_shut_down"]),
        ({"model": "gpt-4.1", "max_cost_usd": 0.000001}, ["over_budget"]),
    ],
)
def test_a_job_specification(file, capsys, job, codes):
    code, report = answer(capsys, file("a.jsonl", GOOD), "--job", file("a.job.json", job))
    assert (code, [e["code"] for e in report["errors"]]) == (1 if codes else 0, codes)
    assert {e["file"] for e in report["errors"]} <= {"job"}


def test_the_command_line_wins_over_the_job_specification(file, capsys):
    job = file("a.job.json", {"provider": "acme", "model": "gpt-4.1"})
    code, report = answer(capsys, file("a.jsonl", GOOD), "--job", job, "--provider", "azure", "--model", "gpt-35-turbo")
    assert (code, report["tokens"]["encoding"]) == (0, "cl100k_base")


def test_prices_of_ones_own(file, capsys):
    own = file("prices.json", {"price_date": "2026-11-01", "usd_per_million_tokens": {"llama": 1000000}})
    _, report = answer(capsys, file("a.jsonl", GOOD), "--model", "llama", "--prices", own)
    assert report["estimate"]["usd"] == report["estimate"]["billable_tokens"]
    assert report["estimate"]["price_date"] == "2026-11-01"


def test_the_rules_alone(file, capsys):
    secret = chat(*numbered("chat", 1)["messages"][:2], {"role": "assistant", "content": "ann@example.org"})
    code, report = answer(capsys, file("a.jsonl", GOOD + jsonl(secret)), "--no-tokens", "--no-scan")
    assert (code, report["tokens"], report["estimate"], report["warnings"]) == (0, None, None, [])


def test_standard_input(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD)))
    assert answer(capsys, "-")[1]["examples"] == 12


def test_several_files(file, capsys):
    names = [file("a.jsonl", GOOD), file("b.jsonl", b"")]
    assert main(["check", *names, "--json"]) == 1
    assert [json.loads(line)["valid"] for line in capsys.readouterr().out.splitlines()] == [True, False]


@pytest.mark.parametrize("arguments", [[], ["--jobs", "0", "x"], ["--max-errors", "x", "y"]])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(["check", *arguments])
    assert end.value.code == 2


@pytest.mark.parametrize("further", [["--validation", "x"], ["--fix", "x"]])
def test_what_belongs_to_one_file(file, further, capsys):
    assert main(["check", file("a.jsonl", GOOD), file("b.jsonl", GOOD), *further]) == 2


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err


def test_the_table_for_people(file, capsys):
    bad = GOOD + b"[1]\n" * 20
    assert main(["check", file("a.jsonl", bad), "--model", "gpt-4.1"]) == 1
    shown = capsys.readouterr().out
    for text in (
        "rejected",
        "o200k_base",
        "USD",
        "20 errors",
        "data_type (20)",
        "training line 13",
        "also lines 16, 17",
    ):
        assert text in shown
    assert "\033" not in shown


def test_mending(file, tmp_path, capsys):
    first = b'{"prompt": "a", "completion": "b"}\r\n'
    lines = [b'{"prompt": "%d", "completion": " x"}\n' % number for number in range(10)]
    messy = b"\xef\xbb\xbf" + first + b"\n" + first + b"".join(lines)
    out = tmp_path / "mended.jsonl"
    assert main(["check", file("a.jsonl", messy), "--fix", str(out)]) == 0
    assert (
        "1 x byte order mark, 1 x CRLF line end, 1 x leading space, 1 x blank line, 1 x duplicate"
        in capsys.readouterr().err
    )
    assert out.read_bytes() == b'{"prompt":"a","completion":" b"}\n' + b"".join(lines)
    assert answer(capsys, str(out))[1]["warnings"] == []


def test_mending_leaves_the_file_itself_alone(file, capsys):
    name = file("a.jsonl", GOOD)
    assert main(["check", name, "--fix", name]) == 2


def test_the_installed_command_loads_no_sdk():
    code = "import sys, tunedrop.cli; print({'boto3', 'openai', 'pydantic', 'aws_lambda_powertools'} & {*sys.modules})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"
