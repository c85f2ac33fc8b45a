"""The table that tests write into, held to what moto's DynamoDB answers."""

import re

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.world.table import Table

ITEM = {
    "id": {"S": "a"},
    "n": {"N": "7"},
    "text": {"S": "seven"},
    "nothing": {"NULL": True},
    "set": {"SS": ["x", "y"]},
    "list": {"L": [{"N": "1"}, {"N": "2"}]},
    "map": {"M": {"deep": {"N": "1"}}},
}
VALUES = {
    ":n": {"N": "7.0"},
    ":more": {"N": "8"},
    ":text": {"S": "seven"},
    ":null": {"S": "NULL"},
    ":x": {"S": "x"},
    ":list": {"L": [{"N": "3"}]},
    ":set": {"SS": ["y", "z"]},
}
CONDITIONS = [
    "attribute_exists(n)",
    "attribute_exists(gone)",
    "attribute_not_exists(gone) AND n = :n",
    "attribute_not_exists(n) OR attribute_type(nothing, :null)",
    "NOT attribute_exists(n) OR (n < :more AND n >= :n)",
    "n <> :text",
    "gone <> :n",
    "gone < :n",
    "n = :text OR n > :more",
    "contains(#set, :x)",
    "contains(gone, :x)",
    "#list[0] < #list[1] AND #map.deep = #list[0]",
    "attribute_exists(#list[2])",
    "n <= :n AND n <= :more AND NOT n > :n",
    "size(#set) < :n AND size(#list) <> :more OR size(#set) > :n",
]
CHANGES = [
    "SET n = n + :more, fresh = :text",
    "SET n = if_not_exists(n, :more), fresh = if_not_exists(fresh, :more) REMOVE nothing",
    "REMOVE gone, n",
    "ADD #set :set",
    "DELETE #set :set",
    "ADD fresh :set",
    "ADD n :more, fresh :more",
    "SET #list[1] = :more",
    "SET #list[5] = :more, #map.deep = :more, #map.extra = :text",
    "SET n = :more, fresh = n",
    "SET #list = list_append(#list, :list)",
    "DELETE #set :set SET n = n - :more",
]
NAMES = {"#set": "set", "#list": "list", "#map": "map"}


@pytest.fixture(scope="module")
def moto(aws):
    client = boto3.client("dynamodb")
    client.create_table(
        TableName="t",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    return client


def outcome(client, change, condition=None):
    """What becomes of an item, and what is answered."""
    client.put_item(TableName="t", Item=ITEM)
    used = set(re.findall(r"[#:]\w+", f"{change} {condition}"))
    asked = {
        "UpdateExpression": change,
        "ExpressionAttributeNames": {name: value for name, value in NAMES.items() if name in used},
        "ExpressionAttributeValues": {name: value for name, value in VALUES.items() if name in used},
        **({"ConditionExpression": condition} if condition else {}),
    }
    asked = {name: value for name, value in asked.items() if value}
    try:
        answer = client.update_item(
            TableName="t",
            Key={"id": {"S": "a"}},
            ReturnValues="ALL_NEW",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
            **asked,
        )["Attributes"]
    except ClientError as error:
        answer = error.response["Error"]["Code"], error.response.get("Item")
    return answer, client.get_item(TableName="t", Key={"id": {"S": "a"}})["Item"]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_holds_where_it_does_at_moto(moto, condition):
    assert outcome(Table(), "SET fresh = :text", condition) == outcome(moto, "SET fresh = :text", condition)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_of_an_item_what_moto_makes_of_it(moto, change):
    assert outcome(Table(), change) == outcome(moto, change)


@pytest.mark.parametrize("expression", ["n BETWEEN :n AND :more", "begins_with(text, :text)"])
def test_what_it_does_not_know_it_refuses(expression):
    with pytest.raises(NotImplementedError):
        outcome(Table(), "SET fresh = :text", expression)
