"""The embedded stack on the command line: `python -m local up | drop | demo`."""

import argparse
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

from tunedrop.errors import Transient
from urllib3.exceptions import HTTPError

from local.deploy import ROOT, InvalidParameter
from local.drop import NotAccepted, drop, printer, summary
from local.stack import Address, Options, Stack, answers, running

LOOK_SECONDS = 0.2
EXAMPLE = ROOT / "events/examples/orchard.jsonl"


def main() -> int:
    """Runs a command.

    0: done, and a dropped file's run succeeded; 1: it did not; 2: the command cannot be carried out; 130: interrupted.
    """
    options = _parser().parse_args()
    # moto logs what a state machine's Catch and Choice deal with as errors of its own.
    logging.getLogger("moto").setLevel(logging.CRITICAL)
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, _end)
    try:
        return int(options.command(options))
    except (InvalidParameter, NotAccepted, OSError, OverflowError, Transient, HTTPError) as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def up(options: argparse.Namespace) -> int:
    """Starts a stack, says where everything is, and runs until it is interrupted."""
    with Stack(_stack_options(options)) as stack:
        if options.json:
            print(stack.address.to_json(), flush=True)
        else:
            _describe(stack.address)
        while True:
            # Not for ever at once: a signal that the system hands to another thread is noticed only between two waits.
            time.sleep(LOOK_SECONDS)


def drop_file(options: argparse.Namespace) -> int:
    """Drops a file into a running stack."""
    if options.stack:
        try:
            address = Address(**json.loads(Path(options.stack).read_text()))
        except (ValueError, TypeError):
            print(f"{options.stack} is not the stack.json of a stack", file=sys.stderr)
            return 2
        if not answers(address):
            print(f"the stack of {options.stack} has ended", file=sys.stderr)
            return 2
    else:
        found = running()
        if found is None:
            print("no stack is running: start one with `python -m local up`", file=sys.stderr)
            return 2
        address = found
    return _drop(address, options)


def demo(options: argparse.Namespace) -> int:
    """Starts a stack, drops a file into it, and ends it."""
    say = printer(as_json=options.json)
    say("starting the embedded stack: AWS, R2 and the fine-tuning service are emulated, the rest is the real thing")
    with Stack(_stack_options(options)) as stack:
        say(f"up        {stack.address.time_scale:g} s pass in one; logs in {os.path.relpath(stack.address.logs)}")
        return _drop(stack.address, options)


def _drop(address: Address, options: argparse.Namespace) -> int:
    run = drop(address, options.file, options.key, printer(as_json=options.json))
    print(json.dumps(run.document()) if options.json else summary(run))
    return 0 if run.state == "succeeded" else 1


def _describe(address: Address) -> None:
    bucket = f"{address.s3}/{address.bucket}"
    print(
        f"""The embedded stack is up; Ctrl-C ends it. {address.time_scale:g} s pass in one.

  drop a file       {os.path.relpath(sys.executable)} -m local drop FILE
  bucket (S3)       {bucket}
    access key      {address.access_key_id}
    secret key      {address.secret_access_key}
  webhook           {address.webhook}
    secret          {address.webhook_secret}
  provider          {address.provider}
    key             {address.provider_key}
  AWS endpoint      {address.aws}
  logs              {os.path.relpath(address.logs)}
""",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="up | drop | demo")

    stack = argparse.ArgumentParser(add_help=False)
    stack.add_argument("--port", type=int, default=0, metavar="N", help="first of five ports; left out, any free ones")
    stack.add_argument("--provider-url", metavar="URL", help="a fine-tuning service to use instead of the emulated one")
    stack.add_argument("--provider-key", metavar="K", help='its API key, or JSON: {"NAME": "KEY", ...}')
    stack.add_argument(
        "--set",
        action="append",
        default=[],
        type=_setting,
        metavar="PARAMETER=VALUE",
        help="a parameter of template.yaml",
    )
    stack.add_argument(
        "--time-scale", type=_scale, metavar="X", help="seconds that pass in one; 60, or 1 with --provider-url"
    )

    dropping = argparse.ArgumentParser(add_help=False)
    dropping.add_argument("--key", metavar="K", help="key in the bucket; left out, the file's name")

    json_ = argparse.ArgumentParser(add_help=False)
    json_.add_argument("--json", action="store_true", help="one line of JSON instead of text")

    command = commands.add_parser("up", parents=[stack, json_], help="start the stack and leave it running")
    command.set_defaults(command=up)
    command = commands.add_parser("drop", parents=[dropping, json_], help="drop a file into a running stack")
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument(
        "--stack", metavar="FILE", help="the stack.json of one stack of several; left out, the youngest"
    )
    command.set_defaults(command=drop_file)
    command = commands.add_parser(
        "demo", parents=[stack, dropping, json_], help="start a stack and drop a file into it"
    )
    command.add_argument("file", type=Path, nargs="?", default=EXAMPLE, metavar="FILE")
    command.set_defaults(command=demo)
    return parser


def _stack_options(options: argparse.Namespace) -> Options:
    return Options(
        port=options.port,
        provider_url=options.provider_url,
        provider_key=options.provider_key,
        parameters=dict(options.set),
        time_scale=options.time_scale,
    )


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} does not read PARAMETER=VALUE")
    return name, value


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = 0.0
    if not 0 < scale < float("inf"):
        raise argparse.ArgumentTypeError("a number greater than 0 is expected")
    return scale


def _end(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
