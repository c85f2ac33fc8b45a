"""Every profile against the emulated service in that provider's manners, with the real client: one list of checks."""

import json
from datetime import date

import pytest
from msgspec.structs import replace
from tunedrop.errors import Denied, Rejected, Throttled
from tunedrop.job_request import parameters, unmet
from tunedrop.job_specification import JobSpecification, parse
from tunedrop.poll_status import UNDER_WAY
from tunedrop.preflight import Wanted, preflight
from tunedrop.provider import OpenAIProvider
from tunedrop.providers import PROFILES

from local.provider.manners import MANNERS
from tests.local.provider_support import KEY, Provider, chats, lines, until
from tests.unit.fakes import FakeSecret

CREATION = "/v1/fine_tuning/jobs$"
RUN = "0123456789abcdef0123456789abcdef"
GRADERS = {"bedrock": {"type": "lambda", "lambda": {"function_arn": "arn:aws:lambda:us-east-1:1:function:reward"}}}
GRADER = {"type": "string_check", "name": "n", "input": "{{item.a}}", "reference": "x", "operation": "eq"}


@pytest.fixture(scope="module", params=sorted(PROFILES))
def service(request):
    running = Provider.start("--manners", request.param, time_scale=5000)
    running.name = request.param
    yield running
    running.stop()


@pytest.fixture
def provider(service):
    yield OpenAIProvider(PROFILES[service.name], service.url, FakeSecret(KEY))
    service.order("DELETE", "/faults")


@pytest.fixture
def manners(service):
    usual = service.order("GET", "/manners")
    yield lambda **changes: service.order("PATCH", "/manners", changes)
    service.order("PATCH", "/manners", usual)


def model_of(provider, method="supervised"):
    return next(name for name, methods in MANNERS[provider.profile.name].models.items() if method in methods)


def uploaded(provider, content=None):
    content = content or chats()
    file = provider.upload(f"{RUN}.jsonl", iter([content]), len(content))
    return until(lambda: provider.file(file.id), lambda found: found.status == "processed")


def create(provider, specification=None, method="supervised", content=None, **more):
    wanted = parameters(RUN, specification or JobSpecification(), model_of(provider, method), provider.profile)
    return provider.create_job(training_file=uploaded(provider, content).id, **wanted, **more)


def everything(profile):
    """A job specification with every wish that the service meets."""
    takes = {
        "suffix": profile.suffix_length and "mine",
        "seed": 7 if profile.takes_seed else None,
        "integrations": [{"type": "wandb", "wandb": {"project": "p"}}] if profile.takes_integrations else None,
        "metadata": {"team": "shop"} if profile.takes_metadata else None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    }
    return JobSpecification(**{name: value for name, value in takes.items() if value is not None})


def fault(service, status, code, message):
    """A refusal in the body that the service gives it."""
    form = MANNERS[service.name].error_form
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    if form == "azure":
        error = {"code": code or str(status), "message": message}
    elif form == "litellm":
        error = {"message": f"litellm.APIError: {message}", "type": "None", "param": "None", "code": str(status)}
    body = {"detail": message} if form == "detail" else {"error": error}
    service.fault("POST", CREATION, {"status": status, "body": body})


def test_every_profile_has_its_manners():
    assert PROFILES.keys() == MANNERS.keys()
    assert all(profile.name == profile.like == name for name, profile in PROFILES.items())


def test_a_job_goes_from_its_file_to_its_model(provider):
    job = create(provider)
    seen = set()

    def look():
        found = provider.job(job.id)
        seen.add(found.status)
        return found

    ended = until(look, lambda found: found.status == "succeeded")
    assert ended.fine_tuned_model
    assert ended.trained_tokens > 0
    assert provider.content(ended.result_files[0]).startswith(b"step,")
    assert [event["message"] for event in provider.events(job.id)]
    assert seen <= {*UNDER_WAY, *provider.profile.under_way, "succeeded"}


