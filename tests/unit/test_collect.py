import base64
import json

import pytest
from tunedrop.adapters import CONFIG, WEIGHTS
from tunedrop.collect import Outcome, collect_results
from tunedrop.errors import Denied, Missing, Rejected, Throttled, Transient, Unauthorised
from tunedrop.providers import PROFILES
from tunedrop.runs import FINAL, Failure
from tunedrop.smoke_test import with_wish

from local.provider.training import adapter
from tests.unit.fakes import Broken

METRICS = b"step,train_loss\n1,2.5\n2,0.5\n"
PROBLEM = Failure("code", "A sentence.")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("tunedrop.collect.PAUSE_SECONDS", 0)
    monkeypatch.setattr("tunedrop.smoke_test.PAUSE_SECONDS", 0)


@pytest.fixture
def uploaded(run, provider, ledger):
    """A run whose file is uploaded."""
    file = provider.upload(f"{run.run_id}.jsonl", [b"{}\n"], 3)
    return ledger.update(
        run.run_id, state="waiting", file_id=file.id, result_keys=[f"results/{run.run_id}/report.json"]
    )


@pytest.fixture
def training(uploaded, provider, ledger):
    """A run whose job is under way."""
    job = provider.create_job(model="m", training_file=uploaded.file_id)
    return ledger.update(uploaded.run_id, state="training", job_id=job.id)


@pytest.fixture
def succeeded(training, provider):
    """A run whose job has succeeded."""
    result = provider.upload("metrics.csv", [METRICS], len(METRICS))
    provider.set_job(
        training.job_id,
        status="succeeded",
        fine_tuned_model="ft:x",
        trained_tokens=1200,
        result_files=(result.id,),
    )
    return training


def collect(run, outcome, provider, bucket, ledger):
    return collect_results(ledger.get(run.run_id), outcome, provider=provider, bucket=bucket, ledger=ledger)


SUCCESS = Outcome("succeeded", None)
TIMED_OUT = Outcome("timed_out", Failure("deadline", "too long"))
REPORT, JOB, EVENTS, TABLE = ("report.json", "job.json", "events.jsonl", "metrics.csv")
CHECKPOINTS = "checkpoints.json"


def keys(run, *names):
    return [f"results/{run.run_id}/{name}" for name in names]


# What the steps before have left


@pytest.mark.parametrize("state", FINAL)
def test_an_answer_in_a_final_state_is_the_outcome(state):
    answer = {"state": state, "error": {"code": "code", "message": "A sentence."}}
    assert Outcome.of({"answer": answer}) == Outcome(state, PROBLEM)


def test_an_answer_without_an_error_has_none():
    assert Outcome.of({"answer": {"state": "cancelled"}}) == Outcome("cancelled", None)


@pytest.mark.parametrize(
    "name",
    [
        *("Sandbox.Timedout", "States.Timeout", "Runtime.ExitError", "Runtime.OutOfMemory", "Transient"),
        *("Lambda.Unknown", "KeyError", "States.TaskFailed"),
    ],
)
def test_a_step_that_died_fails_the_run_and_wins_over_the_answer_before(name):
    outcome = Outcome.of({"answer": {"state": "training"}, "failure": {"Error": name, "Cause": "line of the dataset"}})
    assert (outcome.state, outcome.error.code) == ("failed", name)
    assert "dropped again" in outcome.error.message
    assert "line of the dataset" not in outcome.error.message


@pytest.mark.parametrize("given", [{}, {"answer": {}}, {"answer": {"state": "training"}}, {"answer": {"state": None}}])
def test_an_answer_that_is_not_final_fails_the_run(given):
    assert Outcome.of(given).state == "failed"
    assert Outcome.of(given).error.code == "no_final_state"


# Outcomes


def test_a_success_brings_its_results_home(succeeded, provider, bucket, ledger):
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert (told["state"], told["fine_tuned_model"], told["trained_tokens"]) == ("succeeded", "ft:x", 1200)
    assert told["result_keys"] == keys(succeeded, REPORT, JOB, EVENTS, TABLE)
    assert [bucket.objects[key] for key in keys(succeeded, TABLE)] == [METRICS]
    assert json.loads(bucket.objects[keys(succeeded, JOB)[0]])["object"] == "fine_tuning.job"
    assert json.loads(bucket.objects[keys(succeeded, EVENTS)[0]])["message"].startswith("Created")
    assert told["finished_at"]


