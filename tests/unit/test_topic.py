import json

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from tunedrop.errors import Transient
from tunedrop.topic import SnsTopic

from tests.unit.fakes import Broken

MESSAGE = {"default": "{}", "email": "text"}


@pytest.fixture
def sns(aws):
    return boto3.client("sns")


def test_a_notice_reaches_the_queue_in_the_form_of_the_machines(sns):
    arn = sns.create_topic(Name="final")["TopicArn"]
    sqs = boto3.client("sqs")
    queue = sqs.create_queue(QueueName="notify")["QueueUrl"]
    raw = {"RawMessageDelivery": "true"}
    to = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=arn, Protocol="sqs", Endpoint=to, Attributes=raw)
    SnsTopic(sns, arn).publish("A subject", {"default": json.dumps({"run_id": "x"}), "email": "text"}, "model_found")
    [received] = sqs.receive_message(QueueUrl=queue, MessageAttributeNames=["All"])["Messages"]
    assert json.loads(received["Body"]) == {"run_id": "x"}
    assert received["MessageAttributes"]["state"]["StringValue"] == "model_found"


@pytest.mark.parametrize(
    "error",
    [
        ClientError({"Error": {"Code": "ThrottledException"}}, "Publish"),
        EndpointConnectionError(endpoint_url="https://x"),
    ],
)
def test_what_goes_wrong_is_transient(sns, error):
    with pytest.raises(Transient):
        SnsTopic(Broken(sns, "publish", error), "arn:aws:sns:us-east-1:123456789012:x").publish("s", MESSAGE, "k")
