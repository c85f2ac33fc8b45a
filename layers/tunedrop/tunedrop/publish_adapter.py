"""Publishing: a LoRA adapter that lies in the bucket becomes a finetune of Workers AI that answers prompts.

A finetune can neither be deleted nor read by itself, and its name is taken for good: nothing is created before all is
checked, and nothing is created twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tunedrop.adapter_check import (
    MAX_CONFIG_BYTES,
    CheckedAdapter,
    check_adapter,
    header_bytes,
)
from tunedrop.bucket import Bucket
from tunedrop.clock import now, seconds
from tunedrop.errors import (
    Denied,
    Duplicate,
    Final,
    Missing,
    Rejected,
    Throttled,
    Transient,
    TunedropError,
    Unauthorised,
)
from tunedrop.ledger import Ledger, UnknownRun
from tunedrop.runs import CONFIG, DEPLOYMENT, WEIGHTS, Run, adapter_name, results_key
from tunedrop.steps import Done, Wait, next_look_seconds
from tunedrop.workers_ai import TOO_MANY, Asset, Finetune, WorkersAi

EFFECT = "create_finetune"
NOTE = "publication"
MAX_ADAPTERS = 100
"""https://developers.cloudflare.com/workers-ai/features/fine-tunes/loras/"""

CONFIG_WAIT_SECONDS = 900
"""The configuration is waited for so long after the weights have arrived."""

LAST_LOOK_SECONDS = 900
"""So long a lost creation is looked for before it is repeated, and a finetune that is not listed or does not answer."""

LONGEST_NAME = 54  # with a suffix, 63: a finetune's name has no documented limit, and this is a label's everywhere
PROMPT = "In two sentences: what can you help me with?"
MAX_TOKENS = 100
MAX_ANSWER = 2000
PEEK_BYTES = 1 << 18

# These can pass: the finetune is not ready yet.
_NOT_READY = ("finetune_not_found", "finetune_incomplete")
_RUN_ID = re.compile(r"[0-9a-f]{32}")

_logger = logging.getLogger("tunedrop")


@dataclass(frozen=True, slots=True)
class _Files:
    """An adapter's two files: the configuration, the first bytes of the weights with their header, and their size."""

    config: bytes
    start: bytes
    size: int


def finetune_name(name: str) -> str:
    """The name of the finetune of an adapter called ``name``: small letters, digits and hyphens, at most 54.

    What Cloudflare takes is not documented, but for the prefix of its own, ``cf-public-``:
    https://developers.cloudflare.com/workers-ai/features/fine-tunes/public-loras/
    """
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not label or label.startswith("cf-public"):
        label = f"adapter-{label}".rstrip("-")
    return label[:LONGEST_NAME].rstrip("-")


def publish_adapter(
    run: Run, *, bucket: Bucket, workers_ai: WorkersAi | None, ledger: Ledger, smoke_test: bool
) -> Wait | Done:
    """Makes sure that exactly one finetune has the run's adapter as it was when its event happened.

    Each call goes as far as it can; what an earlier one has created or sent is found.

    Raises:
        Rejected: the adapter is invalid; the report says all, the message the first error. Nothing was created.
        Duplicate: it is being, or has been published under that name already.
        Missing, Superseded: the weights are gone or others by now; Missing too where the configuration does not come.
        Denied: the account may not, or holds as many as it may; or the finetune does not answer.
        UnknownOutcome: Workers AI may have created it; the next call looks for it.
        Transient, Throttled, Unauthorised: as reading and sending raise them.
    """
    if workers_ai is None:
        raise Denied("no_account", "the stack has no Workers AI account: set its parameter WorkersAiAccountId")
    files = _read(run, bucket)
    if files is None:
        return _wait_for_config(run)
    checked = check_adapter(files.config, files.start, files.size)
    run, name = _begin(run, checked, ledger)
    report = _report(checked)
    if checked.errors:
        _write(run, report, bucket, ledger)
        raise Rejected(checked.errors[0].code, _summary(run, checked))
    assert checked.model is not None, "there is a model where there is no error"  # noqa: S101 - ours to keep
    fingerprint = _fingerprint(run, name, files, checked)
    _claim(run, fingerprint, ledger)
    finetune = _finetune(run, name, checked.model.name, fingerprint, workers_ai, ledger)
    if isinstance(finetune, Wait):
        return finetune
    _send(run, finetune, checked, files.size, bucket, workers_ai, ledger)
    since = float(ledger.noted(run.run_id, NOTE)["sent_at"])
    if finetune.id not in {listed.id for listed in workers_ai.finetunes()}:
        return _look_again(since, run, "Workers AI does not list the finetune that it has created")
    report["finetune"] = {"id": finetune.id, "name": finetune.name, "model": finetune.model}
    if smoke_test:
        answer = _ask(finetune, workers_ai, since, run)
        if isinstance(answer, Wait):
            return answer
        report["smoke_test"] = answer
    _write(run, report, bucket, ledger)
    ledger.update(run.run_id, fine_tuned_model=finetune.name, next_step=_how_to_ask(finetune))
    return Done("succeeded", finetune.name)


