"""What people read: the same sentences in mail, Slack and on the terminal."""

from __future__ import annotations

import json

from tunedrop.clock import seconds
from tunedrop.metrics import curve
from tunedrop.runs import WEIGHTS, Run, adapter_name, results_key

DELAYED = "delayed"
"""Notice of a job that has been in the service's queue for long."""

MODEL_FOUND = "model_found"
"""Notice of a job that turned out to have succeeded after its run had ended without it."""

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
_HEADLINES_OF_ADAPTERS = {
    "succeeded": "Your adapter is on Workers AI",
    "failed": "Your adapter could not be published",
    "cancelled": "The publication of your adapter was cancelled",
    "rejected": "Your adapter was rejected; nothing was created",
    "duplicate": "Nothing to do: this adapter is known",
    "superseded": "Nothing to do: the adapter was overwritten",
    "missing": "Nothing to do: the adapter is not all there",
    "timed_out": "The publication of your adapter took too long and was ended",
}
_NOTICES = {
    DELAYED: (
        "Your job is still in the queue",
        # A job that was paused is queued anew: only its age is known for certain.
        (
            "more than a day after it was created the job is queued at the fine-tuning service; the run waits on, and "
            "ends as it would have; whoever does not want to wait can cancel the job there"
        ),
    ),
    MODEL_FOUND: (
        "A model is ready after all",
        "the run had ended without it, but its job was found to have succeeded at the fine-tuning service",
    ),
}
_MAX_SUBJECT = 99  # of an e-mail from SNS, which takes ASCII without line breaks alone


def subject_of(run: Run, notice: str | None = None) -> str:
    """One line that says what became of the run, or what is to be noticed of it; ASCII, at most 99 characters."""
    name = (adapter_name(run.key) or run.key.rsplit("/", 1)[-1]).encode("ascii", "replace").decode()
    line = f"{_NOTICES[notice][0] if notice else _headline(run)}: {name}"
    return "".join(c if c.isprintable() else "?" for c in line)[:_MAX_SUBJECT]


def message_of(run: Run, notice: str | None = None) -> dict[str, str]:
    """What is published of the run, by protocol: its document, which names the notice, and text for mail."""
    document = run.document() | ({"notice": notice} if notice else {})
    return {"default": json.dumps(document), "email": text_of(run, notice)}


def text_of(run: Run, notice: str | None = None) -> str:
    """A few lines of plain text: what happened, what it is called, what it cost."""
    headline, why = _NOTICES[notice] if notice else (_headline(run), run.error.message if run.error else None)
    lines = [f"{headline}.", ""]
    facts = {
        "File": run.key,
        "Why": why,
        "Model": run.fine_tuned_model,
        "Next": run.next_step,
        "Base model": run.model,
        "Examples": _count(run.examples),
        "Trained tokens": _count(run.trained_tokens),
        "Training loss": curve(run.loss_curve) if run.loss_curve else None,
        "Estimated cost": _usd(run.estimated_cost_usd),
        "Time": _duration(run),
        "Job": run.job_id,
        "Finetune": run.finetune_id,
        "Trained by": f"run {run.source_run_id}" if run.source_run_id else None,
        "Results": results_key(run.run_id, "") if run.result_keys else None,
        "Adapter": next((key.removesuffix(WEIGHTS) for key in run.result_keys if key.endswith(WEIGHTS)), None),
        "Run": run.run_id,
    }
    lines += [f"{name + ':':16}{value}" for name, value in facts.items() if value is not None]
    return "\n".join(lines) + "\n"


def _headline(run: Run) -> str:
    headlines = _HEADLINES | _HEADLINES_OF_ADAPTERS if adapter_name(run.key) else _HEADLINES
    return headlines[run.state]


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
