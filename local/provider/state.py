"""Everything the service remembers, under one lock."""

import base64
import secrets
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from local.provider import training
from local.provider.clock import Clock
from local.provider.files import Incoming, StoredFile, Upload, join
from local.provider.jobs import FINAL, Job, Plan, new_id
from local.provider.manners import MIB, Manners
from local.provider.rates import Rates
from local.provider.shapes import ApiError

_LEAST_REAL_WAIT = 0.01
_MODELS_CREATED = 1_735_689_600


class State:
    """Files, uploads, jobs and models.

    Jobs move when their moment comes: a thread sees to it, and every call looks first, so that no answer is stale.
    `announce` is called with an event's type, the job's id and the time, under the lock: it must not wait.
    """

    def __init__(self, clock: Clock, data: Path, manners: Manners, announce: Callable[[str, str, float], None]) -> None:
        self.clock = clock
        self.manners = manners
        self._data = data
        self._announce = announce
        self._changed = threading.Condition(threading.RLock())
        self._files: dict[str, StoredFile] = {}
        self._uploads: dict[str, Upload] = {}
        self._jobs: dict[str, Job] = {}
        self._tuned: dict[str, float] = {}
        self._plans: list[Plan] = []
        self._received: list[StoredFile] = []
        self._rates = Rates()
        threading.Thread(target=self._keep_time, name="clock", daemon=True).start()

    # Files

    def incoming(self, filename: str | None = None) -> Incoming:
        """Return a new file on disk to write into."""
        return Incoming(self._data / new_id("", 22), filename)

    def create_file(
        self, content: Incoming, purpose: str, expires_after: dict[str, Any] | None = None, *, lag: float = 0
    ) -> dict[str, Any]:
        """Keep what was received; listings show it `lag` simulated seconds later."""
        with self._changed:
            self._rates.count("files", self.manners.files_per_hour, self.clock.now())
            file = self._keep(content, content.filename or "file", purpose, expires_after, lag)
            return file.view(self.clock.now(), self.manners.unprocessed)

    def _keep(
        self, content: Incoming, filename: str, purpose: str, expires_after: dict[str, Any] | None, lag: float
    ) -> StoredFile:
        content.close()
        now = self.clock.now()
        file = StoredFile(
            id=new_id("file-", 22),
            filename=filename,
            purpose=purpose,
            bytes=content.bytes,
            sha256=content.sha256,
            path=content.path,
            created_at=now,
            processed_at=now + self.manners.processing_seconds,
            listed_from=now + lag,
            expires_at=now + expires_after["seconds"] if expires_after else None,
        )
        self._files[file.id] = file
        self._received.append(file)
        return file

    def file(self, file_id: str) -> dict[str, Any]:
        """Return the `file` object; raise `ApiError` where there is none."""
        with self._changed:
            return self._file(file_id).view(self.clock.now(), self.manners.unprocessed)

    def file_content(self, file_id: str) -> tuple[Path, str]:
        """Return where the bytes are and the file's name."""
        with self._changed:
            file = self._file(file_id)
            return file.path, file.filename

    def list_files(self, page: dict[str, Any]) -> dict[str, Any]:
        """Return one page."""
        with self._changed:
            self._advance()
            now = self.clock.now()
            files = [file for file in self._files.values() if file.listed_from <= now and not file.expired(now)]
            if "purpose" in page:
                files = [file for file in files if file.purpose == page["purpose"]]
            if page.get("order", "desc") == "desc":
                files.reverse()
            return _page([file.view(now, self.manners.unprocessed) for file in files], page, ends=True)

    def delete_file(self, file_id: str) -> dict[str, Any]:
        """Remove a file and its bytes."""
        with self._changed:
            self._file(file_id).path.unlink(missing_ok=True)
            del self._files[file_id]
            return {"id": file_id, "object": "file", "deleted": True}

    def _file(self, file_id: str) -> StoredFile:
        self._advance()
        file = self._files.get(file_id)
        if file is None or file.expired(self.clock.now()):
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return file

    # Uploads

    def create_upload(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin a file that comes in parts."""
        with self._changed:
            now = self.clock.now()
            self._rates.count("files", self.manners.files_per_hour, now)
            upload = Upload(
                id=new_id("upload_"),
                filename=request["filename"],
                purpose=request["purpose"],
                bytes=request["bytes"],
                created_at=now,
                expires_at=now + self.manners.upload_lifetime * self.clock.scale,
                expires_after=request.get("expires_after"),
            )
            self._uploads[upload.id] = upload
            return upload.view(now)

    def add_part(self, upload_id: str, content: Incoming) -> dict[str, Any]:
        """Keep one part; raise `ApiError` where it is too large or the upload has ended."""
        with self._changed:
            upload = self._upload(upload_id)
            if content.bytes > self.manners.part_limit:
                raise ApiError(400, f"A part holds at most {self.manners.part_limit // MIB} MB.", param="data")
            content.close()
            part_id = new_id("part_")
            upload.parts[part_id] = content
            now = int(self.clock.now())
            return {"id": part_id, "object": "upload.part", "created_at": now, "upload_id": upload_id}

    def complete_upload(
        self, upload_id: str, part_ids: list[str], md5: str | None = None, *, lag: float = 0
    ) -> dict[str, Any]:
        """Make a file of the parts in the order given."""
        with self._changed:
            upload = self._upload(upload_id)
            parts = upload.chosen(part_ids)
            # Gigabytes may have to be copied: not under the lock, and not twice.
            upload.status = "completing"
        whole = self.incoming(upload.filename)
        found = join(parts, whole)
        with self._changed:
            if md5 is not None and md5.lower() != found:
                upload.status = "pending"
                whole.discard()
                raise ApiError(400, f"The MD5 of the content is {found}, not the one given.", param="md5")
            upload.file = self._keep(whole, upload.filename, upload.purpose, upload.expires_after, lag)
            upload.end("completed")
            return upload.view(self.clock.now())

    def cancel_upload(self, upload_id: str) -> dict[str, Any]:
        """Drop the parts."""
        with self._changed:
            upload = self._upload(upload_id)
            upload.end("cancelled")
            return upload.view(self.clock.now())

    def _upload(self, upload_id: str) -> Upload:
        upload = self._uploads.get(upload_id)
        if upload is None:
            raise ApiError(404, f"No such Upload object: {upload_id}", param="upload_id")
        upload.require_pending(self.clock.now())
        return upload

    # Jobs

    def plan(self, plans: Iterable[Plan]) -> None:
        """Decide what becomes of the next jobs created, one plan each."""
        with self._changed:
            self._plans.extend(plans)

    def create_job(
        self, request: dict[str, Any], *, idempotency_key: str | None = None, lag: float = 0
    ) -> dict[str, Any]:
        """Create a job; raise `ApiError` where its model or files will not do."""
        with self._changed:
            if self.manners.closed:
                message = "Creating fine-tuning jobs is no longer available to your organization."
                raise ApiError(403, message, code="fine_tuning_not_available")
            method = request.get("method", {}).get("type", "supervised")
            model, form = self._trainable(request["model"], method)
            self._rates.count(f"jobs of {model}", self.manners.creations_per_hour, self.clock.now())
            names = [key for key in ("training_file", "validation_file") if request.get(key)]
            files = [self._dataset(request[key], key) for key in names]
            self._refuse_beyond_limit()
            now = self.clock.now()
            job = Job(
                id=new_id("ftjob-"),
                request=request,
                model=model,
                created_at=now,
                listed_from=now + lag,
                plan=self._plans.pop(0) if self._plans else Plan(),
                idempotency_key=idempotency_key,
                seed=secrets.randbelow(2**31) if request.get("seed") is None else request["seed"],
            )
            self._jobs[job.id] = job
            view = job.view(self.manners)
        # Reading may take seconds: not under the lock, and no reason to outlive the service.
        threading.Thread(target=self._survey, args=(job, [file.path for file in files], form), daemon=True).start()
        return view

    def _survey(self, job: Job, paths: list[Path], form: str) -> None:
        surveys = [training.survey(path, form) for path in paths]
        with self._changed:
            job.surveyed(surveys, self.clock.now(), self.manners)
            self._changed.notify()

    def _trainable(self, name: str, method: str) -> tuple[str, str]:
        model = self.manners.aliases.get(name, name)
        base = model.split(":")[1] if model in self._tuned else model
        if base not in self.manners.models:
            message = f"Model {name} is not available for fine-tuning or does not exist."
            raise ApiError(400, message, param="model", code="model_not_available")
        if method not in self.manners.models[base]:
            message = f"Model {name} cannot be tuned by the method {method}."
            raise ApiError(400, message, param="method", code="unsupported_method")
        if method == "supervised":
            return model, "completion" if base in self.manners.completion_models else "chat"
        return model, "preference" if method == "dpo" else "reinforcement"

    def _dataset(self, file_id: str, param: str) -> StoredFile:
        try:
            file = self._file(file_id)
        except ApiError:
            raise ApiError(400, f"invalid {param}: {file_id}", param=param, code="invalid_file") from None
        if file.purpose != "fine-tune":
            message = f"The purpose of {file_id} is {file.purpose}, it must be fine-tune."
            raise ApiError(400, message, param=param, code="invalid_file_purpose")
        if self.manners.refuses_unprocessed_files and self.clock.now() < file.processed_at:
            message = f"File '{file_id}' is still being processed and cannot be used for fine-tuning yet."
            raise ApiError(400, message, param=param)
        return file

    def _refuse_beyond_limit(self) -> None:
        limit = self.manners.active_jobs_limit
        active = sum(job.status not in FINAL for job in self._jobs.values())
        if limit is not None and active >= limit:
            message = f"The organization has {active} fine-tuning jobs under way, the limit is {limit}."
            raise ApiError(429, message, code="rate_limit_exceeded", kind="requests")

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job; raise `ApiError` where there is none."""
        with self._changed:
            return self._job(job_id).view(self.manners)

    def list_jobs(self, page: dict[str, Any]) -> dict[str, Any]:
        """Return one page, newest first."""
        with self._changed:
            self._advance()
            now = self.clock.now()
            jobs = [job for job in reversed(self._jobs.values()) if job.listed_from <= now]
            if "metadata" in page:
                jobs = [job for job in jobs if _fits(job.request.get("metadata"), page["metadata"])]
            return _page([job.view(self.manners) for job in jobs], page)

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        """Cancel it and return it."""
        with self._changed:
            job = self._job(job_id)
            now = self.clock.now()
            job.cancel(now)
            self._settle(job, now)
            return job.view(self.manners)

    def pause_job(self, job_id: str) -> dict[str, Any]:
        """Pause it and return it."""
        with self._changed:
            job = self._job(job_id)
            job.pause(self.clock.now())
            return job.view(self.manners)

    def resume_job(self, job_id: str) -> dict[str, Any]:
        """Resume it and return it."""
        with self._changed:
            job = self._job(job_id)
            job.resume(self.clock.now(), self.manners)
            self._changed.notify()
            return job.view(self.manners)

    def list_events(self, job_id: str, page: dict[str, Any]) -> dict[str, Any]:
        """Return one page of a job's events, newest first."""
        with self._changed:
            return _page(self._job(job_id).events[::-1], page)

    def list_checkpoints(self, job_id: str, page: dict[str, Any]) -> dict[str, Any]:
        """Return one page of a job's checkpoints, newest first."""
        with self._changed:
            return _page(self._job(job_id).checkpoints[::-1], page, ends=True)

    def _job(self, job_id: str) -> Job:
        self._advance()
        job = self._jobs.get(job_id)
        if job is None:
            message = f"Could not find fine tune: {job_id}"
            raise ApiError(404, message, param="fine_tuning_job_id", code="fine_tune_not_found")
        return job

    # Models

    def list_models(self) -> dict[str, Any]:
        """Return every model, the tuned ones last."""
        with self._changed:
            self._advance()
            names = [*self.manners.models, *self.manners.aliases, *self._tuned]
            return {"object": "list", "data": [self._model_view(name) for name in names]}

    def model(self, name: str) -> dict[str, Any]:
        """Return the model; raise `ApiError` where there is none."""
        if not self.manners.answers_models:
            raise ApiError(404, f"Invalid URL (GET /v1/models/{name})")
        return self._model(name)

    def served(self, name: str) -> None:
        """Raise `ApiError` where there is no such model to talk to."""
        self._model(name)

    def _model(self, name: str) -> dict[str, Any]:
        with self._changed:
            self._advance()
            if name not in self._tuned and name not in self.manners.models and name not in self.manners.aliases:
                message = f"The model '{name}' does not exist or you do not have access to it."
                raise ApiError(404, message, param="model", code="model_not_found")
            return self._model_view(name)

    def delete_model(self, name: str) -> dict[str, Any]:
        """Delete a tuned model."""
        with self._changed:
            self._model(name)
            if name not in self._tuned:
                raise ApiError(
                    403, "Only a tuned model can be deleted.", param="model", code="insufficient_permissions"
                )
            del self._tuned[name]
            return {"id": name, "object": "model", "deleted": True}

    def _model_view(self, name: str) -> dict[str, Any]:
        created = self._tuned.get(name, _MODELS_CREATED)
        owner = "tunedrop-emulation" if name in self._tuned else "system"
        facts = self.manners.model_facts.get(self.manners.aliases.get(name, name), {})
        return {"id": name, "object": "model", "created": int(created), "owned_by": owner, **facts}

    # Time

    def _keep_time(self) -> None:
        with self._changed:
            while True:
                self._advance()
                moments = [moment for job in self._jobs.values() if (moment := job.next_move()) is not None]
                wait = max(_LEAST_REAL_WAIT, self.clock.real_seconds_until(min(moments))) if moments else None
                self._changed.wait(wait)

    def _advance(self) -> None:
        now = self.clock.now()
        for job in self._jobs.values():
            while (moment := job.next_move()) is not None and moment <= now:
                job.move(moment, self.manners)
                if job.status in FINAL:
                    self._settle(job, moment)

    def _settle(self, job: Job, at: float) -> None:
        for checkpoint in job.checkpoints:
            self._tuned.setdefault(checkpoint["fine_tuned_model_checkpoint"], checkpoint["created_at"])
        if job.status == "succeeded" and self.manners.adapter_files:
            for checkpoint in job.checkpoints:
                files = training.adapter(job.model, checkpoint["step_number"])
                checkpoint["result_files"] = [self._result(name, content) for name, content in files.items()]
        if job.status == "succeeded":
            content = job.results_csv().encode()
            content = base64.b64encode(content) if self.manners.base64_results else content
            job.result_files = [self._result("step_metrics.csv", content)]
        self._announce(f"fine_tuning.job.{job.status}", job.id, at)

    def _result(self, filename: str, content: bytes) -> str:
        results = self.incoming()
        results.write(content)
        return self._keep(results, filename, "fine-tune-results", None, 0).id

    def ledger(self) -> dict[str, Any]:
        """Return what was created, whatever has become of it, for tests to prove that nothing was paid twice."""
        with self._changed:
            self._advance()
            jobs = [
                {
                    "id": job.id,
                    "training_file": job.request["training_file"],
                    "created_at": int(job.created_at),
                    "status": job.status,
                    "metadata": job.request.get("metadata"),
                    "idempotency_key": job.idempotency_key,
                }
                for job in self._jobs.values()
            ]
            files = [
                {
                    "id": file.id,
                    "filename": file.filename,
                    "bytes": file.bytes,
                    "sha256": file.sha256,
                    "purpose": file.purpose,
                }
                for file in self._received
            ]
            uploads = [
                {"id": upload.id, "filename": upload.filename, "status": upload.status}
                for upload in self._uploads.values()
            ]
            return {"jobs_created": len(jobs), "jobs": jobs, "files": files, "uploads": uploads} | self._rates.view()


def _fits(metadata: dict[str, str] | None, wanted: dict[str, str] | None) -> bool:
    if wanted is None:
        return not metadata
    return wanted.items() <= (metadata or {}).items()


def _page(views: list[dict[str, Any]], page: dict[str, Any], *, ends: bool = False) -> dict[str, Any]:
    """Cut one page out of all; with `ends`, name its first and last id."""
    start = 0
    if page["after"] is not None:
        places = [index for index, view in enumerate(views) if view["id"] == page["after"]]
        if not places:
            raise ApiError(400, f"No object {page['after']} in this list.", param="after", code="invalid_value")
        start = places[0] + 1
    shown = views[start : start + page["limit"]]
    answer: dict[str, Any] = {"object": "list", "data": shown, "has_more": start + len(shown) < len(views)}
    if ends:
        answer |= {"first_id": shown[0]["id"] if shown else None, "last_id": shown[-1]["id"] if shown else None}
    return answer
