"""Settings: what each function reads from its environment, once, into one frozen value.

The variables are those that ``template.yaml`` gives the function of the same name, written in capitals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields


class MissingSetting(RuntimeError):
    """A variable that the function needs is not set, or cannot be read as what it should be."""


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Of ``functions/webhook``; ``on_deletion`` of a dataset it is to ``ignore`` that, or to ``cancel`` its run.

    A dataset's key begins with ``key_prefix`` and ends in ``key_suffix``. ``workers_ai_account_id`` is empty where
    adapters are not published.
    """

    bucket_name: str
    webhook_secret_arn: str
    state_machine_arn: str
    ledger_table: str
    on_deletion: str
    adapter_state_machine_arn: str
    key_prefix: str = ""
    key_suffix: str = ""
    workers_ai_account_id: str = ""


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """Where the fine-tuning services are.

    ``provider`` is the one of a job specification that names none, ``provider_base_url`` its address where that is not
    the profile's own, ``providers`` what :func:`tunedrop.providers.read_profiles` reads.
    """

    provider: str
    provider_secret_arn: str
    provider_base_url: str = ""
    providers: str = "{}"


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """The bucket, and where it is."""

    bucket_name: str
    storage_endpoint: str
    storage_secret_arn: str


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Where the ledger is."""

    ledger_table: str


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What bounds a run: hours until it is timed out."""

    run_deadline_hours: float


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """What a job specification leaves out: its base model, and US dollars that a run may cost (0 = no limit).

    ``workers_ai_account_id`` is empty where nothing can be deployed.
    """

    default_model: str
    max_cost_usd: float
    workers_ai_account_id: str = ""


@dataclass(frozen=True, slots=True)
class CallbackSettings:
    """Of ``functions/callback``."""

    callback_secret_arn: str


@dataclass(frozen=True, slots=True)
class PollSettings:
    """Of ``functions/poll_status``: minutes between polls where callbacks come too; 0 where none do."""

    callback_heartbeat_minutes: float


@dataclass(frozen=True, slots=True)
class WorkersAiSettings:
    """Where Workers AI is: the account (empty: adapters are not published), the secret with its API token, the base URL
    of Cloudflare's API; and whether a published adapter is asked a prompt."""

    workers_ai_secret_arn: str
    workers_ai_base_url: str
    smoke_test_adapters: bool
    workers_ai_account_id: str = ""


@dataclass(frozen=True, slots=True)
class NotifySettings:
    """Of ``functions/notify``."""

    notification_secret_arn: str
    notify_queue_url: str
    allow_loopback: bool = False


@dataclass(frozen=True, slots=True)
class ReconcileSettings:
    """Of ``functions/reconcile``; what it shares with the webhook is meant as there."""

    bucket_name: str
    state_machine_arn: str
    adapter_state_machine_arn: str
    final_states_topic_arn: str
    key_prefix: str = ""
    key_suffix: str = ""
    workers_ai_account_id: str = ""


def load[Settings](kind: type[Settings], environment: Mapping[str, str]) -> Settings:
    """Reads the settings of ``kind`` from ``environment``.

    Raises:
        MissingSetting: a variable is missing, empty without a default, or of the wrong form; the message names it.
    """
    values: dict[str, str | float | bool] = {}
    for field in fields(kind):  # type: ignore[arg-type]  # a type variable cannot be bound to "a dataclass"
        name = field.name.upper()
        text = environment.get(name, "")
        if text:
            values[field.name] = _read(name, text, str(field.type))
        elif field.default is field.default_factory:  # both are dataclasses.MISSING: there is no default
            raise MissingSetting(f"the environment variable {name} is not set; template.yaml says what it should hold")
    return kind(**values)


def _read(name: str, text: str, kind: str) -> str | float | bool:
    if kind == "bool":
        if text not in ("true", "false"):
            raise MissingSetting(f"the environment variable {name} must be true or false")
        return text == "true"
    if kind == "float":
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise MissingSetting(f"the environment variable {name} must be a number")
        return number
    return text
