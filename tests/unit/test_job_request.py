import pytest
from tunedrop.job_request import parameters, unmet
from tunedrop.job_specification import JobSpecification
from tunedrop.providers import PROFILES

SUPERVISED = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}


def made(provider, **specification):
    return parameters("r1", JobSpecification(**specification), "m", PROFILES[provider])


def test_a_specification_that_wishes_nothing_asks_for_the_model_and_what_the_profile_needs():
    assert made("openai") == {"model": "m", "metadata": {"run_id": "r1"}}
    assert made("azure") == {"model": "m", "metadata": {"run_id": "r1"}, "extra_body": {"trainingType": "Standard"}}
    assert made("nebius") == {"model": "m", "hyperparameters": {"lora": True}}
    assert made("litellm") == made("compatible") == made("bedrock") == {"model": "m"}


def test_what_the_specification_says_wins_over_the_profile():
    assert made("azure", extra_body={"trainingType": "Developer", "x": 1})["extra_body"] == {
        "trainingType": "Developer",
        "x": 1,
    }
    assert made("nebius", extra_body={"hyperparameters": {"lora": False}}) == {
        "model": "m",
        "hyperparameters": {"lora": False},
    }


def test_the_profile_is_left_as_it_is():
    made("nebius", extra_body={"hyperparameters": {"lora_r": 8}}, method=SUPERVISED)
    assert PROFILES["nebius"].extra_body == {"hyperparameters": {"lora": True}}


def test_hyperparameters_are_in_the_method_or_at_the_top():
    assert made("openai", method=SUPERVISED)["method"] == SUPERVISED
    assert made("litellm", method=SUPERVISED) == {"model": "m", "hyperparameters": {"n_epochs": 2}}
    assert made("litellm", method={"type": "supervised"}) == {"model": "m"}


def test_metadata_that_is_full_is_the_users_alone():
    full = {str(number): "x" for number in range(16)}
    assert made("openai", metadata=full)["metadata"] == full


@pytest.mark.parametrize("value", [[], "x", None, 1])
def test_hyperparameters_that_are_no_object_are_refused_where_they_would_be_merged(value):
    specification = JobSpecification(extra_body={"hyperparameters": value})
    assert [problem.path for problem in unmet(specification, PROFILES["litellm"])] == ["extra_body.hyperparameters"]
    assert list(unmet(specification, PROFILES["openai"])) == []
    assert parameters("r1", specification, "m", PROFILES["litellm"]) == {"model": "m"}
