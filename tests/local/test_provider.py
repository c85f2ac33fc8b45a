import csv
import hashlib
import io
import json
import socket
import time

import openai
import pytest
from openai.types import FileDeleted, FileObject, Model, ModelDeleted, Upload
from openai.types.chat import ChatCompletion
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from openai.types.uploads import UploadPart

from tests.local.provider_support import KEY, Provider, chats, lines, until

# What the API's description requires, beyond what the client's types insist on.
REQUIRED_OF_JOB = {
    *("created_at", "error", "finished_at", "fine_tuned_model", "hyperparameters", "id", "model", "object", "seed"),
    *("organization_id", "result_files", "status", "trained_tokens", "training_file", "validation_file"),
}
STATUSES = ["validating_files", "queued", "running", "succeeded"]


@pytest.fixture(scope="module")
def provider():
    running = Provider.start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def manners(provider):
    usual = provider.order("GET", "/manners")
    yield lambda **changes: provider.order("PATCH", "/manners", changes)
    provider.order("PATCH", "/manners", usual)


def strictly(kind, raw, extra=()):
    """Validate without conversions, and accept no field that the type does not know."""
    value = kind.model_validate(raw, strict=True)
    assert set(value.model_extra or ()) <= set(extra)
    return value


def strictly_job(raw):
    assert raw.keys() >= REQUIRED_OF_JOB
    return strictly(FineTuningJob, raw, extra=["user_provided_suffix"])


def error_of(answer, status):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


# The process


def test_ends_cleanly_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    provider = Provider.start()
    provider.upload()
    assert list(tmp_path.rglob("*"))
    assert provider.stop() == 0
    assert not list(tmp_path.rglob("*"))


def test_says_that_it_is_an_emulation(provider):
    assert provider.call("GET", "/models").headers["x-emulation"] == "tunedrop"
    assert provider.call("GET", "/nowhere").headers["x-emulation"] == "tunedrop"


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({}, None),
        ({"Authorization": "Bearer sk-other"}, "invalid_api_key"),
        ({"Authorization": KEY}, "invalid_api_key"),
    ],
)
def test_a_wrong_key_is_refused(provider, header, code):
    answer = provider.call("GET", "/models", headers={"Authorization": None} | header)
    assert error_of(answer, 401)["code"] == code


def test_what_does_not_exist_is_an_error_of_the_same_shape(provider):
    assert error_of(provider.call("GET", "/engines"), 404)["message"].startswith("Invalid URL")
    error_of(provider.call("PUT", "/files"), 405)
    assert error_of(provider.call("GET", "/fine_tuning/jobs/ftjob-none"), 404)["code"] == "fine_tune_not_found"
    assert error_of(provider.call("GET", "/files/file-none"), 404)["param"] == "id"
    assert error_of(provider.call("GET", "/models/gpt-none"), 404)["code"] == "model_not_found"


# Files and uploads


def test_a_file_is_processed_after_a_moment_and_comes_back_as_it_was(provider, manners):
    manners(processing_seconds=600)
    raw = provider.call(
        "POST", "/files", files={"file": ("r@un ü.jsonl", chats())}, data={"purpose": "fine-tune"}
    ).json()
    file = strictly(FileObject, raw)
    assert (file.status, file.filename, file.bytes, file.purpose) == (
        "uploaded",
        "r@un ü.jsonl",
        len(chats()),
        "fine-tune",
    )
    until(lambda: provider.client.files.retrieve(file.id).status, lambda status: status == "processed")
    assert provider.client.files.content(file.id).content == chats()
    strictly(FileDeleted, provider.call("DELETE", f"/files/{file.id}").json())
    with pytest.raises(openai.NotFoundError):
        provider.client.files.retrieve(file.id)


def test_files_are_listed_in_pages(provider):
    made = [provider.upload(purpose="batch").id for _ in range(5)]
    assert [file.id for file in provider.client.files.list(purpose="batch", limit=2)] == made[::-1]
    raw = provider.call("GET", f"/files?purpose=batch&order=asc&limit=2&after={made[0]}").json()
    assert raw.keys() == {"object", "data", "has_more", "first_id", "last_id"}
    assert (raw["object"], raw["has_more"], raw["first_id"], raw["last_id"]) == ("list", True, made[1], made[2])


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=many", "order=up", "after=file-none", "colour=red"])
def test_a_listing_is_strict(provider, query):
    assert error_of(provider.call("GET", f"/files?{query}"), 400)["param"] == query.split("=")[0]


