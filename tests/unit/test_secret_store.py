import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from tunedrop.errors import Transient, Unauthorised
from tunedrop.secret_store import StoredSecret

from tests.unit.fakes import Broken, FakeTime


@pytest.fixture(scope="module")
def client(aws):
    return boto3.client("secretsmanager")


@pytest.fixture
def store(client):
    yield client
    for secret in client.list_secrets()["SecretList"]:
        client.delete_secret(SecretId=secret["ARN"], ForceDeleteWithoutRecovery=True)


@pytest.fixture
def time(monkeypatch):
    stands = FakeTime(50.0)
    stands.monotonic = stands.time
    monkeypatch.setattr("tunedrop.secret_store.time", stands)
    return stands


@pytest.fixture
def secret(store, time):
    arn = store.create_secret(Name="s", SecretString="one")["ARN"]
    return StoredSecret(arn, store)


def test_a_secret_is_what_was_put(secret):
    assert secret.value() == "one"


def test_a_secret_pasted_with_a_line_break_is_the_one_that_was_meant(store, secret):
    store.put_secret_value(SecretId="s", SecretString=" one\n")
    assert secret.value() == "one"


def test_a_rotated_secret_is_taken_up_after_300_seconds(store, secret, time):
    secret.value()
    store.put_secret_value(SecretId="s", SecretString="two")
    time.advance(299)
    assert secret.value() == "one"
    time.advance(1)
    assert secret.value() == "two"


def test_a_fresh_secret_is_taken_up_at_once(store, secret):
    secret.value()
    store.put_secret_value(SecretId="s", SecretString="two")
    assert secret.value(fresh=True) == "two"
    assert secret.value() == "two"


def test_a_secret_without_a_value_asks_for_one(store, time):
    store.create_secret(Name="empty")
    with pytest.raises(Unauthorised, match="put-secret-value"):
        StoredSecret("empty", store).value()


@pytest.mark.parametrize("value", [{"SecretBinary": b"x"}, {"SecretString": " \n"}])
def test_a_secret_without_a_text_asks_for_one(store, time, value):
    store.create_secret(Name="odd", **value)
    with pytest.raises(Unauthorised, match="put-secret-value"):
        StoredSecret("odd", store).value()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ClientError({"Error": {"Code": "AccessDeniedException"}}, "GetSecretValue"), Unauthorised),
        (ClientError({"Error": {"Code": "InternalServiceError"}}, "GetSecretValue"), Transient),
        (EndpointConnectionError(endpoint_url="https://x"), Transient),
    ],
)
def test_what_goes_wrong_is_translated(store, time, error, kind):
    with pytest.raises(kind):
        StoredSecret("s", Broken(store, "get_secret_value", error)).value()


def test_a_secret_that_could_not_be_fetched_afresh_is_fetched_again_next_time(store, secret, time):
    broken = StoredSecret("s", Broken(store, "get_secret_value", EndpointConnectionError(endpoint_url="x")))
    with pytest.raises(Transient):
        broken.value()
    assert broken.value() == "one"
