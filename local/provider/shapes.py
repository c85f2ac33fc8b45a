"""The errors of the API, and what its requests may look like.

A check is a function of a value and its path in the request; it returns nothing or raises `ApiError`.
"""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from local.provider.manners import Manners

type Check = Callable[[Any, str], None]

METHODS = ("supervised", "dpo", "reinforcement")


class ApiError(Exception):
    """An answer other than success, in OpenAI's envelope."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.envelope = {"error": {"message": message, "type": kind, "param": param, "code": code}}

    def body(self, form: str) -> dict[str, Any]:
        """The answer in one of the forms of `Manners.error_form`."""
        error = self.envelope["error"]
        status, message = str(self.status), error["message"]
        if form == "azure":
            return {"error": {"code": error["code"] or status, "message": message}}
        if form == "litellm":
            said = f"litellm.BadRequestError: OpenAIException - {message}"
            return {"error": {"message": said, "type": "None", "param": "None", "code": status}}
        return {"detail": message} if form == "detail" else self.envelope


def _wrong_type(path: str, wanted: str, value: Any) -> ApiError:
    return ApiError(
        400, f"Invalid type for '{path}': expected {wanted}, got {_name(value)}.", param=path, code="invalid_type"
    )


def _invalid(path: str, why: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"Invalid '{path}': {why}.", param=path, code=code)


def _name(value: Any) -> str:
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return names.get(type(value), "null")


def text(shortest: int = 0, longest: int | None = None) -> Check:
    """A string of so many characters."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, str):
            raise _wrong_type(path, "a string", value)
        if len(value) < shortest:
            raise _invalid(path, f"at least {shortest} characters are expected", "string_below_min_length")
        if longest is not None and len(value) > longest:
            raise _invalid(path, f"at most {longest} characters, got {len(value)}", "string_above_max_length")

    return check


def one_of(*values: str) -> Check:
    """One of these words."""

    def check(value: Any, path: str) -> None:
        text()(value, path)
        if value not in values:
            raise _invalid(path, f"{value!r} is none of {', '.join(values)}")

    return check


def integer(least: int, most: int | None = None) -> Check:
    """A whole number from `least` to `most`, both included."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong_type(path, "an integer", value)
        if value < least:
            raise _invalid(path, f"{value} is less than {least}", "integer_below_min_value")
        if most is not None and value > most:
            raise _invalid(path, f"{value} is more than {most}", "integer_above_max_value")

    return check


def number(above: float = 0, most: float = sys.float_info.max) -> Check:
    """A number greater than `above` and at most `most`."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _wrong_type(path, "a number", value)
        # Put this way round, NaN is refused too.
        if not value > above:
            raise _invalid(path, f"{value} is not greater than {above}", "decimal_below_min_value")
        if not value <= most:
            raise _invalid(path, f"{value} is more than {most}", "decimal_above_max_value")

    return check


def boolean(value: Any, path: str) -> None:
    """True or false."""
    if not isinstance(value, bool):
        raise _wrong_type(path, "a boolean", value)


def anything(_value: Any, _path: str) -> None:
    """No rule."""


def nullable(check: Check) -> Check:
    """Null, or what `check` accepts."""
    return lambda value, path: None if value is None else check(value, path)


def auto_or(check: Check) -> Check:
    """The word `auto`, or what `check` accepts."""
    return lambda value, path: None if value == "auto" else check(value, path)