def test_a_success_tells_what_is_left_to_be_done(succeeded, provider, bucket, ledger):
    provider.profile = PROFILES["azure"]
    published = collect(succeeded, SUCCESS, provider, bucket, ledger)
    assert published["run"]["next_step"] == PROFILES["azure"].after_success
    assert f"Next:           {PROFILES['azure'].after_success}" in published["message"]["email"]


def test_where_nothing_is_left_to_be_done_nothing_is_said(succeeded, provider, bucket, ledger):
    published = collect(succeeded, SUCCESS, provider, bucket, ledger)
    assert published["run"]["next_step"] is None
    assert "Next:" not in published["message"]["email"]


def test_a_success_tells_its_loss(succeeded, provider, bucket, ledger):
    assert collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]["loss_curve"] == [2.5, 0.5]


def test_metrics_in_base64_are_unpacked(succeeded, provider, bucket, ledger):
    provider.contents[provider.job(succeeded.job_id).result_files[0]] = base64.b64encode(METRICS)
    collect(succeeded, SUCCESS, provider, bucket, ledger)
    assert bucket.objects[keys(succeeded, TABLE)[0]] == METRICS


def test_base64_that_is_broken_into_lines_is_unpacked_too(succeeded, provider, bucket, ledger):
    provider.contents[provider.job(succeeded.job_id).result_files[0]] = base64.encodebytes(METRICS * 9)
    collect(succeeded, SUCCESS, provider, bucket, ledger)
    assert bucket.objects[keys(succeeded, TABLE)[0]] == METRICS * 9


@pytest.mark.parametrize("content", [b"", b"word", b"\xff\xfe", b"<html>", b"AAAA"])
def test_a_result_file_of_another_kind_is_kept_as_it_is(succeeded, provider, bucket, ledger, content):
    provider.contents[provider.job(succeeded.job_id).result_files[0]] = content
    assert collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]["state"] == "succeeded"
    assert bucket.objects[keys(succeeded, TABLE)[0]] == content


def test_every_result_file_is_kept(succeeded, provider, bucket, ledger):
    files = provider.job(succeeded.job_id).result_files * 3
    provider.set_job(succeeded.job_id, result_files=files)
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert told["result_keys"][3:] == keys(succeeded, TABLE, "metrics-2.csv", "metrics-3.csv")


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_what_a_job_left_that_did_not_succeed_is_kept_too(training, provider, bucket, ledger, state):
    provider.set_job(training.job_id, status=state)
    told = collect(training, Outcome(state, PROBLEM), provider, bucket, ledger)["run"]
    assert (told["state"], told["error"]) == (state, {"code": "code", "message": "A sentence."})
    assert told["result_keys"] == keys(training, REPORT, JOB, EVENTS)


@pytest.mark.parametrize("state", sorted(set(FINAL) - {"succeeded", "failed", "timed_out"}))
def test_a_run_that_ended_before_its_job_has_none(uploaded, provider, bucket, ledger, state):
    untouched = Broken(provider, "jobs_on", AssertionError("there is no job to look for"))
    told = collect(uploaded, Outcome(state, PROBLEM), untouched, bucket, ledger)["run"]
    assert (told["state"], told["job_id"], told["result_keys"]) == (state, None, keys(uploaded, REPORT))
    assert bucket.objects == {}


@pytest.mark.parametrize("state", ["failed", "timed_out"])
def test_a_run_that_never_uploaded_has_nothing_to_look_for(run, provider, bucket, ledger, state):
    untouched = Broken(provider, "jobs_on", AssertionError("there is no file"))
    assert collect(run, Outcome(state, PROBLEM), untouched, bucket, ledger)["run"]["state"] == state


# Checkpoints and adapters


def left(succeeded, provider, files, step=3):
    """Has the job leave a checkpoint with these files."""
    ids = [provider.upload(name, [content], len(content)).id for name, content in files.items()]
    checkpoint = {"id": f"ftckpt_{step}", "step_number": step, "result_files": ids}
    provider.left.setdefault(succeeded.job_id, []).append(checkpoint)
    return ids


FILES = adapter("llama", 3)
OF_THE_ADAPTER = (CONFIG, WEIGHTS)


def adapter_keys(run, *names):
    return [f"adapters/{run.run_id}/{name}" for name in names]