def _read(run: Run, bucket: Bucket) -> _Files | None:
    """The adapter's files as far as the check needs them; None where the configuration is not there yet."""
    start, size = bucket.peek(run.key, PEEK_BYTES, run.etag)
    needed = header_bytes(start)
    if needed and len(start) < min(needed, size):
        start, size = bucket.peek(run.key, needed, run.etag)
    folder = run.key.removesuffix(WEIGHTS)
    try:
        # One byte more than it may have is enough to see that it has too many.
        config, _ = bucket.peek(folder + CONFIG, MAX_CONFIG_BYTES + 1)
    except Missing:
        return None
    return _Files(config, start, size)


def _wait_for_config(run: Run) -> Wait:
    pause = next_look_seconds(seconds(run.created_at), CONFIG_WAIT_SECONDS)
    if pause is None:
        raise Missing(
            "config_missing",
            f"no {CONFIG} came beside {run.key} within {CONFIG_WAIT_SECONDS // 60} minutes: drop it first, then the "
            "weights again",
        )
    return Wait(pause, run.state)


def _begin(run: Run, checked: CheckedAdapter, ledger: Ledger) -> tuple[Run, str]:
    """The run with what is known of it, and the name that its finetune is to have."""
    name = adapter_name(run.key) or ""
    wanted = name
    fields: dict[str, Any] = {"state": "uploading", "model": checked.model.name if checked.model else None}
    if _RUN_ID.fullmatch(name):
        try:
            source = ledger.get(name)
        except UnknownRun:
            pass
        else:
            fields["source_run_id"] = source.run_id
            wanted = str(ledger.noted(source.run_id, DEPLOYMENT).get("name") or name)
    return ledger.update(run.run_id, **fields), finetune_name(wanted)


def _fingerprint(run: Run, name: str, files: _Files, checked: CheckedAdapter) -> str:
    """Stands for what is to be published: 16 hexadecimal digits, the same for the same files and name."""
    model = checked.model.name if checked.model else ""
    config = hashlib.sha256(files.config).hexdigest()
    return hashlib.sha256(json.dumps([name, model, run.etag, files.size, config]).encode()).hexdigest()[:16]


def _claim(run: Run, fingerprint: str, ledger: Ledger) -> None:
    holder = ledger.claim(f"adapter:{fingerprint}", run.run_id)
    if holder != run.run_id:
        raise Duplicate(
            "duplicate",
            f"run {holder} publishes or has published the same adapter under the same name; drop it into a folder of "
            "another name to publish it once more",
        )


def _finetune(
    run: Run, name: str, model: str, fingerprint: str, workers_ai: WorkersAi, ledger: Ledger
) -> Finetune | Wait:
    """The run's finetune: the one that an earlier attempt has left, else a new one.

    It is recognised by the fingerprint in its description. A name that another adapter has gets a suffix.
    """
    listed = workers_ai.finetunes()
    suffixed = f"{name}-{fingerprint[:8]}"
    ours = [f for f in listed if f.id == run.finetune_id or fingerprint in f.description or f.name == suffixed]
    if len(ours) > 1:
        others = ", ".join(finetune.id for finetune in ours[1:])
        _logger.warning("the finetunes %s are the same as %s, and cannot be deleted", others, ours[0].id)
    if ours:
        ledger.update(run.run_id, finetune_id=ours[0].id)
        return ours[0]
    if run.finetune_id:  # created, and not listed yet
        return Finetune(run.finetune_id, str(ledger.noted(run.run_id, NOTE)["name"]), model, "", "")
    since = ledger.intend(run.run_id, EFFECT)
    if since is not None:
        pause = next_look_seconds(since, LAST_LOOK_SECONDS)
        if pause is not None:
            return Wait(pause, run.state)
        ledger.abandon(run.run_id, EFFECT)
        ledger.intend(run.run_id, EFFECT)
    taken = {finetune.name for finetune in listed}
    chosen = suffixed if name in taken else name
    try:
        if len(listed) >= MAX_ADAPTERS:
            raise TOO_MANY.ends(TOO_MANY.code, f"{TOO_MANY.meaning}; there are {len(listed)}")
        created = workers_ai.create(model, chosen, f"Tunedrop run {run.run_id}, content {fingerprint}")
    except (Rejected, Denied, Throttled, Unauthorised):
        ledger.abandon(run.run_id, EFFECT)  # refused for certain
        raise
    ledger.note(run.run_id, NOTE, {"name": created.name or chosen})
    ledger.update(run.run_id, finetune_id=created.id)
    return created


