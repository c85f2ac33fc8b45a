import pytest
from tunedrop.provider import OpenAIProvider
from tunedrop.providers import PROFILES, UnknownProvider, profile_of

from tests.unit.fakes import FakeSecret


def test_a_profile_is_found_by_its_name():
    assert profile_of("openai").base_url == "https://api.openai.com/v1"


def test_an_unknown_providers_error_names_those_there_are():
    with pytest.raises(UnknownProvider, match=r"no provider is called nobody; there are .*openai"):
        profile_of("nobody")


def test_a_profile_without_a_base_url_needs_the_stacks():
    with pytest.raises(UnknownProvider, match="ProviderBaseUrl"):
        OpenAIProvider(PROFILES["compatible"], "", FakeSecret("k"))
