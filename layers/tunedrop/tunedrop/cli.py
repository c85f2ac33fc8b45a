"""The command ``tunedrop``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tunedrop import for_people, prices
from tunedrop.dataset import DatasetCheck, Report
from tunedrop.dataset.check import MAX_LINE
from tunedrop.dataset.lines import BLOCK
from tunedrop.dataset.mend import Mender, Unmendable
from tunedrop.preflight import Wanted, preflight
from tunedrop.providers import PROFILES, InvalidProviders, ProviderProfile, read_profiles

VALID, REJECTED, USAGE = 0, 1, 2

_CHUNK = BLOCK  # so that nothing is cut once more
_SHOW_PROGRESS = 50_000_000  # bytes


class UsageError(Exception):
    """The command cannot be carried out as it was given; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; answers its exit code: 0 valid, 1 rejected, 2 usage."""
    options = _parser().parse_args(arguments)
    try:
        return max([_check_file(file, options) for file in options.files])
    except BrokenPipeError:  # the reader, such as head, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 (or the interpreter fails once more at its end)
        return VALID
    except (UsageError, OSError) as error:
        sys.stderr.write(f"tunedrop: {error}\n")
        return USAGE


def _help(prog: str) -> argparse.HelpFormatter:
    # Without a width it would load shutil and three compressors, help or no help, to ask for the terminal's.
    return argparse.HelpFormatter(prog, width=100)


def _parser() -> argparse.ArgumentParser:
    description = "Drop a dataset, get a fine-tuned model."
    parser = argparse.ArgumentParser(prog="tunedrop", description=description, formatter_class=_help)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="check datasets exactly as a run does", formatter_class=_help)
    check.add_argument("files", nargs="+", metavar="FILE", help="a JSONL file; - reads standard input")
    check.add_argument("--validation", type=Path, metavar="FILE", help="the validation file that belongs to FILE")
    check.add_argument("--job", type=Path, metavar="FILE", help="the job specification (NAME.job.json)")
    check.add_argument("--model", metavar="M", help="the model to train; wins over the job specification's")
    check.add_argument("--provider", metavar="P", help=f"one of {', '.join(sorted(PROFILES))}, or of --providers")
    check.add_argument(
        "--providers", type=Path, metavar="FILE", help="providers of your own, as the stack's parameter Providers"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object for each file")
    check.add_argument("--no-tokens", action="store_true", help="count no tokens, estimate no cost")
    check.add_argument("--no-scan", action="store_true", help="search for no sensitive content")
    check.add_argument("--jobs", type=_positive, default=1, metavar="N", help="threads that count tokens (1)")
    check.add_argument("--max-errors", type=_positive, default=100, metavar="N", help="findings that are listed (100)")
    check.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help="prices of your own, as JSON: price_date (a date) and usd_per_million_tokens (by model)",
    )
    check.add_argument("--fix", type=Path, metavar="OUT", help="write a copy with what can be mended mechanically")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it is a whole number from 1")
    return number


def _check_file(file: str, options: argparse.Namespace) -> int:
    if len(options.files) > 1 and (options.validation or options.fix):
        raise UsageError("--validation and --fix belong to one file; give one")
    if options.fix and file == "-":
        raise UsageError("--fix reads the file twice; give a file, not standard input")
    wanted = Wanted(
        today=datetime.now(UTC).date(),
        model=options.model,
        provider=options.provider,
        profiles=_profiles(options),
        own_prices=_own_prices(options.prices),
        count_tokens=not options.no_tokens,
        scan=not options.no_scan,
        sha256=False,
        threads=options.jobs,
        max_findings=options.max_errors,
    )
    specification = options.job.read_bytes() if options.job else None
    validation = _chunks(str(options.validation)) if options.validation else None
    found = preflight(_chunks(file), validation, specification, wanted)
    report, check = found.report, found.check
    if options.json:
        sys.stdout.write(report.to_json() + "\n")
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        sys.stdout.write(for_people.write(file, report, check.histogram(), colour=colour) + "\n")
    if options.fix:
        _mend(Path(file), options.fix, check, report)
    return VALID if report.valid else REJECTED


def _profiles(options: argparse.Namespace) -> Mapping[str, ProviderProfile]:
    try:
        profiles = read_profiles(options.providers.read_text() if options.providers else "")
    except (InvalidProviders, UnicodeDecodeError) as error:
        raise UsageError(f"{options.providers}: {error}") from None
    if options.provider and options.provider not in profiles:
        raise UsageError(f"no provider is called {options.provider}; there are {', '.join(sorted(profiles))}")
    return profiles


def _own_prices(file: Path | None) -> prices.PriceList | None:
    if file is None:
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=prices.PriceList)
    except msgspec.DecodeError as error:
        raise UsageError(f"{file}: {error}") from None


def _chunks(file: str) -> Iterator[bytes]:
    if file == "-":
        while chunk := sys.stdin.buffer.read(_CHUNK):
            yield chunk
        return
    path = Path(file)
    size = path.stat().st_size
    progress = size > _SHOW_PROGRESS and sys.stderr.isatty()
    done = 0
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk
            done += len(chunk)
            if progress:
                filled = 40 * done // size
                sys.stderr.write(f"\r{path.name} [{'#' * filled}{'.' * (40 - filled)}] {100 * done // size:3} %")
    if progress:
        sys.stderr.write("\r\033[K")


def _mend(source: Path, target: Path, check: DatasetCheck, report: Report) -> None:
    if report.errors and report.errors[0].code == "compressed":
        raise UsageError("--fix cannot mend a compressed file; nothing was written")
    if target.exists() and target.samefile(source):
        raise UsageError("--fix writes another file than it reads; name another")
    repeats = {line for line, _ in check.fingerprints.repeats()}
    mender = Mender(repeats, completions=report.format == "completion", max_line=MAX_LINE)
    try:
        with target.open("wb") as stream:
            stream.writelines(mender.mend(_chunks(str(source))))
    except Unmendable as error:
        target.unlink()
        raise UsageError(f"--fix cannot mend this file: {error}; nothing was written") from None
    mended = ", ".join(f"{count:,} x {kind}" for kind, count in mender.mended.items() if count)
    sys.stderr.write(f"wrote {target}; mended: {mended or 'nothing'}\n")


if __name__ == "__main__":
    sys.exit(main())