def test_every_status_of_a_job_under_way_is_known(provider, service):
    names = {MANNERS[service.name].statuses.get(status, status) for status in UNDER_WAY}
    assert names <= {*UNDER_WAY, *provider.profile.under_way}


def test_a_file_that_is_not_processed_is_known_as_such(provider, manners):
    manners(processing_seconds=1e9)
    file = provider.upload("slow.jsonl", iter([chats()]), len(chats()))
    assert provider.file(file.id).status in ("uploaded", "pending", "running")


def test_a_job_is_found_by_its_file_and_can_be_cancelled(provider):
    job = create(provider)
    assert [found.id for found in provider.jobs_on(job.training_file)] == [job.id]
    assert provider.cancel_job(job.id).status in ("cancelled", "succeeded")


def test_every_wish_that_the_profile_meets_is_met(provider):
    specification = everything(provider.profile)
    assert list(unmet(specification, provider.profile)) == []
    job = create(provider, specification)
    told = job.document
    if provider.profile.takes_metadata:
        assert told["metadata"] == {"team": "shop", "run_id": RUN}
    if provider.profile.suffix_length:
        assert told["user_provided_suffix"] == "mine"
    if provider.profile.takes_seed:
        assert told["seed"] == 7
    hyperparameters = told["hyperparameters"]
    assert hyperparameters["n_epochs"] == 2
    assert hyperparameters.get("lora") is (True if provider.profile.name == "nebius" else None)


@pytest.mark.parametrize(
    ("wish", "value"),
    [
        ("suffix", "mine"),
        ("seed", 7),
        ("integrations", [{"type": "wandb", "wandb": {"project": "p"}}]),
        ("metadata", {"team": "shop"}),
    ],
)
def test_a_wish_is_refused_before_anything_is_sent_or_taken_by_the_service(provider, wish, value):
    specification = JobSpecification(**{wish: value})
    refused = [problem.path for problem in unmet(specification, provider.profile)]
    if refused:
        assert refused == [wish]
        with pytest.raises(Rejected):  # and the service would have refused it too
            create(provider, **{wish: value})
    else:
        assert create(provider, specification).id


@pytest.mark.parametrize("length", [64, 65])
def test_a_suffix_is_as_long_as_it_may_be(provider, length):
    if provider.profile.suffix_length is None:
        pytest.skip("it takes none")
    specification = JobSpecification(suffix="s" * length)
    fits = length <= provider.profile.suffix_length
    assert (not list(unmet(specification, provider.profile))) == fits
    if fits:
        assert create(provider, specification).id
    else:
        with pytest.raises(Rejected):
            create(provider, specification)


@pytest.mark.parametrize("method", ["supervised", "dpo", "reinforcement"])
def test_a_method_is_refused_before_anything_is_sent_or_taken_by_the_service(provider, service, method):
    profile = provider.profile
    settings = {"grader": GRADERS.get(profile.name, GRADER)} if method == "reinforcement" else {}
    specification = JobSpecification(method={"type": method, method: settings})
    refused = [problem.code for problem in unmet(specification, profile)]
    assert refused == ([] if method in profile.methods else ["wrong_method"])
    if not refused:
        more = {"validation_file": uploaded(provider).id} if method == "reinforcement" else {}
        assert create(provider, specification, method, **more).id


