from dataclasses import replace

import pytest
from tunedrop.runs import FINAL, Failure
from tunedrop.texts import subject_of, text_of


def final(run, state="succeeded", **fields):
    return replace(run, state=state, finished_at=run.created_at, **fields)


@pytest.mark.parametrize("state", FINAL)
def test_every_final_state_has_a_headline(run, state):
    assert subject_of(final(run, state)).endswith(": orders.jsonl")


@pytest.mark.parametrize("state", FINAL)
def test_an_adapters_end_is_told_by_the_adapters_name(run, state):
    adapter = final(run, state, key="adapters/orchard-desk/adapter_model.safetensors")
    assert subject_of(adapter).endswith(": orchard-desk")
    assert state == "over_budget" or "dataset" not in subject_of(adapter)


def test_a_published_adapter_is_told_with_what_it_is_asked_by_and_what_trained_it(run):
    known = {"fine_tuned_model": "orchard-desk", "finetune_id": "0123", "source_run_id": "f" * 32}
    text = text_of(final(run, key="adapters/orchard-desk/adapter_model.safetensors", **known))
    assert text.startswith("Your adapter is on Workers AI.")
    for line in ("Model:          orchard-desk", "Finetune:       0123", f"Trained by:     run {'f' * 32}"):
        assert line in text.splitlines()


@pytest.mark.parametrize("key", ["é日本.jsonl", "a\nb\r.jsonl", "x" * 1024, "deep/\x00/\x7f.jsonl", "a/", ""])
@pytest.mark.parametrize("state", FINAL)
def test_a_subject_is_one_that_sns_takes(run, state, key):
    subject = subject_of(final(run, state, key=key))
    assert subject.isascii()
    assert subject.isprintable()
    assert 0 < len(subject) <= 100


def test_the_text_says_what_is_known_and_nothing_of_what_is_not(run):
    known = {"model": "gpt-4o-mini", "fine_tuned_model": "ft:x", "examples": 1234, "estimated_cost_usd": 1.5}
    text = text_of(final(run, **known))
    for line in (
        "Model:          ft:x",
        "Examples:       1,234",
        "Estimated cost: 1.50 USD",
        f"Run:            {run.run_id}",
    ):
        assert line in text.splitlines()
    for name in ("Why", "Job", "Results", "None"):
        assert name not in text


def test_the_text_says_why(run):
    assert "Why:            line 3: no JSON." in text_of(final(run, "rejected", error=Failure("c", "line 3: no JSON.")))


@pytest.mark.parametrize(
    ("finished", "said"),
    [
        ("2026-03-01T10:00:00.400Z", "0 s"),
        ("2026-03-01T10:00:59.000Z", "59 s"),
        ("2026-03-01T10:01:01.000Z", "1 min 1 s"),
        ("2026-03-02T11:02:03.000Z", "25 h 2 min"),
    ],
)
def test_the_text_says_how_long_it_took(run, finished, said):
    assert f"Time:           {said}" in text_of(replace(run, state="succeeded", finished_at=finished)).splitlines()
