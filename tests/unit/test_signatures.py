import base64
import time

import pytest
from standardwebhooks.webhooks import Webhook
from tunedrop import signatures
from tunedrop.signatures import EmptySecret, NotAuthentic

SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 24).decode()
BODY = '{"key": "ü"}'


def signed(secret=SECRET, at=None, body=BODY):
    return signatures.sign(secret, "msg_1", time.time() if at is None else at, body)


def verify(headers, secrets=(SECRET,), body=BODY):
    signatures.verify(secrets, headers, body if isinstance(body, bytes) else body.encode())


def test_what_is_signed_is_accepted():
    verify(signed())


def test_the_signature_is_that_of_standard_webhooks():
    Webhook(SECRET).verify(BODY, signed())


@pytest.mark.parametrize("secrets", [(SECRET, OTHER), (OTHER, SECRET)])
def test_while_one_secret_replaces_another_both_are_accepted(secrets):
    verify(signed(SECRET), secrets)


@pytest.mark.parametrize("known", [SECRET, OTHER])
def test_while_one_secret_replaces_another_what_goes_out_is_signed_by_both(known):
    Webhook(known).verify(BODY, signed(f"{SECRET} {OTHER}"))


def test_another_secrets_signature_is_refused():
    with pytest.raises(NotAuthentic):
        verify(signed(OTHER))


def test_another_body_is_refused():
    with pytest.raises(NotAuthentic):
        verify(signed(), body=BODY + " ")


def test_another_messages_signature_is_refused():
    with pytest.raises(NotAuthentic):
        verify(signed() | {"webhook-id": "msg_2"})


@pytest.mark.parametrize("seconds", [-290, 0, 290])
def test_a_message_within_300_seconds_is_accepted(seconds):
    verify(signed(at=time.time() + seconds))


@pytest.mark.parametrize("seconds", [-302, 302])
def test_a_message_further_away_is_refused(seconds):
    with pytest.raises(NotAuthentic):
        verify(signed(at=time.time() + seconds))


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
@pytest.mark.parametrize(
    "garbage", [None, "", "x", "nan", "inf", "1e400", "v1,", "v1,é", "v1,a,b", ",", "\ud800", "\x00"]
)
def test_garbage_in_a_header_is_refused(name, garbage):
    headers = signed()
    if garbage is None:
        del headers[name]
    else:
        headers[name] = garbage
    with pytest.raises(NotAuthentic):
        verify(headers)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"\x00" * 10])
def test_garbage_in_the_body_is_refused(body):
    with pytest.raises(NotAuthentic):
        verify(signed(), body=body)


def test_no_headers_are_refused():
    with pytest.raises(NotAuthentic):
        verify({})


# Bearer


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
@pytest.mark.parametrize("secret", [SECRET, OTHER])
def test_a_store_that_cannot_sign_sends_a_secret_as_bearer_token(scheme, secret):
    verify({"authorization": f"{scheme} {secret}"}, (SECRET, OTHER))


@pytest.mark.parametrize(
    "value", [f"Bearer {OTHER}", "Bearer", "Bearer ", f"Basic {SECRET}", SECRET, "Bearer ü", "Bearer \ud800", " "]
)
def test_any_other_authorization_is_refused_whatever_else_is_signed(value):
    with pytest.raises(NotAuthentic):
        verify(signed() | {"authorization": value})


# Secrets


def test_secrets_are_separated_by_blanks():
    assert signatures.secrets_of(f" {SECRET}\n{OTHER} ") == (SECRET, OTHER)


@pytest.mark.parametrize("text", ["", "  \n", "whsec_", f"{SECRET} whsec_", "whsec_!!!!", "=", "é"])
def test_an_empty_secret_is_an_error_at_the_start(text):
    with pytest.raises(EmptySecret):
        signatures.secrets_of(text)


def test_an_empty_secret_signs_nothing():
    with pytest.raises(EmptySecret):
        signed("")