def test_checkpoints_are_listed(succeeded, provider, bucket, ledger):
    provider.left[succeeded.job_id] = [{"id": "ftckpt_1", "step_number": 1}, {"id": "ftckpt_2", "step_number": 2}]
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert told["result_keys"] == keys(succeeded, REPORT, JOB, EVENTS, TABLE, CHECKPOINTS)
    assert json.loads(bucket.objects[keys(succeeded, CHECKPOINTS)[0]]) == provider.left[succeeded.job_id]


def test_an_adapter_is_brought_home(succeeded, provider, bucket, ledger):
    left(succeeded, provider, FILES)
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert told["result_keys"][-2:] == adapter_keys(succeeded, *OF_THE_ADAPTER)
    assert {key: body for key, body in bucket.objects.items() if key.startswith("adapters/")} == {
        f"adapters/{succeeded.run_id}/{name}": FILES[name] for name in OF_THE_ADAPTER
    }


def test_an_adapter_is_told_of_where_it_is(succeeded, provider, bucket, ledger):
    left(succeeded, provider, FILES)
    answer = collect(succeeded, SUCCESS, provider, bucket, ledger)
    assert f"Adapter:        adapters/{succeeded.run_id}/" in answer["message"]["email"].splitlines()


def test_the_adapter_is_the_last_checkpoints_that_has_one(succeeded, provider, bucket, ledger):
    for step in (2, 10, 9):
        left(succeeded, provider, adapter("llama", step), step)
    left(succeeded, provider, {"README.md": b"no adapter"}, 11)
    collect(succeeded, SUCCESS, provider, bucket, ledger)
    assert bucket.objects[adapter_keys(succeeded, WEIGHTS)[0]] == adapter("llama", 10)[WEIGHTS]


def test_files_may_be_named_with_their_folder(succeeded, provider, bucket, ledger):
    left(succeeded, provider, {f"checkpoint-3/{name}": body for name, body in FILES.items()})
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert told["result_keys"][-2:] == adapter_keys(succeeded, *OF_THE_ADAPTER)


@pytest.mark.parametrize("strange", [None, 7, "file-1", {}, [None, 7, {}], []])
def test_checkpoints_in_another_form_hold_no_adapter(succeeded, provider, bucket, ledger, strange):
    provider.left[succeeded.job_id] = [{"id": "ftckpt_1", "step_number": "three", "result_files": strange}]
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert (told["state"], told["result_keys"][-1]) == ("succeeded", keys(succeeded, CHECKPOINTS)[0])


@pytest.mark.parametrize(
    "weights",
    [
        FILES[WEIGHTS][:-1],
        FILES[WEIGHTS] + b"x",
        FILES[WEIGHTS][:20],
        b"",
        b"1234567",
        b"<html><body>Bad gateway</body></html>",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b'{"a": {}}',
        (9).to_bytes(8, "little") + b"not JSON.",
    ],
    ids=["short", "long", "header cut", "empty", "no header", "HTML", "a list", "no offsets", "not JSON"],
)
def test_weights_that_are_not_whole_are_left_out(succeeded, provider, bucket, ledger, weights):
    left(succeeded, provider, {**FILES, WEIGHTS: weights})
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert (told["state"], told["result_keys"][-1]) == ("succeeded", adapter_keys(succeeded, CONFIG)[0])
    assert adapter_keys(succeeded, WEIGHTS)[0] not in bucket.objects


@pytest.mark.parametrize("config", [b"", b"[]", b"\xff", b'"x"', b" " * (1 << 20) + b"{}"], ids=lambda c: c[:4])
def test_weights_without_their_configuration_are_left_out(succeeded, provider, bucket, ledger, config):
    left(succeeded, provider, {**FILES, CONFIG: config})
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert told["state"] == "succeeded"
    assert not [key for key in bucket.objects if key.startswith("adapters/")]


def test_weights_that_take_longer_than_the_run_has_are_left_out(succeeded, provider, bucket, ledger, monkeypatch):
    monkeypatch.setattr("tunedrop.collect.LONGEST_FETCH_SECONDS", -1)
    left(succeeded, provider, FILES)
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert (told["state"], told["result_keys"][-1]) == ("succeeded", adapter_keys(succeeded, CONFIG)[0])


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_what_did_not_succeed_leaves_no_adapter(training, provider, bucket, ledger, state):
    left(training, provider, FILES)
    provider.set_job(training.job_id, status=state)
    collect(training, Outcome(state, PROBLEM), provider, bucket, ledger)
    assert not [key for key in bucket.objects if key.startswith("adapters/")]


