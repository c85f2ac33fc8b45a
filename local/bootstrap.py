"""What a worker process runs: Lambda's own bootstrap, around the real runtime client.

Started by `local.functions` as `python -S -P -B bootstrap.py HANDLER`. It imports as little as it can: what it
imports, the function's cold start pays for.
"""

import _thread
import os
import signal
import sys

CLOCK_START = "_TUNEDROP_CLOCK_START"
CLOCK_SCALE = "_TUNEDROP_CLOCK_SCALE"


def die_with_the_emulation() -> None:
    """Kill this worker, and what it started, once the other end of standard input closes.

    The emulation never writes there; the pipe closes when it ends, even by SIGKILL. The kernel's own signal for this
    (`PR_SET_PDEATHSIG`) watches the *thread* that started the process, and those come and go with each request.
    """
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    _thread.start_new_thread(watch, ())


def scale_the_clock() -> None:
    """Let the code layer's business clock run faster, by as much as the interpreter's waits are shortened.

    A wait of an hour that takes a second must count as an hour against a deadline too. Only `tunedrop.clock.now` is
    scaled: signatures, time-outs of requests and the time that Lambda leaves a function stay in real seconds.
    """
    start, scale = os.environ.pop(CLOCK_START, None), os.environ.pop(CLOCK_SCALE, None)
    if start is None or scale is None:
        return
    origin, factor = float(start), float(scale)
    try:
        import tunedrop.clock
    except ModuleNotFoundError as missing:
        if missing.name not in ("tunedrop", "tunedrop.clock"):
            raise
        return
    import time

    tunedrop.clock.now = lambda: origin + (time.time() - origin) * factor


if __name__ == "__main__":
    die_with_the_emulation()
    scale_the_clock()
    from awslambdaric.__main__ import main

    main(sys.argv)
