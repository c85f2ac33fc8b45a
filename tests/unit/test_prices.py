"""What is known of models."""

from datetime import date

import pytest
from tunedrop.prices import PriceList, look_up, over_budget


@pytest.mark.parametrize(
    ("name", "encoding", "limit", "price"),
    [
        ("gpt-4.1", "o200k_base", 65_536, 25.0),
        ("gpt-4.1-mini-2025-04-14", "o200k_base", 65_536, 5.0),
        ("gpt-4.1-nano", "o200k_base", 65_536, 1.5),
        ("gpt-4o-2024-08-06", "o200k_base", 65_536, 25.0),
        ("gpt-4o-mini", "o200k_base", 65_536, 3.0),
        ("gpt-3.5-turbo-0125", "cl100k_base", 16_385, 8.0),
        ("gpt-35-turbo", "cl100k_base", 16_385, 8.0),
        ("davinci-002", "cl100k_base", None, 6.0),
        ("babbage-002", "cl100k_base", None, 0.4),
        ("gpt-4", "cl100k_base", None, None),
        ("gpt-4-0613", "cl100k_base", None, None),
        ("gpt-3.5-turbo-16k", "cl100k_base", None, None),
        ("o4-mini-2025-04-16", "o200k_base", None, None),
        ("meta-llama/Llama-3.1-8B", "o200k_base", None, None),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "o200k_base", 65_536, 3.0),
        ("ft:gpt-3.5-turbo:acme:x:abc", "cl100k_base", 16_385, 8.0),
    ],
)
def test_a_name_is_known_by_its_family(name, encoding, limit, price):
    model = look_up(name)
    assert (model.encoding, model.token_limit, model.usd_per_million_tokens) == (encoding, limit, price)
    assert (model.price_date is None) == (price is None)


def test_prices_of_ones_own_win():
    own = PriceList("2026-11-01", {"gpt-4o-mini": 1.25, "llama": 0.5})
    assert look_up("gpt-4o-mini-2024-07-18", own).usd_per_million_tokens == 1.25
    assert look_up("llama", own).price_date == "2026-11-01"
    assert look_up("gpt-4.1", own).usd_per_million_tokens == 25.0


@pytest.mark.parametrize(
    ("today", "ended"),
    [("2026-09-01", None), ("2026-10-17", False), ("2027-01-13", False), ("2027-01-14", True), ("2027-05-01", True)],
)
def test_the_end_of_a_model_comes_near(today, ended):
    end = look_up("gpt-4.1-2025-04-14").end("openai", date.fromisoformat(today))
    assert (end and end[0]) == ended
    if end:
        assert "2027-01-14" in end[1]


def test_what_still_works_is_named():
    _, message = look_up("gpt-4.1-nano").end("openai", date(2026, 11, 21))
    assert message.endswith("still offered: gpt-4.1, gpt-4.1-mini, gpt-4o, gpt-4o-mini")


def test_an_end_counts_for_its_provider_only_and_the_providers_own_word_wins():
    model = look_up("gpt-4.1-nano")
    assert model.end("azure", date(2026, 11, 21)) is None
    assert model.end("azure", date(2026, 11, 21), announced=date(2026, 11, 1))[0] is True


def test_a_limit_cannot_be_kept_where_no_price_is_known():
    estimate = look_up("llama-of-ours").estimate(10, 1000)
    assert "no price" in over_budget(estimate, 5)
    assert over_budget(estimate, None) is None
