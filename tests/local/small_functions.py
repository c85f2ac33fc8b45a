"""Throw-away Lambda functions for the tests of the emulation."""

import textwrap
from pathlib import Path

from local.functions import Function, Lambda

REGION, ACCOUNT = "eu-west-1", "123456789012"


def write_function(folder: Path, source: str, *, name: str = "probe", **settings) -> Function:
    """A function whose module `handler` is `source`, in a folder of its own."""
    code = folder / f"{name}-code"
    code.mkdir()
    (code / "handler.py").write_text(textwrap.dedent(source))
    arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{name}"
    return Function(name=name, arn=arn, handler="handler.handler", code=code, **settings)


def emulate(folder: Path, *functions: Function, **settings) -> Lambda:
    """The emulation of Lambda with these functions; logs in `folder/logs`."""
    settings = {"aws_endpoint": "http://127.0.0.1:9", "region": REGION, "account": ACCOUNT} | settings
    return Lambda(functions, logs=folder / "logs", **settings)