@pytest.mark.parametrize(
    ("files", "data", "status", "param"),
    [
        ({"file": ("a", b"x")}, {"purpose": "training"}, 400, "purpose"),
        ({"file": ("a", b"x")}, {}, 400, "purpose"),
        ({"file": ("a", b"x")}, {"purpose": "fine-tune", "colour": "red"}, 400, "colour"),
        ({"file": ("a", b"")}, {"purpose": "fine-tune"}, 400, "file"),
        ({"file": ("a", b"x" * 2000)}, {"purpose": "fine-tune"}, 413, "file"),
        ({"file": ("a", b"x" * 2_000_000)}, {"purpose": "fine-tune"}, 413, None),
        ({"data": ("a", b"x")}, {"purpose": "fine-tune"}, 400, "file"),
        (
            {"file": ("a", b"x")},
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "9"},
            400,
            "expires_after.seconds",
        ),
    ],
)
def test_a_file_that_will_not_do_is_refused(provider, manners, files, data, status, param):
    manners(file_limit=1000)
    before = provider.order("GET", "/ledger")["files"]
    assert error_of(provider.call("POST", "/files", files=files, data=data), status)["param"] == param
    assert provider.order("GET", "/ledger")["files"] == before


def test_a_connection_lost_in_the_middle_leaves_no_file(tmp_path):
    provider = Provider.start("--data", str(tmp_path))
    host, port = provider.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 900000\r\n"
        head += "Content-Type: multipart/form-data; boundary=B\r\n\r\n--B\r\n"
        head += 'Content-Disposition: form-data; name="file"; filename="half.jsonl"\r\n\r\n'
        connection.sendall(head.encode() + b"x" * 300_000)
        until(lambda: list(tmp_path.iterdir()), bool)
    until(lambda: list(tmp_path.iterdir()), lambda left: not left)
    assert provider.order("GET", "/ledger")["files"] == []
    provider.stop()


def test_a_file_expires(provider):
    expiry = {"anchor": "created_at", "seconds": 3600}
    file = provider.client.files.create(file=("a.jsonl", b"x"), purpose="batch", expires_after=expiry)
    assert file.expires_at == pytest.approx(file.created_at + 3600, abs=1)
    until(lambda: [each.id for each in provider.client.files.list()], lambda ids: file.id not in ids)


def test_an_upload_joins_its_parts_in_the_order_named(provider):
    begin, end = chats()[:500], chats()[500:]
    request = {"filename": "parts.jsonl", "purpose": "fine-tune", "bytes": len(begin + end), "mime_type": "text/jsonl"}
    upload = strictly(Upload, provider.call("POST", "/uploads", json=request).json())
    path = f"/uploads/{upload.id}"
    second, first = (
        strictly(UploadPart, provider.call("POST", f"{path}/parts", files={"data": part}).json()).id
        for part in (end, begin)
    )
    wrong = {"part_ids": [first, second], "md5": "0" * 32}
    assert error_of(provider.call("POST", f"{path}/complete", json=wrong), 400)["param"] == "md5"
    assert error_of(provider.call("POST", f"{path}/complete", json={"part_ids": [first]}), 400)["param"] == "part_ids"
    right = wrong | {"md5": hashlib.md5(begin + end).hexdigest()}
    done = strictly(Upload, provider.call("POST", f"{path}/complete", json=right).json())
    assert done.status == "completed"
    assert provider.client.files.content(done.file.id).content == begin + end
    assert "completed" in error_of(provider.call("POST", f"{path}/complete", json=right), 400)["message"]


def test_the_clients_own_chunking_works(provider):
    upload = provider.client.uploads.upload_file_chunked(
        file=chats(), filename="c.jsonl", bytes=len(chats()), mime_type="text/jsonl", purpose="fine-tune", part_size=700
    )
    assert provider.client.files.content(upload.file.id).content == chats()


