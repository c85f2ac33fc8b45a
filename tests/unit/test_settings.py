import pytest
from tunedrop import settings
from tunedrop.settings import MissingSetting, load

WEBHOOK = {
    "BUCKET_NAME": "datasets",
    "WEBHOOK_SECRET_ARN": "arn:secret",
    "STATE_MACHINE_ARN": "arn:machine",
    "LEDGER_TABLE": "ledger",
    "ON_DELETION": "ignore",
}


def test_settings_are_read_from_the_variables_of_their_names():
    found = load(settings.WebhookSettings, WEBHOOK | {"UNRELATED": "1"})
    assert found == settings.WebhookSettings("datasets", "arn:secret", "arn:machine", "ledger", "ignore")


@pytest.mark.parametrize("name", WEBHOOK)
@pytest.mark.parametrize("empty", [True, False])
def test_a_variable_that_is_missing_or_empty_is_named(name, empty):
    environment = {key: value for key, value in WEBHOOK.items() if key != name} | ({name: ""} if empty else {})
    with pytest.raises(MissingSetting, match=rf"\b{name}\b"):
        load(settings.WebhookSettings, environment)


def test_a_variable_with_a_default_may_be_empty():
    found = load(settings.ProviderSettings, {"PROVIDER": "openai", "PROVIDER_SECRET_ARN": "a", "PROVIDER_BASE_URL": ""})
    assert found.provider_base_url == ""


@pytest.mark.parametrize(("text", "number"), [("168", 168.0), ("0.5", 0.5), ("0", 0.0)])
def test_numbers_are_read(text, number):
    assert load(settings.RunSettings, {"RUN_DEADLINE_HOURS": text}).run_deadline_hours == number


@pytest.mark.parametrize("text", ["many", "1,5", "nan", "inf", "-inf"])
def test_a_number_that_is_none_is_named(text):
    with pytest.raises(MissingSetting, match="RUN_DEADLINE_HOURS must be a number"):
        load(settings.RunSettings, {"RUN_DEADLINE_HOURS": text})


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("", False)])
def test_flags_are_read(text, value):
    environment = {"NOTIFICATION_SECRET_ARN": "a", "NOTIFY_QUEUE_URL": "q", "ALLOW_LOOPBACK": text}
    assert load(settings.NotifySettings, environment).allow_loopback is value


@pytest.mark.parametrize("text", ["True", "1", "yes"])
def test_a_flag_that_is_none_is_named(text):
    environment = {"NOTIFICATION_SECRET_ARN": "a", "NOTIFY_QUEUE_URL": "q", "ALLOW_LOOPBACK": text}
    with pytest.raises(MissingSetting, match="ALLOW_LOOPBACK must be true or false"):
        load(settings.NotifySettings, environment)