# The smoke test


@pytest.fixture
def wished(succeeded, bucket):
    """A run that has succeeded, whose report wishes a smoke test."""
    bucket.put(keys(succeeded, REPORT)[0], with_wish('{"valid": true}', "Ask the canary.").encode())
    return succeeded


def report_of(run, bucket):
    return json.loads(bucket.objects[keys(run, REPORT)[0]])


def test_both_models_are_asked_and_their_answers_are_in_the_report(wished, provider, bucket, ledger):
    ledger.update(wished.run_id, model="gpt-4o-mini")
    collect(wished, SUCCESS, provider, bucket, ledger)
    assert report_of(wished, bucket) == {
        "valid": True,
        "smoke_test": {
            "prompt": "Ask the canary.",
            "tuned": {"model": "ft:x", "answer": "ft:x was asked: Ask the canary."},
            "base": {"model": "gpt-4o-mini", "answer": "gpt-4o-mini was asked: Ask the canary."},
        },
    }


def test_neither_prompt_nor_answer_is_published_recorded_or_logged(wished, provider, bucket, ledger, caplog):
    class Echoing:
        def __getattr__(self, name):
            return getattr(provider, name)

        def ask(self, model, prompt, max_tokens):
            if model == "ft:x":
                raise Denied("http_400", f"cannot answer {prompt!r}")
            return provider.ask(model, prompt, max_tokens)

    answer = collect(wished, SUCCESS, Echoing(), bucket, ledger)
    assert "canary" in report_of(wished, bucket)["smoke_test"]["tuned"]["error"]
    assert "canary" not in json.dumps(answer)
    assert "canary" not in json.dumps(ledger.get(wished.run_id).document())
    assert caplog.records
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    "error", [Transient("x"), Throttled("x", 9), Unauthorised("x"), Denied("c", "m"), Rejected("c", "m")], ids=repr
)
def test_a_model_that_does_not_answer_leaves_the_success_one(wished, provider, bucket, ledger, error):
    told = collect(wished, SUCCESS, Broken(provider, "ask", error, times=99), bucket, ledger)["run"]
    assert (told["state"], told["fine_tuned_model"]) == ("succeeded", "ft:x")
    asked = report_of(wished, bucket)["smoke_test"]
    assert asked["tuned"]["error"] == asked["base"]["error"] == str(error)


@pytest.mark.parametrize("error", [Transient("x"), Throttled("x", 9), Rejected("model_not_found", "m")], ids=repr)
def test_a_model_that_is_served_a_while_later_is_asked_again(wished, provider, bucket, ledger, error):
    collect(wished, SUCCESS, Broken(provider, "ask", error, times=2), bucket, ledger)
    assert "answer" in report_of(wished, bucket)["smoke_test"]["tuned"]


def test_asking_ends_in_time(wished, provider, bucket, ledger, monkeypatch):
    monkeypatch.setattr("tunedrop.smoke_test.LONGEST_SECONDS", -1)
    collect(wished, SUCCESS, provider, bucket, ledger)
    assert provider.asked == []
    assert "no time" in report_of(wished, bucket)["smoke_test"]["base"]["error"]


def test_an_answer_is_bounded(wished, provider, bucket, ledger, monkeypatch):
    monkeypatch.setattr(provider, "ask", lambda *_: "x" * 10**6)
    collect(wished, SUCCESS, provider, bucket, ledger)
    assert len(report_of(wished, bucket)["smoke_test"]["tuned"]["answer"]) == 4000


def test_who_has_answered_is_not_asked_again(wished, provider, bucket, ledger):
    with pytest.raises(Transient):
        collect(wished, SUCCESS, provider, bucket, Broken(ledger, "finish", Transient("away")))
    collect(wished, SUCCESS, provider, bucket, ledger)
    assert [model for model, *_ in provider.asked] == ["ft:x", "m"]


@pytest.mark.parametrize(
    "report", ["{}", '{"smoke_test": true}', '{"smoke_test": {}}', "[]", "gone astray", '{"smoke_test": {"prompt": 7}}']
)
def test_a_report_without_a_wish_has_nobody_asked(succeeded, provider, bucket, ledger, report):
    bucket.put(keys(succeeded, REPORT)[0], report.encode())
    assert collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]["state"] == "succeeded"
    assert provider.asked == []
    assert bucket.objects[keys(succeeded, REPORT)[0]].decode() == report