def test_an_upload_ends_with_its_hour_or_its_cancellation(provider, manners):
    request = {"filename": "a", "purpose": "fine-tune", "bytes": 10, "mime_type": "text/jsonl"}
    usual = provider.client.uploads.create(**request)
    assert usual.expires_at - usual.created_at == pytest.approx(3600 * 2000, abs=1), (
        "an hour of real time, on a clock that runs faster"
    )
    manners(part_limit=1000)
    upload = provider.client.uploads.create(**request)
    assert (
        error_of(provider.call("POST", f"/uploads/{upload.id}/parts", files={"data": b"x" * 1001}), 400)["param"]
        == "data"
    )
    assert provider.client.uploads.cancel(upload.id).status == "cancelled"
    error_of(provider.call("POST", f"/uploads/{upload.id}/parts", files={"data": b"x"}), 400)
    manners(upload_lifetime=0.001)
    expired = provider.client.uploads.create(**request)
    time.sleep(0.01)
    assert (
        "expired"
        in error_of(provider.call("POST", f"/uploads/{expired.id}/parts", files={"data": b"x"}), 400)["message"]
    )


# Jobs


def test_a_job_becomes_a_model(provider):
    training, validation = provider.upload(chats(40)), provider.upload(chats(5))
    request = {
        "model": "gpt-4o-mini",
        "training_file": training.id,
        "validation_file": validation.id,
        "suffix": "Plant Care",
        "seed": 7,
        "metadata": {"run_id": "r1"},
        "integrations": [{"type": "wandb", "wandb": {"project": "plants"}}],
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto", "batch_size": 4}}},
    }
    raw = provider.call("POST", "/fine_tuning/jobs", json=request).json()
    job = strictly_job(raw)
    assert (job.status, job.model, job.seed, job.metadata) == (
        "validating_files",
        "gpt-4o-mini-2024-07-18",
        7,
        {"run_id": "r1"},
    )
    assert (job.hyperparameters.n_epochs, job.integrations[0].wandb.project) == ("auto", "plants")

    seen = []
    while "succeeded" not in seen:
        raw = provider.call("GET", f"/fine_tuning/jobs/{job.id}").json()
        now = strictly_job(raw)
        assert (now.estimated_finish is not None) == (now.status == "running")
        assert (now.fine_tuned_model is not None) == (now.finished_at is not None) == (now.status == "succeeded")
        seen += [now.status] if now.status not in seen else []
    assert seen == sorted(seen, key=STATUSES.index)

    assert now.hyperparameters.n_epochs == now.method.supervised.hyperparameters.n_epochs == 3
    assert now.hyperparameters.batch_size == 4
    assert now.fine_tuned_model.startswith("ft:gpt-4o-mini-2024-07-18:emulation:plant-care:")
    assert len(now.fine_tuned_model.split(":")[-1]) == 8
    assert 300 <= now.finished_at - now.created_at <= 1200
    assert now.trained_tokens % 3 == 0
    assert now.trained_tokens > 40 * 3 * 10

    rows = list(csv.DictReader(io.StringIO(provider.client.files.content(now.result_files[0]).text)))
    assert list(rows[0]) == ["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"]
    assert [int(row["step"]) for row in rows] == list(range(1, 31))
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) / 2
    assert float(rows[-1]["valid_mean_token_accuracy"]) > float(rows[0]["valid_mean_token_accuracy"])

    model = now.fine_tuned_model
    assert strictly(Model, provider.call("GET", f"/models/{model}").json()).owned_by == "tunedrop-emulation"
    raw = provider.call(
        "POST", "/chat/completions", json={"model": model, "messages": [{"role": "user", "content": "Ficus?"}]}
    )
    answer = strictly(ChatCompletion, raw.json())
    assert "Emulated" in answer.choices[0].message.content
    assert "Ficus?" in answer.choices[0].message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_a_job_tells_what_happens_to_it(provider):
    job = provider.wait_for(provider.job().id, "succeeded")
    events = list(provider.client.fine_tuning.jobs.list_events(job.id, limit=7))
    raw = provider.call("GET", f"/fine_tuning/jobs/{job.id}/events?limit=100").json()
    assert raw["has_more"] is True
    for event in raw["data"]:
        strictly(FineTuningJobEvent, event)
    assert events[-1].message.startswith("Created")
    assert any("emulation" in event.message for event in events)
    assert len({event.id for event in events}) == len(events)
    assert [event.created_at for event in events] == sorted((event.created_at for event in events), reverse=True)
    metrics = [event.data for event in events if event.type == "metrics"][::-1]
    assert [row["step"] for row in metrics] == list(range(1, metrics[-1]["total_steps"] + 1))

    raw = provider.call("GET", f"/fine_tuning/jobs/{job.id}/checkpoints?limit=2").json()
    assert raw["has_more"] is True
    assert raw["last_id"] == raw["data"][1]["id"]
    checkpoints = [
        strictly(FineTuningJobCheckpoint, each.to_dict())
        for each in provider.client.fine_tuning.jobs.checkpoints.list(job.id)
    ]
    assert [each.step_number for each in checkpoints] == [96, 84, 72]
    assert checkpoints[0].fine_tuned_model_checkpoint == job.fine_tuned_model
    assert checkpoints[1].fine_tuned_model_checkpoint == f"{job.fine_tuned_model}:ckpt-step-84"


