"""One fine-tuning job: a small machine that moves at stated moments of the simulated clock."""

import math
import re
import secrets
import string
from dataclasses import dataclass, field
from typing import Any

from local.provider import training
from local.provider.manners import Manners
from local.provider.shapes import ApiError

FINAL = ("succeeded", "failed", "cancelled")
_MOST_REPORTS = 200
_ALPHABET = string.ascii_letters + string.digits


def new_id(prefix: str, length: int = 24) -> str:
    """Return an id such as the service gives."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


@dataclass
class Plan:
    """What a test has decided about a job's fate. Times are simulated seconds."""

    outcome: str = "succeeded"
    error: dict[str, Any] | None = None
    after_seconds: float | None = None
    """After the creation; left out, half-way through the training."""
    duration_seconds: float | None = None
    """Length of the training."""


@dataclass
class Job:
    """A job, its events and checkpoints. `due` is the moment of its next move, none while nothing is to come."""

    id: str
    request: dict[str, Any]
    model: str
    created_at: float
    listed_from: float
    plan: Plan
    idempotency_key: str | None
    seed: int
    status: str = "validating_files"
    due: float | None = None
    surveys: list[training.Survey] = field(default_factory=list)
    """Of the training file and, where given, the validation file; empty until they have been read."""
    stuck: bool = False
    error: dict[str, Any] | None = None
    finished_at: float | None = None
    estimated_finish: float | None = None
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    result_files: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    _name: str = ""
    _reports: int = 0
    _seconds_per_report: float = 0
    _total_steps: int = 0
    _plan_at: float | None = None

    def __post_init__(self) -> None:
        self.hyperparameters = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}
        self.hyperparameters |= self._method_settings().get("hyperparameters", {})
        if self.plan.outcome != "succeeded" and self.plan.after_seconds is not None:
            self._plan_at = self.created_at + self.plan.after_seconds
        self.log(self.created_at, f"Created fine-tuning job: {self.id}")
        self.log(self.created_at, "This service is an emulation: nothing will be trained")
        self.log(self.created_at, f"Validating training file: {self.request['training_file']}")

    @property
    def method(self) -> str:
        """`supervised`, `dpo` or `reinforcement`."""
        return self.request.get("method", {}).get("type", "supervised")

    def _method_settings(self) -> dict[str, Any]:
        settings = self.request.get("method", {}).get(self.method, {})
        return settings or {key: self.request[key] for key in ("hyperparameters",) if key in self.request}

    def view(self, manners: Manners) -> dict[str, Any]:
        """Return the `fine_tuning.job` object."""
        whole = {"finished_at": self.finished_at, "estimated_finish": self.estimated_finish}
        view = {
            "object": "fine_tuning.job",
            "id": self.id,
            "model": self.model,
            "created_at": int(self.created_at),
            **{key: value if value is None else int(value) for key, value in whole.items()},
            "fine_tuned_model": self.fine_tuned_model,
            "organization_id": manners.organization,
            "result_files": self.result_files,
            "status": manners.statuses.get(self.status, self.status),
            "training_file": self.request["training_file"],
            "validation_file": self.request.get("validation_file"),
            "hyperparameters": self.hyperparameters if self.method == "supervised" else {},
            "trained_tokens": self.trained_tokens,
            "error": self.error,
            "user_provided_suffix": self.request.get("suffix"),
            "seed": self.seed,
            "integrations": self.request.get("integrations") or [],
            "metadata": self.request.get("metadata"),
            "method": {
                "type": self.method,
                self.method: self._method_settings() | {"hyperparameters": self.hyperparameters},
            },
        }
        words = {"user_provided_suffix": "suffix"} | {
            name: name for name in ("seed", "integrations", "metadata", "method")
        }
        missing = {name for name, word in words.items() if word not in manners.job_words}
        return {name: value for name, value in view.items() if name not in missing}

    def surveyed(self, surveys: list[training.Survey], at: float, manners: Manners) -> None:
        """Take what its files hold; unless something else has become of the job, it is validated in due time."""
        self.surveys = surveys
        if self.status == "validating_files" and not self.stuck:
            self.due = max(self.created_at + manners.validating_seconds, at)

    def log(self, at: float, message: str, *, level: str = "info", data: dict[str, Any] | None = None) -> None:
        """Add an event; one with data is a metrics event."""
        event = {
            "object": "fine_tuning.job.event",
            "id": new_id("ftevent-"),
            "created_at": int(at),
            "level": level,
            "message": message,
            "data": data,
            "type": "metrics" if data else "message",
        }
        self.events.append(event)

    def next_move(self) -> float | None:
        """Return the simulated moment of the next `move`, or nothing."""
        # What has not been validated cannot be paused: such a plan waits.
        planned = None if self.plan.outcome == "paused" and self.status == "validating_files" else self._plan_at
        return min((moment for moment in (self.due, planned) if moment is not None), default=None)

    def move(self, at: float, manners: Manners) -> None:
        """Do what is due; `at` is `next_move`'s moment, however late it has become."""
        if at == self._plan_at:
            self._plan_at = None
            self._follow_plan(at)
        elif self.status == "validating_files":
            self._validated(at, manners)
        elif self.status == "queued":
            self._start(at, manners)
        else:
            self._report(at)

    def cancel(self, at: float) -> None:
        """End it; raise `ApiError` if it has ended already."""
        self._refuse_unless("validating_files", "queued", "running", "paused", verb="cancelled")
        self._end("cancelled", at, "Fine-tuning job cancelled")

    def pause(self, at: float) -> None:
        """Hold it; raise `ApiError` unless it is queued or running."""
        self._refuse_unless("queued", "running", verb="paused")
        self.status, self.due, self.estimated_finish = "paused", None, None
        self.log(at, "Fine-tuning job paused")

    def resume(self, at: float, manners: Manners) -> None:
        """Queue it again; the steps made are kept. Raise `ApiError` unless it is paused."""
        self._refuse_unless("paused", verb="resumed")
        self.status, self.due = "queued", at + manners.queued_seconds
        self.log(at, "Fine-tuning job resumed")

    def _refuse_unless(self, *statuses: str, verb: str) -> None:
        if self.status in FINAL:
            raise ApiError(400, f"Job has already completed: {self.id}", param="fine_tuning_job_id")
        if self.status not in statuses:
            raise ApiError(400, f"A job that is {self.status} cannot be {verb}.", param="fine_tuning_job_id")

    def _end(self, status: str, at: float, message: str, level: str = "info") -> None:
        self.status, self.finished_at = status, at
        self.due = self.estimated_finish = self._plan_at = None
        self.log(at, message, level=level)

    def _fail(self, at: float, error: dict[str, Any]) -> None:
        self.error = error
        self._end("failed", at, f"The job failed: {error['message']}", "error")

    def _follow_plan(self, at: float) -> None:
        if self.plan.outcome == "failed":
            fallback = {"code": "server_error", "message": "The training failed, as was planned for it.", "param": None}
            self._fail(at, fallback | (self.plan.error or {}))
        elif self.plan.outcome == "cancelled":
            self.cancel(at)
        elif self.plan.outcome == "stuck":
            self.due, self.stuck = None, True
        elif self.status != "paused":
            self.pause(at)

    def _validated(self, at: float, manners: Manners) -> None:
        for data, param in zip(self.surveys, ("training_file", "validation_file"), strict=False):
            fewest = manners.minimum_by_method.get(self.method, manners.minimum_examples)
            least = fewest if param == "training_file" else 1
            if data.problem:
                message = f"The {param.replace('_', ' ')} is not valid: {data.problem}."
                return self._fail(at, {"code": "invalid_file_format", "message": message, "param": param})
            if data.examples < least:
                message = f"The {param.replace('_', ' ')} holds {data.examples} examples; at least {least} are needed."
                return self._fail(at, {"code": "invalid_n_examples", "message": message, "param": param})
        self._resolve(self.surveys[0])
        self.status, self.due = "queued", at + manners.queued_seconds
        return self.log(at, "Files validated, moving job to queued state")

    def _resolve(self, data: training.Survey) -> None:
        chosen = {
            "n_epochs": training.epochs_for(data.examples),
            "batch_size": max(1, min(256, data.examples // 500)),
            "learning_rate_multiplier": 1.8,
        }
        for key, value in chosen.items():
            if self.hyperparameters[key] == "auto":
                self.hyperparameters[key] = value

    def _start(self, at: float, manners: Manners) -> None:
        if not self._name:
            data, epochs = self.surveys[0], self.hyperparameters["n_epochs"]
            suffix = re.sub(r"[^a-z0-9-]", "-", (self.request.get("suffix") or "").lower())
            base = self.model.split(":")[1] if self.model.startswith("ft:") else self.model
            self._name = new_id(f"ft:{base}:{manners.name_part}:{suffix}:", 8)
            self._total_steps = math.ceil(data.examples / self.hyperparameters["batch_size"]) * epochs
            self._reports = min(_MOST_REPORTS, self._total_steps)
            seconds = self.plan.duration_seconds
            if seconds is None:
                seconds = training.training_seconds(data.tokens * epochs)
            self._seconds_per_report = seconds / self._reports
            if self.plan.outcome != "succeeded" and self.plan.after_seconds is None:
                self._plan_at = at + seconds / 2
        self.status = "running"
        self.due = at + self._seconds_per_report
        self.estimated_finish = at + self._seconds_per_report * (self._reports - len(self.curve))
        self.log(at, "Fine-tuning job started")

    def _report(self, at: float) -> None:
        done = len(self.curve) + 1
        step = math.ceil(self._total_steps * done / self._reports)
        row = self._metrics(step)
        self.curve.append(row)
        loss = f"Step {step}/{self._total_steps}: training loss={row['train_loss']}"
        self.log(at, loss, data=row | {"total_steps": self._total_steps})
        # The last three epochs leave a checkpoint each; with fewer epochs, the last three parts of the training do.
        parts = max(3, self.hyperparameters["n_epochs"])
        if done in {math.ceil(self._reports * part / parts) for part in (parts - 2, parts - 1, parts)}:
            self._checkpoint(at, step, row, last=done == self._reports)
        self.due = at + self._seconds_per_report
        if done == self._reports:
            tokens = self.surveys[0].tokens
            self.fine_tuned_model, self.trained_tokens = self._name, tokens * self.hyperparameters["n_epochs"]
            self.log(at, f"New fine-tuned model created: {self._name}")
            self._end("succeeded", at, "The job has successfully completed")

    def _metrics(self, step: int) -> dict[str, Any]:
        row: dict[str, Any] = {"step": step}
        for data, name in zip(self.surveys, ("train", "valid"), strict=False):
            row[f"{name}_loss"] = training.loss(data, self.seed, step, self._total_steps)
            row[f"{name}_mean_token_accuracy"] = training.accuracy(row[f"{name}_loss"])
        return row

    def _checkpoint(self, at: float, step: int, row: dict[str, Any], *, last: bool) -> None:
        name = self._name if last else f"{self._name}:ckpt-step-{step}"
        whole = {f"full_{key}": value for key, value in row.items() if key.startswith("valid_")}
        checkpoint = {
            "object": "fine_tuning.job.checkpoint",
            "id": new_id("ftckpt_"),
            "created_at": int(at),
            "fine_tuned_model_checkpoint": name,
            "fine_tuning_job_id": self.id,
            "metrics": row | whole,
            "step_number": step,
        }
        self.checkpoints.append(checkpoint)
        self.log(at, f"Checkpoint created at step {step}")

    def results_csv(self) -> str:
        """Return the metrics of every reported step, as the result file holds them."""
        lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
        for row in self.curve:
            valid = f"{row.get('valid_loss', '')},{row.get('valid_mean_token_accuracy', '')}"
            lines.append(f"{row['step']},{row['train_loss']},{row['train_mean_token_accuracy']},{valid}")
        return "\n".join(lines) + "\n"
