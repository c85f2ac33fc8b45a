import json

import pytest
from tunedrop.errors import Unauthorised
from tunedrop.provider import OpenAIProvider, OpenAIRegistry, connect
from tunedrop.providers import (
    PROFILES,
    InvalidProviders,
    UnknownProvider,
    profile_of,
    read_profiles,
)
from tunedrop.secret_store import KeySecret

from tests.unit.fakes import FakeSecret

LAB = {"like": "litellm", "base_url": "https://llm.example.com/v1"}


def test_a_profile_is_found_by_its_name():
    assert profile_of("openai").base_url == "https://api.openai.com/v1"


def test_an_unknown_providers_error_names_those_there_are():
    with pytest.raises(UnknownProvider, match=r"no provider is called nobody; there are .*openai"):
        profile_of("nobody")


def test_a_profile_without_a_base_url_needs_the_stacks():
    with pytest.raises(UnknownProvider, match="ProviderBaseUrl"):
        OpenAIProvider(PROFILES["compatible"], "", FakeSecret("k"))


# The parameter Providers


@pytest.mark.parametrize("text", ["", "{}", " {} "])
def test_without_profiles_of_its_own_a_stack_has_the_table(text):
    assert read_profiles(text) == PROFILES


def test_a_profile_of_the_stacks_own_differs_from_another_in_what_it_says():
    lab = read_profiles(json.dumps({"lab": {**LAB, "suffix_length": None, "extra_body": {"tier": "low"}}}))["lab"]
    assert (lab.name, lab.like, lab.base_url) == ("lab", "litellm", LAB["base_url"])
    assert (lab.suffix_length, lab.extra_body) == (None, {"tier": "low"})
    assert lab.methods == PROFILES["litellm"].methods
    assert not lab.hyperparameters_in_method


def test_a_profile_says_how_large_a_dataset_may_be():
    limits = {"file_limit": 100, "uploads_above": 50, "uploads_limit": 1000, "part_bytes": 10}
    profiles = read_profiles(json.dumps({"lab": {**LAB, **limits}, "openai": {"uploads_above": None}}))
    lab = profiles["lab"]
    assert {name: getattr(lab, name) for name in limits} == limits
    assert lab.largest_dataset == 1000
    assert profiles["openai"].largest_dataset == 512 << 20
    assert PROFILES["azure"].largest_dataset > PROFILES["azure"].uploads_above
    assert PROFILES["litellm"].largest_dataset is None


def test_a_profile_of_the_table_can_be_changed():
    text = json.dumps({"azure": {"base_url": "https://r.openai.azure.com/openai/v1", "extra_body": {}}})
    azure = read_profiles(text)["azure"]
    assert (azure.like, azure.extra_body, azure.under_way) == ("azure", {}, ("pending",))


def test_a_profile_that_is_like_none_promises_no_more_than_the_api():
    assert read_profiles('{"lab": {"base_url": "https://10.0.0.1:4000/v1"}}')["lab"].like == "compatible"