def test_nobody_is_asked_about_what_did_not_succeed(wished, provider, bucket, ledger):
    provider.set_job(wished.job_id, status="cancelled", fine_tuned_model=None)
    collect(wished, Outcome("cancelled", PROBLEM), provider, bucket, ledger)
    assert provider.asked == []


# Jobs that are still under way


@pytest.mark.parametrize("outcome", [TIMED_OUT, Outcome("failed", Failure("Lambda.Unknown", "died"))], ids=str)
def test_a_run_that_ends_before_its_job_cancels_it(training, provider, bucket, ledger, outcome):
    told = collect(training, outcome, provider, bucket, ledger)["run"]
    assert told["state"] == outcome.state
    assert provider.job(training.job_id).status == "cancelled"


@pytest.mark.parametrize("outcome", [TIMED_OUT, Outcome("failed", PROBLEM), Outcome("cancelled", None)], ids=str)
def test_a_job_that_has_succeeded_meanwhile_makes_the_run_a_success(succeeded, provider, bucket, ledger, outcome):
    told = collect(succeeded, outcome, provider, bucket, ledger)["run"]
    assert (told["state"], told["error"], told["fine_tuned_model"]) == ("succeeded", None, "ft:x")


@pytest.mark.parametrize("outcome", [TIMED_OUT, Outcome("failed", PROBLEM)], ids=str)
def test_a_job_that_was_never_recorded_is_found_and_cancelled(uploaded, provider, bucket, ledger, outcome):
    jobs = [provider.create_job(model="m", training_file=uploaded.file_id) for _ in range(2)]
    told = collect(uploaded, outcome, provider, bucket, ledger)["run"]
    assert (told["state"], told["job_id"]) == (outcome.state, jobs[0].id)
    assert [provider.job(job.id).status for job in jobs] == ["cancelled", "cancelled"]


@pytest.mark.parametrize(("part", "method"), [("provider", "events"), ("bucket", "write")])
def test_a_refused_key_is_waited_for_with_an_alarm_and_nothing_is_left_out(
    succeeded, provider, bucket, ledger, caplog, part, method
):
    parts = {"provider": provider, "bucket": bucket}
    parts[part] = Broken(parts[part], method, Unauthorised("the key was refused"))
    with pytest.raises(Unauthorised):
        collect(succeeded, SUCCESS, **parts, ledger=ledger)
    assert [(record.alarm, record.run_id) for record in caplog.records] == [("unauthorised", succeeded.run_id)]
    told = collect(succeeded, SUCCESS, **parts, ledger=ledger)["run"]
    assert told["state"] == "succeeded"
    assert {key.rsplit("/", 1)[1] for key in told["result_keys"]} == {
        *("report.json", "job.json", "events.jsonl", "metrics.csv")
    }


@pytest.mark.parametrize("error", [Transient("500"), Throttled("429", 5), Unauthorised("401")], ids=repr)
@pytest.mark.parametrize("method", ["job", "cancel_job"])
def test_a_job_that_cannot_be_looked_at_or_cancelled_leaves_the_run_open(
    training, provider, bucket, ledger, method, error
):
    with pytest.raises(type(error)):
        collect(training, TIMED_OUT, Broken(provider, method, error), bucket, ledger)
    assert not ledger.get(training.run_id).is_final


def test_a_job_that_is_denied_us_does_not_keep_the_run_from_ending(training, provider, bucket, ledger):
    denied = Broken(provider, "job", Denied("http_404", "gone"))
    told = collect(training, Outcome("failed", PROBLEM), denied, bucket, ledger)["run"]
    assert (told["state"], told["error"]["code"]) == ("failed", "code")


def test_a_success_that_is_denied_us_now_stays_one(succeeded, provider, bucket, ledger):
    ledger.update(succeeded.run_id, fine_tuned_model="ft:x")
    told = collect(succeeded, SUCCESS, Broken(provider, "job", Denied("http_404", "gone")), bucket, ledger)["run"]
    assert (told["state"], told["fine_tuned_model"]) == ("succeeded", "ft:x")


# A paid success survives