def test_the_same_data_and_seed_give_the_same_numbers(provider):
    jobs = [provider.job(seed=seed) for seed in (1, 1, 2)]
    ended = [provider.wait_for(job.id, "succeeded") for job in jobs]
    first, again, other = (provider.client.files.content(job.result_files[0]).text for job in ended)
    assert first == again != other


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (chats(9), "invalid_n_examples", "9 examples"),
        (chats(10) + b"{not json\n", "invalid_file_format", "line 11"),
        (chats(10) + b"\xff\xfe\n", "invalid_file_format", "line 11"),
        (chats(10) + b'{"prompt": "a", "completion": "b"}\n', "invalid_file_format", "line 11"),
        (chats(10) + b'{"messages": [{"role": "user", "content": "a"}]}\n', "invalid_file_format", "assistant"),
        (chats(10) + b'{"messages": [{"role": "robot", "content": "a"}]}\n', "invalid_file_format", "role"),
        (chats(10) + b"[" * 100_000 + b"\n", "invalid_file_format", "line 11"),
        (chats(8) + b'{"messages": ' + b"[" * 3000 + b"]" * 3000 + b"}\n", "invalid_file_format", "line 9"),
        (chats(8) + chats(1)[:-2] + b', "tools": ' + b"[" * 3000 + b"]" * 3000 + b"}\n", "invalid_n_examples", "9 ex"),
    ],
)
def test_a_job_fails_on_data_it_cannot_train_on(provider, content, code, says):
    job = provider.wait_for(provider.job(training_file=provider.upload(content).id).id, "failed")
    assert (job.error.code, job.error.param) == (code, "training_file")
    assert says in job.error.message
    assert job.fine_tuned_model is job.trained_tokens is None
    assert job.finished_at >= job.created_at + 20


