"""`python -m local.provider`: the emulated fine-tuning service as a process of its own."""

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from werkzeug.serving import WSGIRequestHandler, make_server

from local.provider.app import Service
from local.provider.callbacks import Callbacks
from local.provider.clock import Clock
from local.provider.manners import MANNERS
from local.provider.state import State

HOST = "127.0.0.1"


class _QuietHandler(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing: the ledger remembers every request."""


def main() -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m local.provider", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0, the default: any free one")
    parser.add_argument("--api-key", required=True, help="the one key that is accepted")
    parser.add_argument("--manners", choices=MANNERS, default="openai", help="the service that is emulated (openai)")
    parser.add_argument("--time-scale", type=_scale, default=1.0, help="simulated seconds per real second")
    parser.add_argument("--clock-start", type=float, help="epoch second from which on time is scaled; left out, now")
    parser.add_argument("--callback-url", help="where to announce that a job has ended")
    parser.add_argument("--callback-secret", help="whsec_…, what the announcements are signed with")
    parser.add_argument("--data", type=Path, help="folder for the files; left out, a temporary one")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end once nobody holds its other end")
    options = parser.parse_args()
    try:
        callbacks = Callbacks(options.callback_url, options.callback_secret)
    except ValueError as error:
        parser.error(f"--callback-secret: {error}")

    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, signal.default_int_handler)
    if options.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt), _folder(options.data) as data:
        manners = MANNERS[options.manners]
        state = State(Clock(options.time_scale, options.clock_start), data, manners, callbacks.announce)
        service = Service(state, callbacks, options.api_key)
        server = make_server(HOST, options.port, service, threaded=True, request_handler=_QuietHandler)
        address = f"http://{HOST}:{server.server_port}"
        print(json.dumps({"url": address + manners.base_path, "control": f"{address}/_emulator"}), flush=True)
        server.serve_forever()
    return 0


def _end_with_stdin() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)


def _scale(value: str) -> float:
    scale = float(value)
    if not 0 < scale < float("inf"):
        raise argparse.ArgumentTypeError("a number greater than 0 is expected")
    return scale


@contextlib.contextmanager
def _folder(chosen: Path | None) -> Iterator[Path]:
    if chosen:
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    # Requests that are under way may still write: what they leave is not worth an error.
    with tempfile.TemporaryDirectory(prefix="tunedrop-provider-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
