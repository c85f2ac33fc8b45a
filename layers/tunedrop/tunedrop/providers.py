"""Fine-tuning services: what differs between them, as one table.

The table is at the end, ``PROFILES``. A stack adds profiles of its own, or changes those of the table, with its
parameter ``Providers`` (:func:`read_profiles`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace

Method = Literal["supervised", "dpo", "reinforcement"]

METHODS: Final[tuple[Method, ...]] = ("supervised", "dpo", "reinforcement")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
MIB = 1 << 20
_THIS_MACHINE = ("127.0.0.1", "::1", "localhost")


class DataProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A service's limits on a dataset; the defaults are OpenAI's (``dataset/RULES.md``)."""

    minimum_examples: Mapping[str, int] = MappingProxyType({"supervised": 10, "dpo": 10, "reinforcement": 10})
    """Fewest examples of a training file, by method."""

    system_in_reinforcement: bool = False
    """Whether a reinforcement example may hold a system message."""

    images: bool = True
    """Whether user messages of chat and reinforcement examples may hold images."""

    max_images: int = 10
    """Most images in one example."""

    max_examples_with_images: int = 50_000
    """Most examples with images in one file."""

    token_limit: int | None = None
    """Tokens that an example is cut at; None: the model's own limit."""


class ProviderProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A fine-tuning service, as far as it differs from the others; the defaults are OpenAI's.

    Every service is spoken to through the same client, and given its key as ``Authorization: Bearer``. Sizes are in
    bytes.
    """

    name: str
    """What the parameter ``Provider`` and a job specification's ``provider`` call it."""

    like: str = ""
    """The profile of the table that it was made from; its own name there."""

    base_url: str = ""
    """Where its API is, up to and with ``/v1``; empty where that depends on the account or the region."""

    default_model: str = ""
    """The model to train where a job specification names none; empty: the parameter ``DefaultModel``, for the
    parameter ``Provider``, and none for any other."""

    methods: tuple[Method, ...] = METHODS
    """The methods of training it has."""

    hyperparameters_in_method: bool = True
    """Whether it knows ``method``; where not, hyperparameters go to the top level of the request."""

    takes_metadata: bool = True
    """Whether a job can carry metadata, and with it the run's id."""

    takes_seed: bool = True
    """Whether a job can be given a seed."""

    takes_integrations: bool = True
    """Whether a job can be given integrations, such as Weights & Biases."""

    suffix_length: int | None = 64
    """Most characters of a suffix; None: it takes no suffix."""

    extra_body: Mapping[str, Any] = {}
    """Further keys of a request that creates a job; a job specification's ``extra_body`` wins over them."""

    under_way: tuple[str, ...] = ()
    """Names that it has, beyond the API's own, for the state of a job that has not ended."""

    retrieves_models: bool = True
    """Whether asking it for a model tells whether that can be trained, so that it is asked before anything is sent."""

    calls_back: bool = False
    """Whether it can announce the end of a job with a webhook; where not, it is polled whatever the stack's
    ``CallbackHeartbeatMinutes`` says."""

    after_success: str = ""
    """What is left to be done before the trained model answers, as a sentence of the notification."""

    file_limit: int | None = None
    """Bytes that a file call takes at most; None where no limit is known."""

    uploads_above: int | None = None
    """Bytes above which a dataset goes through the Uploads API instead; None where the service has no such API."""

    uploads_limit: int = 8192 * MIB
    """Bytes that the Uploads API takes at most."""

    part_bytes: int = 8 * MIB
    """Bytes of one part of an upload. Parts under way are held in memory: smaller ones than the service allows (OpenAI:
    64 MB) cost little and spare much."""

    creations_per_hour: int | None = None
    """Jobs of one model that may be created in any hour; None where no limit is known."""

    files_per_hour: int | None = None
    """Files and uploads that may be created in any hour; None where no limit is known."""

    concurrent_jobs: int | None = None
    """Jobs that may be under way at the same time; None where no limit is known, or where it queues them itself."""

    data: DataProfile = DataProfile()
    """Its limits on what is in a dataset."""

    @property
    def largest_dataset(self) -> int | None:
        """Bytes of the largest dataset that the service takes in any way; None where no limit is known."""
        return self.file_limit if self.uploads_above is None else self.uploads_limit


