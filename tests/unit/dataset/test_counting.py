"""Tokens, percentiles, epochs and money."""

import random
from functools import cache
from pathlib import Path

import bpe_openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tunedrop.dataset.counting import countable
from tunedrop.dataset.message_rules import ROLES
from tunedrop.prices import TrainingModel, default_epochs, over_budget
from tunedrop.tokens import Tokenizer

from tests.unit.dataset.builders import (
    ANSWER,
    ASSISTANT,
    CALLING,
    IMAGE,
    SYSTEM,
    USER,
    chat,
    check,
    file_with,
    jsonl,
    preference,
    warnings,
)

ENCODINGS = ("cl100k_base", "o200k_base")


class Letters:
    """Counts a token for each character: sums are easy to see."""

    encoding = "letters"

    def count(self, texts):
        return [len(text) for text in texts]


load = cache(bpe_openai.get_encoding)


def second_opinion(encoding, texts):
    return [len(load(encoding).encode_ordinary(text)) for text in texts]


def corpus():
    """Code, and texts of scripts, signs and nonsense."""
    yield from Path(__file__).read_text().split("\n\n")
    yield from (
        "日本語のテキスト、中文文本、한국어 텍스트",
        "👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 ❤️‍🔥",
        "\x00\x01\x02\x7f \x85 \u2028 \ufeff",
        "<|endoftext|> <|im_start|>user<|im_end|> <|fim_prefix|>",
        "مرحبا بالعالم नमस्ते दुनिया สวัสดี",
        "don't DON'T I'LL we'Ve x'd",
        "   \n\n\n   \t\t  \r\n \r\n x   ",
        "1234567890 3.14159 1,000,000 ²³½",
        "a" * 5000,
        " " * 3000,
        "=" * 777 + "\n" * 99,
        "e\u0301\u0302\u0303 Z̸̡̛a̶l̵g̷o̴",
    )
    source = random.Random(7)
    ranges = [(32, 126), (0x4E00, 0x9FFF), (0x1F300, 0x1F6FF), (0, 0x2FF), (0x600, 0x6FF), (0xE000, 0xE0FF)]
    for _ in range(200):
        yield "".join(chr(source.randint(*source.choice(ranges))) for _ in range(source.randint(1, 300)))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("threads", [1, 2])
def test_counts_equal_those_of_a_second_tokenizer(encoding, threads):
    texts = list(corpus())
    assert Tokenizer(encoding, threads).count(texts) == second_opinion(encoding, texts)


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(texts=st.lists(st.text(max_size=60), max_size=5))
@settings(max_examples=150, deadline=None)
def test_counts_equal_those_of_a_second_tokenizer_on_any_text(encoding, texts):
    assert Tokenizer(encoding).count(texts) == second_opinion(encoding, texts)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_name_of_every_role_is_one_token(encoding):
    assert set(Tokenizer(encoding).count(sorted(ROLES))) == {1}


@pytest.mark.parametrize(
    ("example", "name", "texts", "extra"),
    [
        (chat(SYSTEM, ASSISTANT), "chat", ["system", SYSTEM["content"], "assistant", "Paris"], 3 + 2 * 3),
        (chat(USER | {"name": "ann"}), "chat", ["user", USER["content"], "ann"], 3 + 3 + 1),
        (chat({"role": "user", "content": [IMAGE]}), "chat", ["user", "image_url"], 3 + 3),
        (
            chat(CALLING, ANSWER),
            "chat",
            ["assistant", "c1", "function", "find", '{"city": "Paris"}', "tool", "c1", "found"],
            3 + 2 * 3,
        ),
        (preference(), "preference", ["user", USER["content"], "assistant", "Paris", "assistant", "Rome"], 3 + 3 * 3),
        (chat(USER, reference="not counted"), "reinforcement", ["user", USER["content"]], 3 + 3),
        ({"prompt": "x", "completion": " y"}, "completion", ["x", " y"], 0),
    ],
)
def test_what_is_counted_of_an_example(example, name, texts, extra):
    found, on_top = countable(example, name)
    assert (sorted(found), on_top) == (sorted(texts), extra)


@pytest.mark.parametrize("kind", ["chat", "preference", "completion"])
def test_plain_examples_count_as_all_others_do(kind):
    plain = file_with({"prompt": "x", "completion": " y"} if kind == "completion" else preference(), kind)
    if kind == "chat":
        plain = file_with(chat(SYSTEM, USER, ASSISTANT))
    marked = plain.replace(b"\n", b" \n").replace(b"{", b'{"null": null, ')  # takes the way of the rules in full
    tokens = Tokenizer("o200k_base")
    assert check(plain, tokens=tokens).tokens == check(marked, tokens=tokens).tokens


def completions(*lengths):
    return jsonl(
        *({"prompt": f"{number:03}", "completion": " " + "x" * (length - 4)} for number, length in enumerate(lengths))
    )


def test_percentiles_by_nearest_rank_and_the_cut():
    model = TrainingModel("m", token_limit=95)
    report = check(completions(*range(10, 110)), tokens=Letters(), model=model)
    tokens = report.tokens
    assert (tokens.encoding, tokens.p50, tokens.p95, tokens.max) == ("letters", 59, 104, 109)
    assert (tokens.total, tokens.over_limit) == (sum(range(10, 110)), 14)
    assert report.estimate.billable_tokens == 3 * sum(min(length, 95) for length in range(10, 110))
    assert warnings(report)[:1] == [(87, "too_long", None)]
    assert report.warning_count == 14 + 1  # and no price


def test_no_counter_no_tokens():
    report = check(completions(*range(10, 30)), model=TrainingModel("m"))
    assert (report.tokens, report.estimate) == (None, None)


def test_an_unknown_price_is_said():
    report = check(completions(*range(10, 30)), tokens=Letters(), model=TrainingModel("m"))
    assert report.estimate.usd is None
    assert [w.code for w in report.warnings] == ["unknown_price"]


def test_the_price_is_that_of_all_epochs():
    model = TrainingModel("m", usd_per_million_tokens=2.0, price_date="2025-12-01")
    estimate = check(completions(*[100] * 1000), tokens=Letters(), model=model, epochs=5).estimate
    assert (estimate.epochs, estimate.billable_tokens, estimate.usd) == (5, 500_000, 1.0)
    assert estimate.price_date == "2025-12-01"
    assert over_budget(estimate, 1.0) is None
    assert over_budget(estimate, None) is None
    assert "1.00 USD" in over_budget(estimate, 0.99)


@pytest.mark.parametrize(
    ("examples", "epochs"),
    [(1, 25), (4, 25), (5, 20), (10, 10), (33, 3), (34, 3), (8333, 3), (8334, 2), (12_501, 1), (30_000, 1)],
)
def test_epochs_that_the_provider_chooses(examples, epochs):
    assert default_epochs(examples) == epochs