def sequence(of: Check, shortest: int = 0, longest: int | None = None) -> Check:
    """A list, each element of which `of` accepts."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise _wrong_type(path, "an array", value)
        if len(value) < shortest or (longest is not None and len(value) > longest):
            raise _invalid(
                path, f"an array of {len(value)} elements is too {'short' if len(value) < shortest else 'long'}"
            )
        for index, element in enumerate(value):
            of(element, f"{path}[{index}]")

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None, *, loose: bool = False) -> Check:
    """An object with these keys and, unless `loose`, no other."""
    known = {**required, **(optional or {})}

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _wrong_type(path or "body", "an object", value)
        prefix = f"{path}." if path else ""
        for key in required:
            if key not in value:
                where = prefix + key
                raise ApiError(
                    400, f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter"
                )
        for key, element in value.items():
            if key in known:
                known[key](element, prefix + key)
            elif not loose:
                where = prefix + key
                raise ApiError(400, f"Unknown parameter: '{where}'.", param=where, code="unknown_parameter")

    return check


def metadata(manners: Manners) -> Check:
    """Pairs of strings."""
    value_check = text(longest=manners.metadata_value_limit)

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise _wrong_type(path, "an object", value)
        if len(value) > manners.metadata_pairs:
            raise _invalid(
                path, f"at most {manners.metadata_pairs} pairs, got {len(value)}", "object_above_max_properties"
            )
        for key, element in value.items():
            text(longest=manners.metadata_key_limit)(key, path)
            value_check(element, f"{path}.{key}")

    return check


_FEW: dict[str, Check] = {
    "batch_size": auto_or(integer(1, 256)),
    "learning_rate_multiplier": auto_or(number()),
    "n_epochs": auto_or(integer(1, 50)),
}
_DPO = _FEW | {"beta": auto_or(number(most=2))}
_REINFORCEMENT = _FEW | {
    "reasoning_effort": one_of("default", "low", "medium", "high"),
    "compute_multiplier": auto_or(number(above=0.00001, most=10)),
    "eval_interval": auto_or(integer(1)),
    "eval_samples": auto_or(integer(1)),
}


def _method(manners: Manners) -> Check:
    grader = record({"type": one_of(*manners.graders)}, loose=True)
    return record(
        {"type": one_of(*METHODS)},
        {
            "supervised": record({}, {"hyperparameters": record({}, _FEW)}),
            "dpo": record({}, {"hyperparameters": record({}, _DPO)}),
            "reinforcement": record({"grader": grader}, {"hyperparameters": record({}, _REINFORCEMENT)}),
        },
    )


_INTEGRATION = record(
    {
        "type": one_of("wandb"),
        "wandb": record(
            {"project": text(1)}, {"name": nullable(text()), "entity": nullable(text()), "tags": sequence(text())}
        ),
    }
)
EXPIRY = record({"anchor": one_of("created_at"), "seconds": integer(3600, 2_592_000)})
FILE_PURPOSES = one_of("assistants", "batch", "fine-tune", "vision", "user_data", "evals")


def job_request(manners: Manners) -> Check:
    """The body that creates a job."""
    known = {
        "hyperparameters": record({}, _FEW | dict.fromkeys(manners.more_hyperparameters, anything)),
        "suffix": nullable(text(1, manners.suffix_limit)),
        "validation_file": nullable(text(1)),
        "integrations": nullable(sequence(_INTEGRATION, longest=5)),
        "seed": nullable(integer(0, 2_147_483_647)),
        "method": _method(manners),
        "metadata": nullable(metadata(manners)),
    }
    taken = {name: known[name] for name in manners.job_words} | dict.fromkeys(manners.more_words, anything)
    shape = record({"model": text(1), "training_file": text(1)}, taken)

    def check(value: Any, path: str) -> None:
        shape(value, path)
        method = value.get("method")
        if method is None:
            return
        if "hyperparameters" in value:
            raise _invalid("hyperparameters", "`method` is given too, which holds its own")
        for other in set(METHODS) - {method["type"]}:
            if other in method:
                raise _invalid(f"method.{other}", f"the method's type is {method['type']}")
        if method["type"] == "reinforcement":
            record({"reinforcement": anything}, loose=True)(method, "method")
            record({"validation_file": text(1)}, loose=True)(value, "")

    return check


def upload_request(manners: Manners) -> Check:
    """The body that begins an upload in parts."""
    return record(
        {
            "filename": text(1),
            "purpose": one_of("assistants", "batch", "fine-tune", "vision"),
            "bytes": integer(1, manners.upload_limit),
            "mime_type": text(1),
        },
        {"expires_after": EXPIRY},
    )


COMPLETION_OF_UPLOAD = record({"part_ids": sequence(text(1), shortest=1)}, {"md5": text()})

# fmt: off
_CHAT_OPTIONS = (
    "temperature", "top_p", "n", "stop", "user", "store", "tools", "tool_choice", "parallel_tool_calls",
    "response_format", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs",
    "reasoning_effort", "service_tier", "verbosity", "metadata", "seed",
)
# fmt: on
CHAT_REQUEST = record(
    {"model": text(1), "messages": sequence(record({"role": text(1)}, loose=True), shortest=1)},
    {
        "max_tokens": nullable(integer(1)),
        "max_completion_tokens": nullable(integer(1)),
        "stream": nullable(boolean),
    }
    | dict.fromkeys(_CHAT_OPTIONS, anything),
)

_METADATA_FILTER = re.compile(r"metadata\[(.+)\]")


def paging(
    query: Mapping[str, str], default: int, most: int, also: Mapping[str, Check] | None = None
) -> dict[str, Any]:
    """A listing's `limit` and `after`, with `metadata[k]=v` gathered where `also` allows `metadata`.

    Raises `ApiError` where a parameter is unknown or out of its range.
    """
    page: dict[str, Any] = {}
    for key, value in query.items():
        pair = _METADATA_FILTER.fullmatch(key)
        if pair:
            page.setdefault("metadata", {})[pair[1]] = value
        elif key == "metadata" and value == "null":
            page["metadata"] = None
        elif key == "limit" and re.fullmatch(r"-?\d{1,9}", value):
            page["limit"] = int(value)
        else:
            page[key] = value
    record({}, {"limit": integer(1, most), "after": text(1), **(also or {})})(page, "")
    return {"limit": default, "after": None} | page