class UnknownProvider(LookupError):
    """No profile has that name, or neither it nor the stack gives a base URL that can be used."""


class InvalidProviders(ValueError):
    """The parameter ``Providers`` is not what it should be; the message names the key."""


def profile_of(name: str, profiles: Mapping[str, ProviderProfile] | None = None) -> ProviderProfile:
    """The profile called ``name``, of ``profiles`` or of the table.

    Raises:
        UnknownProvider: there is none; the message names those there are.
    """
    known = PROFILES if profiles is None else profiles
    try:
        return known[name]
    except KeyError:
        raise UnknownProvider(f"no provider is called {name}; there are {', '.join(sorted(known))}") from None


def is_base_url(text: str) -> bool:
    """Whether a service can be there: key and datasets go over https, or to this machine itself."""
    from urllib.parse import urlsplit  # which the check of a dataset does without

    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return False
    plain = not (parts.query or parts.fragment or parts.username or parts.password)
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _THIS_MACHINE)
    return safe and bool(parts.hostname) and plain and text.isprintable()


def read_profiles(text: str) -> dict[str, ProviderProfile]:
    """The table, with what the parameter ``Providers`` adds to it and changes in it.

    ``text`` is a JSON object of profiles by name. A profile is an object of the fields above, as far as it differs from
    the profile that ``like`` names: left out, the one of its own name, else ``compatible``.

    Raises:
        InvalidProviders: it is malformed, or a name, key or value is not allowed.
    """
    if not text:
        return dict(PROFILES)
    import json  # as rare as profiles of one's own

    try:
        given = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise InvalidProviders("Providers is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidProviders(f"Providers is not valid JSON: {error}") from None
    profiles = dict(PROFILES)
    for name, changes in _object(given, "Providers").items():
        if not NAME.fullmatch(name):
            raise InvalidProviders(f"Providers: {name!r} is no name: 1 to 32 of a-z, 0-9, - and _ are allowed")
        changes = dict(_object(changes, name))
        like = changes.pop("like", name if name in PROFILES else "compatible")
        if not isinstance(like, str) or like not in PROFILES:
            raise InvalidProviders(f"Providers: {name}.like must be one of {', '.join(PROFILES)}")
        profiles[name] = replace(_changed(PROFILES[like], changes, name, but=("name", "like")), name=name, like=like)
    return profiles


def _changed[Profile: (ProviderProfile, DataProfile)](
    profile: Profile, changes: Mapping[str, Any], path: str, but: tuple[str, ...] = ()
) -> Profile:
    kinds = {name: kind for name, kind in type(profile).__annotations__.items() if name not in but}
    for key in changes:
        if key not in kinds:
            raise InvalidProviders(f"Providers: {path}.{key} is no such key; there are {', '.join(kinds)}")
    read = {key: _value(kinds[key], value, f"{path}.{key}", profile) for key, value in changes.items()}
    return replace(profile, **read)


def _value(kind: str, value: Any, path: str, profile: ProviderProfile | DataProfile) -> Any:
    name = path.rsplit(".", 1)[1]
    if kind == "DataProfile":
        return _changed(getattr(profile, name), _object(value, path), path)
    wanted, fits = _KINDS[kind]
    if not fits(value):
        raise InvalidProviders(f"Providers: {path} must be {wanted}")
    if name == "base_url" and not is_base_url(value):
        raise InvalidProviders(f"Providers: {path} must be an https address such as https://llm.example.com/v1")
    if kind == "Mapping[str, int]":
        if unknown := value.keys() - set(METHODS):
            raise InvalidProviders(f"Providers: {path}.{min(unknown)} is no method of {', '.join(METHODS)}")
        return {**getattr(profile, name), **value}
    return tuple(value) if isinstance(value, list) else value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_list(value: Any, allowed: tuple[str, ...] | None = None) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v and (not allowed or v in allowed) for v in value)


_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("text", lambda value: isinstance(value, str)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a whole number from 1", _is_count),
    "int | None": ("a whole number from 1, or null", lambda value: value is None or _is_count(value)),
    "tuple[str, ...]": ("a list of texts", _is_list),
    "tuple[Method, ...]": (
        f"a list of {', '.join(METHODS)}, not an empty one",
        lambda value: bool(value) and _is_list(value, METHODS),
    ),
    "Mapping[str, Any]": ("an object", lambda value: isinstance(value, dict)),
    "Mapping[str, int]": (
        "an object of whole numbers from 1",
        lambda value: isinstance(value, dict) and all(map(_is_count, value.values())),
    ),
}


