"""The command ``tunedrop``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from tunedrop import for_people, job_request, prices
from tunedrop.dataset import DatasetCheck, Finding, Report, combine
from tunedrop.dataset.check import MAX_LINE
from tunedrop.dataset.mend import Mender
from tunedrop.job_specification import JobSpecification, parse
from tunedrop.providers import PROFILES, InvalidProviders, ProviderProfile, read_profiles
from tunedrop.tokens import Tokenizer

VALID, REJECTED, USAGE = 0, 1, 2

_CHUNK = 1 << 20
_SHOW_PROGRESS = 50_000_000  # bytes


class UsageError(Exception):
    """The command cannot be carried out as it was given; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; answers its exit code: 0 valid, 1 rejected, 2 usage."""
    options = _parser().parse_args(arguments)
    try:
        return max([_check_file(file, options) for file in options.files])
    except (UsageError, OSError) as error:
        sys.stderr.write(f"tunedrop: {error}\n")
        return USAGE
    except BrokenPipeError:
        return VALID


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tunedrop", description="Drop a dataset, get a fine-tuned model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="check datasets exactly as a run does")
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
    profiles = _profiles(options)
    specification, errors = _specification(options, profiles)
    provider = options.provider or specification.provider
    profile = profiles[provider or "openai"]
    name = options.model or specification.model
    model = prices.look_up(name, _own_prices(options.prices)) if name else prices.TrainingModel(name="")
    job_errors, job_warnings = _judge_model(model, profile.like if provider else None)
    unmet = job_request.unmet(specification, profile) if provider else ()
    job_errors += [Finding("job", None, wish.code, wish.path, wish.message) for wish in unmet]
    check = DatasetCheck(
        method=specification.method_name,
        profile=profile.data,
        tokens=None if options.no_tokens else Tokenizer(model.encoding, options.jobs),
        model=model,
        epochs=specification.epochs,
        scan=not options.no_scan,
        refuse_sensitive=specification.refuse_sensitive,
        max_findings=options.max_errors,
    )
    for chunk in _chunks(file):
        check.feed(chunk)
    validation = None
    if options.validation:
        validation = check.for_validation()
        for chunk in _chunks(str(options.validation)):
            validation.feed(chunk)
    if message := prices.over_budget(check.finish().estimate, specification.max_cost_usd):
        job_errors.append(Finding("job", None, "over_budget", "max_cost_usd", message))
    report = combine(check, validation, [*errors, *job_errors], job_warnings)
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


def _specification(
    options: argparse.Namespace, profiles: Mapping[str, ProviderProfile]
) -> tuple[JobSpecification, tuple[Finding, ...]]:
    """The job specification, an empty one where there is none or it is invalid, and what is wrong with it."""
    if options.job is None:
        return JobSpecification(), ()
    parsed = parse(options.job.read_bytes(), None if options.provider else profiles)
    return (parsed, ()) if isinstance(parsed, JobSpecification) else (JobSpecification(), parsed)


def _own_prices(file: Path | None) -> prices.PriceList | None:
    if file is None:
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=prices.PriceList)
    except msgspec.DecodeError as error:
        raise UsageError(f"{file}: {error}") from None


def _judge_model(model: prices.TrainingModel, provider: str | None) -> tuple[list[Finding], list[Finding]]:
    """Errors and warnings about the model's end; only a provider that was named is certain to have ended it."""
    end = model.end(provider or "openai", datetime.now(UTC).date())
    if end is None:
        return [], []
    ended, message = end
    if ended and provider:
        return [Finding("job", None, "model_shut_down", "model", message)], []
    return [], [Finding("job", None, "model_shut_down" if ended else "model_near_shutdown", "model", message)]


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
    if beyond := {finding.code for finding in report.errors} & {"compressed", "line_too_long", "not_utf8"}:
        raise UsageError(f"--fix cannot mend {', '.join(sorted(beyond))}; nothing was written")
    if target.exists() and target.samefile(source):
        raise UsageError("--fix writes another file than it reads; name another")
    repeats = {line for line, _ in check.fingerprints.repeats()}
    mender = Mender(repeats, completions=report.format == "completion", max_line=MAX_LINE)
    with target.open("wb") as stream:
        stream.writelines(mender.mend(_chunks(str(source))))
    mended = ", ".join(f"{count:,} × {kind}" for kind, count in mender.mended.items() if count)
    sys.stderr.write(f"wrote {target}; mended: {mended or 'nothing'}\n")


if __name__ == "__main__":
    sys.exit(main())
