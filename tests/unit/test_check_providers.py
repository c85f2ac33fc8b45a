"""`tunedrop check` knows the same providers as a run."""

import json

import pytest
from tunedrop.cli import main

from tests.local.provider_support import chats


@pytest.fixture
def check(tmp_path, capsys):
    (tmp_path / "data.jsonl").write_bytes(chats())

    def check(job=None, providers=None, provider=None):
        command = ["check", str(tmp_path / "data.jsonl"), "--json", "--no-tokens", "--no-scan"]
        for name, content in (("job", job), ("providers", providers)):
            if content is not None:
                (tmp_path / f"{name}.json").write_text(json.dumps(content))
                command += [f"--{name}", str(tmp_path / f"{name}.json")]
        code = main([*command, *(["--provider", provider] if provider else [])])
        said = capsys.readouterr()
        return code, [error["code"] for error in json.loads(said.out)["errors"]] if said.out else said.err

    return check


LAB = {"lab": {"like": "litellm", "base_url": "https://llm.example.com/v1", "suffix_length": None}}


@pytest.mark.parametrize("provider", ["openai", "azure", "bedrock", "nebius", "litellm", "compatible"])
def test_every_provider_of_the_table_can_be_named(check, provider):
    assert check(provider=provider) == (0, [])
    assert check(job={"provider": provider}) == (0, [])


def test_what_a_provider_has_no_words_for_is_an_error(check):
    assert check(job={"provider": "bedrock", "suffix": "x", "seed": 1}) == (1, ["unrecognized_key"] * 2)
    assert check(job={"method": "dpo"}, provider="nebius")[0] == 1


def test_a_provider_of_ones_own_is_known_from_its_file(check):
    assert check(job={"provider": "lab"}) == (1, ["unknown_provider"])
    assert check(job={"provider": "lab"}, providers=LAB) == (0, [])
    assert check(job={"suffix": "x"}, providers=LAB, provider="lab") == (1, ["unrecognized_key"])


def test_a_provider_that_nobody_knows_is_a_mistake_of_the_command(check):
    code, said = check(provider="nobody")
    assert (code, "there are azure" in said) == (2, True)
    code, said = check(providers={"lab": {"lik": "x"}})
    assert (code, "lab.lik is no such key" in said) == (2, True)
