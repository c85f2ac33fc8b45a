"""The way out: a final state reaches the receiver once, whatever happens on the way."""

import json

import pytest

from tests.workflow.running import until


@pytest.mark.parametrize("status", [503, 302])
def test_a_receiver_that_refuses_for_a_while_is_told_later_and_once(stack, key, dataset, status):
    stack.control("receiver", {"times": 2, "status": status})
    ended = stack.ended(stack.drop(key, dataset(9)))

    assert ended.notification["refused"] == 2
    assert ended.state == "rejected"


def test_what_a_destination_has_accepted_is_not_sent_to_it_again(stack, key, dataset):
    run_id = stack.drop(key, dataset(9))
    ended = stack.ended(run_id)
    topic = next(t["TopicArn"] for t in stack.aws("sns").list_topics()["Topics"])
    message = json.dumps(ended.notification["message"]["data"])
    stack.aws("sns").publish(TopicArn=topic, Message=message)

    stack.drained()
    assert stack.ended(run_id).run == ended.run


def test_notifying_that_dies_is_repeated_once_its_message_is_visible_again(stack, key, dataset):
    stack.notify_queue_attributes(VisibilityTimeout="3")
    try:
        stack.ended(stack.drop(key, dataset(9)))  # what is received from now on is received under the new time-out
        stack.crash("NotifyFunction", "exit")
        assert stack.ended(stack.drop(key, dataset(9))).state == "rejected"
    finally:
        stack.notify_queue_attributes(VisibilityTimeout="360")


def test_the_queue_waits_longer_than_the_function_may_take(stack):
    attributes = stack.notify_queue_attributes()
    assert int(attributes["VisibilityTimeout"]) >= 6 * 60
    redrive = json.loads(attributes["RedrivePolicy"])
    assert redrive["maxReceiveCount"] == 27
    assert int(attributes["MessageRetentionPeriod"]) > 3 * 24 * 3600


def test_destinations_are_read_anew_for_each_message(stack, key, dataset):
    secrets = stack.aws("secretsmanager")
    good = secrets.get_secret_value(SecretId="tunedrop-NotificationSecret")["SecretString"]
    secrets.put_secret_value(SecretId="tunedrop-NotificationSecret", SecretString="no JSON")
    stack.forget("NotifyFunction")
    run_id = stack.drop(key, dataset(9))
    until(lambda: stack.run(run_id), lambda run: run and run["finished_at"], 20)
    secrets.put_secret_value(SecretId="tunedrop-NotificationSecret", SecretString=good)
    stack.forget("NotifyFunction")

    assert stack.ended(run_id).state == "rejected"
