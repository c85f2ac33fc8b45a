"""What comes from npm: packages pinned in tests/package-lock.json, for the tests and for `--cloudflare workerd`.

They are with the tests, and not with the Worker that they run, because the Worker has no dependencies.
"""

import fcntl
import shutil
import subprocess
import sys

from local.deploy import ROOT

FOLDER = ROOT / "tests"
LOCK = FOLDER / "package-lock.json"
PACKAGES = FOLDER / "node_modules"
INSTALLED = PACKAGES / ".package-lock.json"


class NoNode(OSError):
    """This machine has no Node.js with npm."""


def node() -> str:
    """The program `node`, once the packages are installed as the lock file has them; raises `NoNode`."""
    program, npm = shutil.which("node"), shutil.which("npm")
    if not (program and npm):
        raise NoNode("this needs Node.js 20 or newer with npm, which this machine has not")
    with LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run in two processes, and one of them is to install
        if not INSTALLED.exists() or INSTALLED.stat().st_mtime < LOCK.stat().st_mtime:
            options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel", "error")
            subprocess.run([npm, "ci", "--prefix", FOLDER, *options], check=True, stdout=sys.stderr)  # noqa: S603 - what is pinned
    return program