def _object(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        where = "" if path == "Providers" else f"Providers: {path} "
        raise InvalidProviders(f"{where or 'Providers '}must be a JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidProviders(f"Providers: {next(n for n in names if names.count(n) > 1)} is given twice")
    return found


#: Read in November 2026; each profile names its sources.
PROFILES: Final[Mapping[str, ProviderProfile]] = MappingProxyType(
    {
        profile.name: replace(profile, like=profile.name)
        for profile in (
            # The API's own description, https://platform.openai.com/docs/api-reference/fine-tuning; webhooks:
            # https://platform.openai.com/docs/guides/webhooks; 512 MB and 8 GB: .../docs/api-reference/files/create
            # and /uploads
            ProviderProfile(
                name="openai",
                base_url="https://api.openai.com/v1",
                calls_back=True,
                file_limit=512 * MIB,
                uploads_above=512_000_000,
                uploads_limit=8192 * MIB,
                creations_per_hour=10,
                files_per_hour=100,
            ),
            # The base URL is the resource's own, https://RESOURCE.openai.azure.com/openai/v1. Request and suffix:
            # https://learn.microsoft.com/azure/foundry/reference/rest/fine-tuning-create-fine-tuning-job; training
            # types (Standard, GlobalStandard, Developer) and deployment:
            # https://learn.microsoft.com/azure/ai-foundry/openai/how-to/fine-tuning. Standard is what keeps the data
            # in the resource's region.
            ProviderProfile(
                name="azure",
                extra_body={"trainingType": "Standard"},
                under_way=("pending",),
                uploads_above=150_000_000,
                after_success=(
                    "Deploy the model in your Azure resource (Foundry portal, or `az cognitiveservices account "
                    "deployment create`) before it answers; a deployment costs by the hour."
                ),
            ),
            # The base URL is the region's own, https://bedrock-mantle.REGION.api.aws/v1, the key a Bedrock API key:
            # https://docs.aws.amazon.com/bedrock/latest/userguide/fine-tuning-openai-apis.html, which describes
            # reinforcement with a grader that is a Lambda function, and says that the model answers at once. What it
            # does not describe (suffix, metadata, seed, integrations) is taken as not there. The client's own support
            # for Bedrock (openai.providers.bedrock) is not needed: with a key it sets the same header, and without one
            # it signs whole bodies, which an upload that streams does not have. Its default is /openai/v1 at the host.
            ProviderProfile(
                name="bedrock",
                methods=("supervised", "reinforcement"),
                takes_metadata=False,
                takes_seed=False,
                takes_integrations=False,
                suffix_length=None,
                retrieves_models=False,
                data=DataProfile(
                    minimum_examples=MappingProxyType({"supervised": 10, "dpo": 10, "reinforcement": 100}),
                    system_in_reinforcement=True,
                ),
            ),
            # https://docs.tokenfactory.nebius.com/post-training: hyperparameters at the top level, among them lora,
            # lora_r, lora_alpha, lora_dropout and packing. What it lists as models are those that it serves, not those
            # that it trains. Without LoRA it trains the whole model, which it does not serve by the token.
            ProviderProfile(
                name="nebius",
                base_url="https://api.tokenfactory.nebius.com/v1",
                methods=("supervised",),
                hyperparameters_in_method=False,
                takes_metadata=False,
                extra_body={"hyperparameters": {"lora": True}},
                retrieves_models=False,
                data=DataProfile(images=False),
            ),
            # https://docs.litellm.ai/docs/fine_tuning and its request LiteLLMFineTuningJobCreate, which knows neither
            # method nor metadata; what it stands in front of is chosen with extra_body's custom_llm_provider.
            ProviderProfile(
                name="litellm",
                methods=("supervised",),
                hyperparameters_in_method=False,
                takes_metadata=False,
                retrieves_models=False,
            ),
            # Any service that speaks the same API: the job itself in its own words, and nothing beyond that.
            ProviderProfile(name="compatible", takes_metadata=False, retrieves_models=False),
        )
    }
)