@pytest.mark.parametrize(
    ("what", "method", "lost"),
    [
        ("provider", "events", {EVENTS}),
        ("provider", "content", {TABLE}),
        ("provider", "checkpoints", {CHECKPOINTS, *OF_THE_ADAPTER}),
        ("provider", "file", {*OF_THE_ADAPTER}),
        ("provider", "chunks", {*OF_THE_ADAPTER}),
        ("bucket", "write", {JOB, EVENTS, TABLE, CHECKPOINTS, *OF_THE_ADAPTER}),
        ("bucket", "write_stream", {WEIGHTS}),
        ("bucket", "open", set()),
    ],
)
@pytest.mark.parametrize("error", [Transient("x"), Throttled("x", 9), Denied("c", "m"), Missing("c", "m")], ids=repr)
def test_what_cannot_be_had_is_left_out(succeeded, provider, bucket, ledger, what, method, lost, error):
    left(succeeded, provider, FILES)
    parts = {"provider": provider, "bucket": bucket, "ledger": ledger}
    parts[what] = Broken(parts[what], method, error, times=99)
    told = collect(succeeded, SUCCESS, **parts)["run"]
    assert (told["state"], told["fine_tuned_model"]) == ("succeeded", "ft:x")
    kept = keys(succeeded, *(name for name in (REPORT, JOB, EVENTS, TABLE, CHECKPOINTS) if name not in lost))
    kept += adapter_keys(succeeded, *(name for name in OF_THE_ADAPTER if name not in lost))
    assert told["result_keys"] == kept


@pytest.mark.parametrize("times", [1, 2])
def test_what_fails_once_or_twice_is_tried_again(succeeded, provider, bucket, ledger, times):
    broken = Broken(bucket, "write", Transient("503"), times=times)
    told = collect(succeeded, SUCCESS, provider, broken, ledger)["run"]
    assert told["result_keys"] == keys(succeeded, REPORT, JOB, EVENTS, TABLE)


# Once


def test_a_run_that_is_final_is_told_again_in_the_same_words(succeeded, provider, bucket, ledger, clock):
    first = collect(succeeded, SUCCESS, provider, bucket, ledger)
    clock.advance(60)
    again = collect(succeeded, TIMED_OUT, Broken(provider, "job", AssertionError()), bucket, ledger)
    assert again == first


def test_an_end_that_was_not_recorded_is_recorded_by_the_next_attempt(succeeded, provider, bucket, ledger):
    with pytest.raises(Transient):
        collect(succeeded, SUCCESS, provider, bucket, Broken(ledger, "finish", Transient("away")))
    told = collect(succeeded, SUCCESS, provider, bucket, ledger)["run"]
    assert told["result_keys"] == keys(succeeded, REPORT, JOB, EVENTS, TABLE)


# What is published


def test_the_message_is_the_run_document(succeeded, provider, bucket, ledger):
    answer = collect(succeeded, SUCCESS, provider, bucket, ledger)
    assert json.loads(answer["message"]["default"]) == answer["run"] == ledger.get(succeeded.run_id).document()


def test_the_mail_and_its_subject_are_for_people(succeeded, provider, bucket, ledger):
    answer = collect(succeeded, SUCCESS, provider, bucket, ledger)
    assert answer["subject"] == "Your model is ready: orders.jsonl"
    assert "Model:          ft:x" in answer["message"]["email"]


@pytest.mark.parametrize(("error", "cause"), [(PROBLEM, "A sentence."), (None, "cancelled")])
def test_the_cause_is_what_a_failed_execution_shows(run, provider, bucket, ledger, error, cause):
    assert collect(run, Outcome("cancelled", error), provider, bucket, ledger)["cause"] == cause


def test_the_answer_is_json_and_fits_a_state_machine(succeeded, provider, bucket, ledger):
    assert len(json.dumps(collect(succeeded, SUCCESS, provider, bucket, ledger))) < 256 << 10


def test_a_run_that_has_ended_gives_its_place_back_even_if_an_earlier_attempt_could_not(
    training, provider, bucket, ledger
):
    ledger.occupy(training.run_id, "azure", 1)
    with pytest.raises(Transient):
        collect(training, TIMED_OUT, provider, bucket, Broken(ledger, "release", Transient("500")))
    assert ledger.get(training.run_id).is_final
    collect(training, TIMED_OUT, provider, bucket, ledger)
    assert training.run_id not in ledger._places["azure"]