def test_limits_on_data_are_changed_one_by_one():
    text = json.dumps({"lab": {"like": "bedrock", "data": {"images": False, "minimum_examples": {"supervised": 50}}}})
    data = read_profiles(text)["lab"].data
    assert data.minimum_examples == {"supervised": 50, "dpo": 10, "reinforcement": 100}
    assert (data.images, data.system_in_reinforcement) == (False, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('"x"', "must be a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"lab": 1}', "lab must be a JSON object"),
        ('{"": {}}', "'' is no name"),
        ('{"My Lab": {}}', "'My Lab' is no name"),
        ('{"a/b": {}}', "'a/b' is no name"),
        ('{"lab": {}, "lab": {}}', "lab is given twice"),
        ('{"lab": {"like": "nobody"}}', "lab.like must be one of openai"),
        ('{"lab": {"like": ["openai"]}}', "lab.like must be one of openai"),
        ('{"lab": {"url": "x"}}', "lab.url is no such key; there are base_url"),
        ('{"lab": {"name": "x"}}', "lab.name is no such key"),
        ('{"lab": {"base_url": 1}}', "lab.base_url must be text"),
        ('{"lab": {"base_url": "llm.example.com"}}', "lab.base_url must be an https address"),
        ('{"lab": {"base_url": "http://llm.example.com/v1"}}', "lab.base_url must be an https address"),
        ('{"lab": {"base_url": "http://127.0.0.1.example.com"}}', "lab.base_url must be an https address"),
        ('{"lab": {"base_url": "ftp://llm.example.com"}}', "lab.base_url must be an https address"),
        ('{"lab": {"base_url": "https://user:pw@llm.example.com"}}', "lab.base_url must be an https address"),
        ('{"lab": {"base_url": "https://[llm"}}', "lab.base_url must be an https address"),
        ('{"lab": {"base_url": "https://llm.example.com:port"}}', "lab.base_url must be an https address"),
        ('{"lab": {"base_url": "https://llm.example.com/v1?api-version=1"}}', "lab.base_url must be an https address"),
        ('{"lab": {"takes_seed": "yes"}}', "lab.takes_seed must be true or false"),
        ('{"lab": {"takes_seed": null}}', "lab.takes_seed must be true or false"),
        ('{"lab": {"suffix_length": 0}}', "lab.suffix_length must be a whole number from 1, or null"),
        ('{"lab": {"suffix_length": true}}', "lab.suffix_length must be a whole number"),
        ('{"lab": {"methods": []}}', "lab.methods must be a list of supervised"),
        ('{"lab": {"methods": ["sft"]}}', "lab.methods must be a list of supervised"),
        ('{"lab": {"methods": "dpo"}}', "lab.methods must be a list of supervised"),
        ('{"lab": {"under_way": [1]}}', "lab.under_way must be a list of texts"),
        ('{"lab": {"extra_body": []}}', "lab.extra_body must be an object"),
        ('{"lab": {"data": 1}}', "lab.data must be a JSON object"),
        ('{"lab": {"data": {"image": true}}}', "lab.data.image is no such key; there are minimum_examples"),
        ('{"lab": {"data": {"max_images": -1}}}', "lab.data.max_images must be a whole number from 1"),
        ('{"lab": {"data": {"minimum_examples": {"sft": 1}}}}', "lab.data.minimum_examples.sft is no method"),
        ('{"lab": {"data": {"minimum_examples": {"dpo": 1.5}}}}', "lab.data.minimum_examples must be an object"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said_with_its_key(text, said):
    with pytest.raises(InvalidProviders) as caught:
        read_profiles(text)
    assert said in str(caught.value)


# Several services, each with its key


KEYS = json.dumps({"openai": "sk-o", "lab": " sk-l\n", "azure": "sk-a", "nebius": ""})


def registry(secret=KEYS, default="openai", base_url="", providers=None):
    profiles = read_profiles(json.dumps({"lab": LAB} if providers is None else providers))
    return OpenAIRegistry(profiles, default, base_url, FakeSecret(secret))


@pytest.mark.parametrize(("name", "key"), [("openai", "sk-o"), ("lab", "sk-l")])
def test_each_service_has_its_own_key(name, key):
    assert KeySecret(FakeSecret(KEYS), name, "openai").value() == key


def test_one_key_alone_is_the_defaults():
    assert KeySecret(FakeSecret("sk-1"), "openai", "openai").value() == "sk-1"
    with pytest.raises(Unauthorised, match="no key for lab"):
        KeySecret(FakeSecret("sk-1"), "lab", "openai").value()


@pytest.mark.parametrize("text", ["{sk-1", '{"openai": 1}', '{"openai": {"key": "sk-1"}}', '{"a":' * 50_000])
def test_keys_that_cannot_be_read_are_not_quoted(text):
    with pytest.raises(Unauthorised) as caught:
        KeySecret(FakeSecret(text), "openai", "openai").value()
    assert "sk-1" not in str(caught.value)


def test_a_service_is_configured_that_has_an_address_and_a_key():
    assert list(registry().configured()) == ["lab", "openai"]
    assert list(registry(default="azure", base_url="https://r.openai.azure.com/openai/v1").configured()) == [
        "azure",
        "lab",
        "openai",
    ]
    assert list(registry("sk-1").configured()) == ["openai"]


def test_the_default_stands_in_for_no_name():
    services = registry()
    assert services.of(None) is services.of("openai")
    assert services.of("lab") is services.of("lab")
    assert services.of("lab").profile.name == "lab"


def test_a_run_waits_for_a_service_that_is_no_longer_configured():
    with pytest.raises(Unauthorised, match="no provider is called gone"):
        registry().of("gone")
    with pytest.raises(Unauthorised, match="azure needs a base URL"):
        registry().of("azure")


@pytest.mark.parametrize("url", ["http://llm.example.com/v1", "http://10.0.0.1/v1", "llm.example.com", "https://"])
def test_a_base_url_over_which_key_and_data_would_go_in_the_clear_is_refused(url):
    with pytest.raises(UnknownProvider, match="openai must be an https address"):
        registry(base_url=url)


def test_the_stacks_base_url_is_the_defaults_alone():
    services = registry(base_url="http://127.0.0.1:1/v1")
    assert str(services.of(None)._client.base_url).startswith("http://127.0.0.1:1/")
    assert str(services.of("lab")._client.base_url).startswith("https://llm.example.com/v1")
    assert not services.of(None).at_home


def test_a_service_is_at_home_at_the_tables_address_alone():
    assert registry().of(None).at_home
    own = {"second": {"like": "openai"}, "proxied": {"like": "openai", "base_url": "https://proxy.example.com/v1"}}
    services = registry(providers=own)
    assert services.of("second").at_home
    assert not services.of("proxied").at_home


@pytest.mark.parametrize(
    ("environment", "error"),
    [
        ({"PROVIDER": "nobody"}, UnknownProvider),
        ({"PROVIDER": "azure"}, UnknownProvider),
        ({"PROVIDER": "openai", "PROVIDERS": "{"}, InvalidProviders),
    ],
    ids=str,
)
def test_a_default_that_cannot_be_reached_is_an_error_at_init(aws, environment, error):
    with pytest.raises(error):
        connect({"PROVIDER_SECRET_ARN": "arn", **environment})


def test_a_stack_may_have_a_provider_of_its_own_as_default(aws):
    environment = {"PROVIDER": "lab", "PROVIDERS": json.dumps({"lab": LAB}), "PROVIDER_SECRET_ARN": "arn"}
    assert connect(environment).of(None).profile.name == "lab"