def test_a_broken_validation_file_fails_the_job(provider):
    job = provider.job(validation_file=provider.upload(b"[]\n").id)
    assert provider.wait_for(job.id, "failed").error.param == "validation_file"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"colour": "red"}, "colour"),
        ({"model": None}, "model"),
        ({"model": 4}, "model"),
        ({"model": "gpt-none"}, "model"),
        ({"training_file": "file-none"}, "training_file"),
        ({"validation_file": "file-none"}, "validation_file"),
        ({"suffix": "x" * 65}, "suffix"),
        ({"suffix": ""}, "suffix"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 2**31}, "seed"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "metadata"),
        ({"metadata": {"k": "x" * 513}}, "metadata.k"),
        ({"metadata": {"k": 1}}, "metadata.k"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "3"}}, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"epochs": 3}}, "hyperparameters.epochs"),
        ({"hyperparameters": {}, "method": {"type": "supervised"}}, "hyperparameters"),
        ({"method": {"type": "magic"}}, "method.type"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised"),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}}, "method.dpo.hyperparameters.beta"),
        ({"method": {"type": "reinforcement"}}, "method.reinforcement"),
        ({"method": {"type": "dpo"}, "model": "gpt-3.5-turbo"}, "method"),
        ({"integrations": [{"type": "wandb"}]}, "integrations[0].wandb"),
        ({"integrations": {}}, "integrations"),
        ({"hyperparameters": {"learning_rate_multiplier": 0}}, "hyperparameters.learning_rate_multiplier"),
        ({"hyperparameters": {"learning_rate_multiplier": float("nan")}}, "hyperparameters.learning_rate_multiplier"),
    ],
)
def test_a_job_request_is_strict(provider, change, param):
    request = {"model": "gpt-4o-mini", "training_file": provider.upload().id} | change
    before = provider.order("GET", "/ledger")["jobs_created"]
    answer = provider.call(
        "POST", "/fine_tuning/jobs", data=json.dumps(request), headers={"Content-Type": "application/json"}
    )
    assert error_of(answer, 400)["param"] == param
    assert provider.order("GET", "/ledger")["jobs_created"] == before


def test_a_file_must_be_ready_and_meant_for_tuning(provider, manners):
    with pytest.raises(openai.BadRequestError, match="purpose"):
        provider.job(training_file=provider.upload(purpose="batch").id)
    manners(processing_seconds=1e9)
    early = provider.client.files.create(file=("a.jsonl", chats()), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="still being processed"):
        provider.job(training_file=early.id)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"seed": NaN', b"\xff"])
def test_a_body_that_is_no_object_is_refused(provider, body):
    answer = provider.call("POST", "/fine_tuning/jobs", data=body, headers={"Content-Type": "application/json"})
    error_of(answer, 400)


def test_jobs_are_listed_in_pages_and_by_metadata(provider):
    made = [provider.job(metadata={"batch": "listed", "n": str(n)}).id for n in range(3)]
    jobs = provider.client.fine_tuning.jobs
    assert [job.id for job in jobs.list(limit=2, metadata={"batch": "listed"})] == made[::-1]
    assert [job.id for job in jobs.list(metadata={"batch": "listed", "n": "1"})] == [made[1]]
    assert [job.id for job in jobs.list(limit=2)][:3] == made[::-1]
    raw = provider.call("GET", "/fine_tuning/jobs?metadata=null&limit=100").json()
    assert raw.keys() == {"object", "data", "has_more"}
    assert all(strictly_job(job).metadata is None for job in raw["data"])
    for query in ("limit=0", "limit=101", "after=ftjob-none", "status=running"):
        error_of(provider.call("GET", f"/fine_tuning/jobs?{query}"), 400)


def test_a_job_can_be_paused_resumed_and_cancelled(provider):
    provider.order("POST", "/jobs/next", {"outcome": "succeeded", "duration_seconds": 1e6})
    job = provider.job()
    jobs = provider.client.fine_tuning.jobs
    provider.wait_for(job.id, "running")
    assert jobs.pause(job.id).status == "paused"
    with pytest.raises(openai.BadRequestError, match="cannot be paused"):
        jobs.pause(job.id)
    assert jobs.resume(job.id).status == "queued"
    with pytest.raises(openai.BadRequestError, match="cannot be resumed"):
        jobs.resume(job.id)
    provider.wait_for(job.id, "running")
    cancelled = strictly_job(provider.call("POST", f"/fine_tuning/jobs/{job.id}/cancel").json())
    assert (cancelled.status, cancelled.fine_tuned_model, cancelled.error) == ("cancelled", None, None)
    assert cancelled.finished_at is not None
    with pytest.raises(openai.BadRequestError, match="already completed"):
        jobs.cancel(job.id)


def test_resuming_keeps_the_steps_made(provider):
    provider.order("POST", "/jobs/next", {"outcome": "paused", "duration_seconds": 960})
    job = provider.job()
    paused = provider.wait_for(job.id, "paused")
    assert paused.estimated_finish is None
    provider.client.fine_tuning.jobs.resume(job.id)
    provider.wait_for(job.id, "succeeded")
    events = list(provider.client.fine_tuning.jobs.list_events(job.id))
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert steps == list(range(96, 0, -1))


