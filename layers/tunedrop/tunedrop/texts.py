"""What people read: the same sentences in mail, Slack and on the terminal."""

from __future__ import annotations

from tunedrop.clock import seconds
from tunedrop.metrics import curve
from tunedrop.runs import Run

_HEADLINES = {
    "succeeded": "Your model is ready",
    "failed": "Your run failed",
    "cancelled": "Your run was cancelled",
    "rejected": "Your dataset was rejected; nothing was paid",
    "duplicate": "Nothing to do: this dataset is known",
    "superseded": "Nothing to do: the file was overwritten",
    "missing": "Nothing to do: the file is gone",
    "over_budget": "Your run would cost more than it may; nothing was paid",
    "timed_out": "Your run took too long and was ended",
}
_MAX_SUBJECT = 100  # of an e-mail from SNS, which takes ASCII without line breaks alone


def subject_of(run: Run) -> str:
    """One line that says what became of the run; ASCII, at most 100 characters."""
    name = run.key.rsplit("/", 1)[-1].encode("ascii", "replace").decode()
    line = f"{_HEADLINES[run.state]}: {name}"
    return "".join(c if c.isprintable() else "?" for c in line)[:_MAX_SUBJECT]


def text_of(run: Run) -> str:
    """A few lines of plain text: what happened, what it is called, what it cost."""
    lines = [f"{_HEADLINES[run.state]}.", ""]
    facts = {
        "File": run.key,
        "Why": run.error.message if run.error else None,
        "Model": run.fine_tuned_model,
        "Next": run.next_step,
        "Base model": run.model,
        "Examples": _count(run.examples),
        "Trained tokens": _count(run.trained_tokens),
        "Training loss": curve(run.loss_curve) if run.loss_curve else None,
        "Estimated cost": _usd(run.estimated_cost_usd),
        "Time": _duration(run),
        "Job": run.job_id,
        "Results": f"results/{run.run_id}/" if run.result_keys else None,
        "Run": run.run_id,
    }
    lines += [f"{name + ':':16}{value}" for name, value in facts.items() if value is not None]
    return "\n".join(lines) + "\n"


def _count(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"


def _usd(amount: float | None) -> str | None:
    return None if amount is None else f"{amount:,.2f} USD"


def _duration(run: Run) -> str | None:
    if run.finished_at is None:
        return None
    minutes, rest = divmod(round(seconds(run.finished_at) - seconds(run.created_at)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