def test_as_few_examples_as_the_profile_asks_for_are_enough(provider):
    profile = provider.profile
    if "reinforcement" not in profile.methods:
        pytest.skip("it has no such method")
    least = profile.data.minimum_examples["reinforcement"]
    system = [{"role": "system", "content": "Be brief."}] if profile.data.system_in_reinforcement else []
    items = [{"messages": [*system, {"role": "user", "content": f"{n}?"}], "a": n} for n in range(least)]
    grader = GRADERS.get(profile.name, GRADER)
    specification = {"method": {"type": "reinforcement", "reinforcement": {"grader": grader}}}
    text = json.dumps(specification).encode()
    wanted = Wanted(today=date(2026, 11, 1), default_model=model_of(provider, "reinforcement"), at_home=False)
    wanted = replace(wanted, default_provider=profile.name, profiles=PROFILES)
    check = preflight([lines(items)], [lines(items[:10])], text, wanted)
    assert check.report.valid, check.report.errors
    fewer = preflight([lines(items[:-1])], [lines(items[:10])], text, wanted)
    assert {finding.code for finding in fewer.report.errors} == {"too_few_examples"}

    more = {"validation_file": uploaded(provider, lines(items[:10])).id}
    job = create(provider, parse(text), "reinforcement", lines(items), **more)
    until(lambda: provider.job(job.id), lambda found: found.status not in ("validating_files", "pending", "queued"))
    assert provider.job(job.id).status != "failed"


def test_a_model_is_asked_for_where_that_helps(provider):
    told = provider.model(model_of(provider))
    assert (told is not None) == provider.profile.retrieves_models
    if told is not None:
        assert told.tunable is (True if provider.profile.name == "azure" else None)
        with pytest.raises(Rejected) as caught:
            provider.model("no-such-model")
        assert caught.value.code == "model_not_found"
    else:
        assert provider.model("no-such-model") is None


REFUSALS = [
    (
        403,
        "fine_tuning_not_available",
        "Fine-tuning is no longer available to your organization.",
        "fine_tuning_closed",
    ),
    (400, None, "The model m has been deprecated and can no longer be trained.", "model_retired"),
    (400, "model_not_available", "Model m is not available for fine-tuning or does not exist.", "model_not_tunable"),
    (400, None, "The specified base model does not support fine-tuning.", "model_not_tunable"),
    (400, None, "Fine-tuning of m is not supported in region westeurope.", "region_not_supported"),
    (
        403,
        "unsupported_country_region_territory",
        "Country, region, or territory not supported",
        "region_not_supported",
    ),
    (429, "insufficient_quota", "You exceeded your current quota, please check your plan.", "insufficient_quota"),
    (402, None, "Insufficient balance.", "insufficient_quota"),
    (400, "billing_hard_limit_reached", "Billing hard limit has been reached", "billing_hard_limit_reached"),
    (429, "billing_not_active", "Your account is not active, please check your billing details.", "billing_not_active"),
    (404, "model_not_found", "The model `m` does not exist or you do not have access to it.", "model_not_found"),
]


@pytest.mark.parametrize(("status", "code", "message", "known_as"), REFUSALS, ids=str)
def test_a_refusal_for_good_is_recognised_in_the_services_own_body(provider, service, status, code, message, known_as):
    file = uploaded(provider)
    fault(service, status, code, message)
    with pytest.raises((Denied, Rejected)) as caught:
        provider.create_job(model=model_of(provider), training_file=file.id)
    assert caught.value.code == known_as
    assert "What helps:" in caught.value.message
    assert message.rstrip(".") in caught.value.message


def test_what_asks_for_patience_is_no_refusal(provider, service):
    file = uploaded(provider)
    fault(
        service, 429, "rate_limit_exceeded", "Rate limit reached for your organization: 3 fine-tuning jobs, not more."
    )
    with pytest.raises(Throttled):
        provider.create_job(model=model_of(provider), training_file=file.id)


def test_a_service_that_has_closed_says_so_in_its_own_manner(provider, manners):
    manners(closed=True)
    with pytest.raises(Denied) as caught:
        create(provider)
    assert caught.value.code == "fine_tuning_closed"


def test_a_model_that_it_does_not_train_is_refused_for_certain(provider):
    with pytest.raises(Rejected) as caught:
        provider.create_job(model="no-such-model", training_file=uploaded(provider).id)
    assert caught.value.code == "model_not_tunable"
