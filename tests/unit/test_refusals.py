import pytest
from tunedrop.errors import Denied, Rejected
from tunedrop.refusals import REFUSALS, recognise


def known_as(message, *codes, status=400):
    refusal = recognise(codes, message, status)
    return refusal.code if refusal else None


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("Creating fine-tuning jobs is no longer available to your organization.", "fine_tuning_closed"),
        ("Fine-tuning is not available for your organization.", "fine_tuning_closed"),
        ("Your organization is not allowed to create fine-tuning jobs.", "fine_tuning_closed"),
        ("This project does not have access to fine-tuning.", "fine_tuning_closed"),
        ("The fine-tuning API has been discontinued.", "fine_tuning_closed"),
        ("Model gpt-5 is not available for fine-tuning or does not exist.", "model_not_tunable"),
        ("The specified base model does not support fine-tuning.", "model_not_tunable"),
        ("gpt-4o cannot be fine-tuned", "model_not_tunable"),
        ("Fine-tuning is not supported for this model.", "model_not_tunable"),
        ("The model `text-davinci-003` has been deprecated, learn more here", "model_retired"),
        ("Model gpt-4-0613 is no longer available.", "model_retired"),
        ("The model x was retired on 2026-10-23", "model_retired"),
        ("The model `x` does not exist or you do not have access to it.", "model_not_found"),
        ("Country, region, or territory not supported", "region_not_supported"),
        ("This model is not available in your region.", "region_not_supported"),
        ("Fine-tuning is not enabled in this location", "region_not_supported"),
        ("You exceeded your current quota, please check your plan and billing details.", "insufficient_quota"),
        ("Your credit balance is too low", "insufficient_quota"),
        ("Billing hard limit has been reached", "billing_hard_limit_reached"),
        ("Your account is not active, please check your billing details.", "billing_not_active"),
        ("Invalid 'suffix': at most 64 characters, got 65.", None),
        ("Unknown parameter: 'metadata'.", None),
        ("File 'file-1' is still being processed and cannot be used for fine-tuning yet.", None),
        ("The file has 4 examples, at least 10 are needed for fine-tuning the model.", None),
        ("", None),
    ],
)
def test_a_refusal_is_recognised_by_its_words(message, code):
    assert known_as(message) == code


@pytest.mark.parametrize("code", ["DeploymentModelDeprecated", "invalid_request_error", "", None, "None", 400])
def test_other_codes_are_none_of_these(code):
    assert known_as("", code) is None


@pytest.mark.parametrize("code", ["model_not_found", "modelNotFound", "MODEL-NOT-FOUND", "ModelNotFound"])
def test_codes_are_compared_without_their_spelling(code):
    assert known_as("", None, code) == "model_not_found"


def test_a_code_says_more_than_words():
    assert known_as("This model does not support fine-tuning", "billing_not_active") == "billing_not_active"


@pytest.mark.parametrize(
    "message",
    [
        "Rate limit reached for gpt-4o in organization org-1 on fine-tuning jobs: not more than 3 at once.",
        "The model is not available in this region at the moment, retry later.",
        "Requests have exceeded the token rate limit of your current pricing tier. Increase your quota.",
    ],
)
def test_a_429_asks_for_patience_unless_it_is_about_money(message):
    assert known_as(message, "rate_limit_exceeded", status=429) is None


def test_each_refusal_ends_the_run_with_its_remedy():
    assert len({refusal.code for refusal in REFUSALS}) == len(REFUSALS)
    for refusal in REFUSALS:
        error = refusal.error(": it said so.")
        assert isinstance(error, Denied | Rejected)
        assert error.code == refusal.code
        assert error.message == f"{refusal.meaning}: it said so. What helps: {refusal.remedy}"
