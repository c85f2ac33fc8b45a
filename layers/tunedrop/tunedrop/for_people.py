"""A report as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tunedrop.dataset.report import Finding, Report

_BARS = "▁▂▃▄▅▆▇█"
_RED, _YELLOW, _GREEN, _PLAIN = "\033[31m", "\033[33m", "\033[32m", "\033[0m"


def write(name: str, report: Report, histogram: Mapping[int, int], *, colour: bool) -> str:
    """The report on the file ``name``: figures, a histogram of tokens, cost, and the findings grouped by code."""
    verdict = "valid" if report.valid else "rejected"
    lines = [f"{name}: {_painted(verdict, _GREEN if report.valid else _RED, colour)}"]
    rows = [
        ("format", report.format or "unknown"),
        ("examples", f"{report.examples:,}"),
        ("bytes", f"{report.bytes:,}"),
    ]
    if tokens := report.tokens:
        figures = (
            f"{tokens.total:,} ({tokens.encoding}); median {tokens.p50:,}, 95 % {tokens.p95:,}, most {tokens.max:,}"
        )
        rows += [("tokens", figures), ("", _histogram(histogram))]
        if tokens.over_limit:
            rows.append(("", f"{tokens.over_limit:,} examples are cut"))
    if estimate := report.estimate:
        price = "price unknown" if estimate.usd is None else f"{estimate.usd:,.2f} USD, prices of {estimate.price_date}"
        rows.append(("training", f"{estimate.epochs} epochs, {estimate.billable_tokens:,} billable tokens, {price}"))
    lines += [f"  {title:10}{value}" for title, value in rows]
    lines += _grouped("errors", report.errors, report.error_count, _RED, colour)
    lines += _grouped("warnings", report.warnings, report.warning_count, _YELLOW, colour)
    return "\n".join(lines)


def _grouped(title: str, findings: Sequence[Finding], count: int, paint: str, colour: bool) -> list[str]:
    """The findings by code: how many, and the first places of each with its message."""
    lines = [f"  {_painted(f'{count:,} {title}', paint, colour)}"] if count else []
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.code, []).append(finding)
    for code, group in groups.items():
        listed = f"{len(group):,}" if count == len(findings) else f"{len(group):,} of those listed"
        lines.append(f"    {code} ({listed})")
        lines += [f"      {_place(finding)}: {finding.message}" for finding in group[:3]]
        if len(group) > 3:
            more = [str(finding.line) for finding in group[3:13] if finding.line]
            lines.append(f"      … also lines {', '.join(more)}{' …' if len(group) > 13 else ''}")
    return lines


def _place(finding: Finding) -> str:
    place = finding.file if finding.line is None else f"{finding.file} line {finding.line}"
    return f"{place}, {finding.path}" if finding.path else place


def _histogram(counts: Mapping[int, int], width: int = 40) -> str:
    """How many examples have how many tokens, from the fewest to the most, in characters."""
    least, most = min(counts), max(counts)
    columns = [0] * min(width, most - least + 1)
    for tokens, examples in counts.items():
        columns[(tokens - least) * len(columns) // (most - least + 1)] += examples
    peak = max(columns)
    bars = "".join(_BARS[-(-column * len(_BARS) // peak) - 1] if column else " " for column in columns)
    return f"{least:,} {bars} {most:,}"


def _painted(text: str, paint: str, colour: bool) -> str:
    return f"{paint}{text}{_PLAIN}" if colour else text