def _send(
    run: Run,
    finetune: Finetune,
    checked: CheckedAdapter,
    size: int,
    bucket: Bucket,
    workers_ai: WorkersAi,
    ledger: Ledger,
) -> None:
    """Sends the two files, in the order of Cloudflare's documentation; what was sent is not sent again."""
    noted = ledger.noted(run.run_id, NOTE)
    sent: list[str] = noted.get("sent", [])

    def weights() -> Iterable[bytes]:
        return bucket.open(run.key, run.etag).chunks

    for asset in (Asset(WEIGHTS, size, weights), Asset(CONFIG, len(checked.config), lambda: [checked.config])):
        if asset.name in sent:
            continue
        workers_ai.upload(finetune.id, asset)
        sent = [*sent, asset.name]
        noted = {"name": finetune.name, "sent": sent, "sent_at": now()}
        ledger.note(run.run_id, NOTE, noted)


def _look_again(since: float, run: Run, message: str, code: str = "not_listed") -> Wait:
    pause = next_look_seconds(since, LAST_LOOK_SECONDS)
    if pause is None:
        raise Denied(code, message)
    return Wait(pause, run.state)


def _ask(finetune: Finetune, workers_ai: WorkersAi, since: float, run: Run) -> dict[str, str] | Wait:
    """The answer to a prompt.

    A finetune that is not served fails the run, once the last look is over. What says nothing of the finetune, such as
    a service that is busy for long, does not.
    """
    try:
        answer = workers_ai.ask(finetune.model, finetune.name, PROMPT, MAX_TOKENS)
    except TunedropError as error:
        not_ready = isinstance(error, Final) and error.code in _NOT_READY
        if not_ready or isinstance(error, Transient | Throttled):
            pause = next_look_seconds(since, LAST_LOOK_SECONDS)
            if pause is not None:
                return Wait(pause, run.state)
        if not_ready and isinstance(error, Final):
            message = f"{error.message} The finetune {finetune.name} is there, and cannot be deleted"
            raise Denied(error.code, message) from None
        return {"prompt": PROMPT, "error": str(error)}
    return {"prompt": PROMPT, "answer": answer[:MAX_ANSWER]}


def _how_to_ask(finetune: Finetune) -> str:
    return f'Ask it at /ai/run/{finetune.model} with {{"messages": […], "raw": true, "lora": "{finetune.name}"}}.'


def _report(checked: CheckedAdapter) -> dict[str, Any]:
    return {
        "valid": not checked.errors,
        "error_count": checked.error_count,
        "errors": [asdict(problem) for problem in checked.errors],
        "warnings": [asdict(problem) for problem in checked.warnings],
        "adapter": {
            "rank": checked.rank,
            "tensors": checked.tensors,
            "parameters": checked.parameters,
            "model": checked.model.name if checked.model else None,
        },
    }


def _write(run: Run, report: dict[str, Any], bucket: Bucket, ledger: Ledger) -> None:
    key = results_key(run.run_id, "report.json")
    bucket.write(key, json.dumps(report, indent=2, ensure_ascii=False).encode(), "application/json")
    ledger.update(run.run_id, result_keys=[key])


def _summary(run: Run, checked: CheckedAdapter) -> str:
    first = checked.errors[0]
    path = f", {first.path}" if first.path else ""
    others = checked.error_count - 1
    more = "" if not others else " There is 1 more error." if others == 1 else f" There are {others:,} more errors."
    return f"{first.file}{path}: {first.message}.{more} All of it is in {results_key(run.run_id, 'report.json')}."
