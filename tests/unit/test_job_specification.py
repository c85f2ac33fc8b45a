"""NAME.job.json."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tunedrop.job_specification import JobSpecification, _schema, parse

PROVIDERS = ("azure", "openai")


def findings(specification):
    result = parse(json.dumps(specification).encode(), PROVIDERS)
    return [] if isinstance(result, JobSpecification) else [(f.code, f.path) for f in result]


GOOD = [
    {},
    {"provider": "azure", "model": "gpt-4.1", "suffix": "x" * 64, "seed": 7},
    {"$schema": "./job.schema.json", "model": None},
    {"method": "dpo"},
    {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": "auto"}}}},
    {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 256}}}},
    {"method": {"type": "reinforcement", "reinforcement": {"grader": {"type": "string_check", "any": "thing"}}}},
    {"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]},
    {"metadata": {f"key{number}": "x" * 512 for number in range(16)}},
    {"extra_body": {"trainingType": 1}, "max_cost_usd": 0, "force": True, "refuse_sensitive": True},
    {"deploy": {"workers_ai": True}},
    {"deploy": {"workers_ai": {"name": "orchard-desk"}}},
    {"deploy": {}},
    {"smoke_test": True},
    {"smoke_test": "Say hello."},
]

BAD = [
    ([], "invalid_value", None),
    ({"modle": "x"}, "unrecognized_key", "modle"),
    ({"training_file": "x"}, "unrecognized_key", "training_file"),
    ({"model": 4}, "invalid_value", "model"),
    ({"model": ""}, "invalid_value", "model"),
    ({"suffix": "x" * 65}, "invalid_value", "suffix"),
    ({"seed": 1.5}, "invalid_value", "seed"),
    ({"seed": True}, "invalid_value", "seed"),
    ({"seed": -1}, "invalid_value", "seed"),
    ({"method": "ppo"}, "wrong_method", "method"),
    ({"method": 3}, "invalid_value", "method"),
    ({"method": {}}, "invalid_value", "method.type"),
    ({"method": {"type": "ppo"}}, "wrong_method", "method.type"),
    ({"method": {"type": "dpo", "dop": {}}}, "unrecognized_key", "method.dop"),
    (
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}},
        "invalid_value",
        "method.dpo.hyperparameters.beta",
    ),
    (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 51}}}},
        "invalid_value",
        "method.supervised.hyperparameters.n_epochs",
    ),
    ({"metadata": {f"key{number}": "x" for number in range(17)}}, "invalid_value", "metadata"),
    ({"metadata": {"k" * 65: "x"}}, "invalid_value", "metadata"),
    ({"metadata": {"k": "x" * 513}}, "invalid_value", "metadata.k"),
    ({"metadata": {"k": 1}}, "invalid_value", "metadata.k"),
    ({"integrations": [{}]}, "invalid_value", "integrations[0].type"),
    ({"max_cost_usd": -1}, "invalid_value", "max_cost_usd"),
    ({"max_cost_usd": "10"}, "invalid_value", "max_cost_usd"),
    ({"force": "yes"}, "invalid_value", "force"),
    ({"smoke_test": 1}, "invalid_value", "smoke_test"),
    ({"deploy": True}, "invalid_value", "deploy"),
    ({"deploy": {"vercel": True}}, "unrecognized_key", "deploy.vercel"),
    ({"deploy": {"workers_ai": "yes"}}, "invalid_value", "deploy.workers_ai"),
    ({"deploy": {"workers_ai": {"name": "x" * 55}}}, "invalid_value", "deploy.workers_ai.name"),
    ({"deploy": {"workers_ai": {"public": True}}}, "unrecognized_key", "deploy.workers_ai.public"),
]


@pytest.mark.parametrize("specification", GOOD, ids=json.dumps)
def test_a_good_specification(specification):
    assert findings(specification) == []


@pytest.mark.parametrize(("specification", "code", "path"), BAD)
def test_a_bad_specification(specification, code, path):
    assert findings(specification) == [(code, path)]


def test_an_unknown_provider():
    assert findings({"provider": "acme"}) == [("unknown_provider", "provider")]
    assert isinstance(parse(b'{"provider": "acme"}'), JobSpecification)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 1000, b'{"seed": NaN}'])
def test_no_json_at_all(data):
    (finding,) = parse(data)
    assert (finding.file, finding.line) == ("job", None)
    assert finding.code in {"invalid_json", "not_utf8", "nesting_too_deep"}


def test_the_nearest_known_key_is_named():
    (finding,) = parse(b'{"max_cost": 3}')
    assert "max_cost_usd" in finding.message


def test_what_is_asked_for():
    given_ = {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4}}}, "seed": 1}
    specification = parse(json.dumps(given_).encode())
    assert (specification.method_name, specification.epochs, specification.seed) == ("supervised", 4, 1)
    assert parse(b'{"method": "dpo"}').method == {"type": "dpo"}
    assert parse(b"{}").method_name is None


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.floats(allow_nan=False)
    | st.sampled_from(["auto", "dpo", "", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "dpo", "n_epochs", "x"]), inner)
    ),
    max_leaves=5,
)


def without_nulls(value):
    """A key whose value is null counts as absent; JSON Schema does not know that."""
    if isinstance(value, dict):
        return {key: without_nulls(member) for key, member in value.items() if member is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


KEYS = sorted(_schema()["properties"].keys() - {"provider"})  # which providers there are, no schema knows


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=3))
def test_the_published_schema_says_the_same(specification):
    valid = Draft202012Validator(_schema()).is_valid(without_nulls(specification))
    assert (findings(specification) == []) == valid


@pytest.mark.parametrize("key", ["model", "training_file", "method", "hyperparameters", "metadata", "suffix", "seed"])
def test_no_further_key_goes_past_what_is_checked_and_priced(key):
    assert findings({"extra_body": {key: "x"}}) == [("invalid_value", f"extra_body.{key}")]
    assert findings({"extra_body": {"trainingType": "Standard"}}) == []


def test_of_the_further_hyperparameters_none_is_priced():
    further = {"hyperparameters": {"n_epochs": 50}}
    assert findings({"extra_body": further}) == [("invalid_value", "extra_body.hyperparameters.n_epochs")]
    assert findings({"extra_body": {"hyperparameters": {"lora": False}}}) == []
