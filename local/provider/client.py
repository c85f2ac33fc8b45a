"""The emulated service as a child process."""

import json
import subprocess
import sys
from functools import cached_property
from typing import Self


class ProviderProcess:
    """Runs `python -m local.provider`; its addresses are known once it listens, which the first question waits for."""

    def __init__(
        self,
        port: int,
        api_key: str,
        time_scale: float,
        clock_start: float,
        callback: tuple[str, str] | None = None,
        manners: str = "openai",
    ) -> None:
        """Starts it.

        `callback` is the address that is told of the end of jobs, and the secret that signs what it is told; `manners`
        names the service that it is like.
        """
        command = [
            sys.executable,
            "-m",
            "local.provider",
            "--port",
            str(port),
            "--api-key",
            api_key,
            "--manners",
            manners,
        ]
        command += ["--time-scale", repr(time_scale), "--clock-start", repr(clock_start)]
        if callback:
            command += ["--callback-url", callback[0], "--callback-secret", callback[1]]
        command += ["--until-stdin-closes"]  # which it does however this process ends
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)  # noqa: S603 - our own

    @cached_property
    def _addresses(self) -> dict[str, str]:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        line = self._process.stdout.readline()
        if not line:
            raise ChildProcessError(f"the emulated provider did not start (exit status {self._process.wait()})")
        return dict(json.loads(line))

    @property
    def url(self) -> str:
        """The base URL of its API."""
        return self._addresses["url"]

    @property
    def control(self) -> str:
        """The base URL of what scripts its faults and tells what it was asked."""
        return self._addresses["control"]

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