def test_other_methods_read_other_data(provider):
    turn = {"messages": [{"role": "user", "content": "Colour?"}]}
    say = [{"role": "assistant", "content": "Red"}]
    pairs = lines({"input": turn, "preferred_output": say, "non_preferred_output": say} for _ in range(10))
    graded = provider.upload(lines(turn | {"answer": "red"} for _ in range(10))).id
    grader = {"type": "string_check", "name": "g", "operation": "eq", "input": "{{item.answer}}", "reference": "red"}
    dpo = provider.job(
        training_file=provider.upload(pairs).id,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": 2}}},
    )
    reinforcement = provider.job(
        model="o4-mini",
        training_file=graded,
        validation_file=graded,
        method={"type": "reinforcement", "reinforcement": {"grader": grader}},
    )
    completion = provider.job(
        model="babbage-002",
        training_file=provider.upload(lines({"prompt": "a", "completion": " b"} for _ in range(10))).id,
    )
    assert provider.wait_for(dpo.id, "succeeded", "failed").method.dpo.hyperparameters.beta == 0.1
    assert provider.wait_for(reinforcement.id, "succeeded", "failed").method.reinforcement.grader.reference == "red"
    for job in (dpo, reinforcement, completion):
        assert strictly_job(provider.call("GET", f"/fine_tuning/jobs/{job.id}").json()).error is None


def test_a_tuned_model_can_be_tuned_again_and_deleted(provider):
    model = provider.wait_for(provider.job().id, "succeeded").fine_tuned_model
    again = provider.wait_for(provider.job(model=model).id, "succeeded")
    assert again.model == model
    assert again.fine_tuned_model.startswith("ft:gpt-4o-mini-2024-07-18:emulation::")
    assert model in [each.id for each in provider.client.models.list()]
    assert strictly(ModelDeleted, provider.call("DELETE", f"/models/{model}").json()).deleted
    with pytest.raises(openai.NotFoundError):
        provider.client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hello"}])
    with pytest.raises(openai.PermissionDeniedError):
        provider.client.models.delete("gpt-4o-mini")


def test_more_jobs_than_allowed_are_throttled(provider, manners):
    manners(active_jobs_limit=0)
    with pytest.raises(openai.RateLimitError):
        provider.job()


def test_the_result_file_can_come_in_base64_as_openais_does(provider, manners):
    manners(base64_results=True)
    job = provider.wait_for(provider.job().id, "succeeded")
    assert provider.client.files.content(job.result_files[0]).content.startswith(b"c3RlcCx0cmFpbl9sb3Nz")


def test_an_hours_creations_are_limited_by_model_and_the_breaches_are_counted(provider, manners):
    files = [provider.upload().id for _ in range(2)]
    manners(creations_per_hour=1)
    before = provider.order("GET", "/ledger")
    ask = {"json": {"model": "gpt-4.1-nano", "training_file": files[0]}}
    answers = [provider.call("POST", "/fine_tuning/jobs", **ask) for _ in range(2)]
    other = provider.call("POST", "/fine_tuning/jobs", json={"model": "gpt-4.1", "training_file": files[1]})
    after = provider.order("GET", "/ledger")

    assert [answer.status_code for answer in (*answers, other)] == [200, 429, 200]
    assert answers[1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 0 < int(answers[1].headers["retry-after"]) <= 3600
    assert answers[1].headers["x-ratelimit-remaining-requests"] == "0"
    assert len(after["breaches"]) == len(before["breaches"]) + 1
    assert after["most_in_an_hour"]["jobs of gpt-4.1-nano-2025-04-14"] == 1


def test_an_hours_files_and_uploads_are_limited_together(provider, manners):
    provider.upload()
    manners(files_per_hour=1)
    with pytest.raises(openai.RateLimitError):
        provider.upload()
    with pytest.raises(openai.RateLimitError):
        provider.client.uploads.create(bytes=1, filename="a", mime_type="application/jsonl", purpose="fine-tune")
