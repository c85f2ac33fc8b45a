"""What differs between one provider and another, in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MIB = 1024 * 1024

_MODELS = {
    "gpt-4.1-2025-04-14": ("supervised", "dpo"),
    "gpt-4.1-mini-2025-04-14": ("supervised", "dpo"),
    "gpt-4.1-nano-2025-04-14": ("supervised", "dpo"),
    "gpt-4o-2024-08-06": ("supervised", "dpo"),
    "gpt-4o-mini-2024-07-18": ("supervised", "dpo"),
    "gpt-3.5-turbo-0125": ("supervised",),
    "davinci-002": ("supervised",),
    "babbage-002": ("supervised",),
    "o4-mini-2025-04-16": ("reinforcement",),
}
_ALIASES = {
    "gpt-4.1": "gpt-4.1-2025-04-14",
    "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano": "gpt-4.1-nano-2025-04-14",
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "gpt-3.5-turbo": "gpt-3.5-turbo-0125",
    "o4-mini": "o4-mini-2025-04-16",
}


@dataclass(frozen=True)
class Manners:
    """The limits, names and delays of one provider. Sizes are bytes, times simulated seconds."""

    models: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(_MODELS))
    """Snapshot → the methods it can be tuned with."""
    aliases: Mapping[str, str] = field(default_factory=lambda: dict(_ALIASES))
    """Undated name → the snapshot that a job reports instead."""
    completion_models: tuple[str, ...] = ("davinci-002", "babbage-002")
    """Tuned on prompt and completion, not on chats."""
    organization: str = "org-emulation"
    name_part: str = "emulation"
    """The organisation's part of a tuned model's name."""

    base_path: str = "/v1"
    error_form: str = "openai"
    """The body of a refusal: `openai`, `azure` (code and message alone), `litellm` (the status in place of the code) or
    `detail` (a sentence alone)."""
    closed: bool = False
    """Takes no new jobs, as a service that is at its end."""

    job_words: tuple[str, ...] = (
        *("hyperparameters", "integrations", "metadata", "method", "seed", "suffix", "validation_file"),
    )
    """What a request for a job may hold beside model and training file; what it may not is missing in a job too."""
    more_words: tuple[str, ...] = ()
    """Further keys of such a request, of any value."""
    more_hyperparameters: tuple[str, ...] = ()
    """Further hyperparameters at its top level, of any value."""
    graders: tuple[str, ...] = ("string_check", "text_similarity", "python", "score_model", "multi")
    statuses: Mapping[str, str] = field(default_factory=dict)
    """What it calls a job's status, where it is not the API's name."""
    unprocessed: str = "uploaded"
    """The status of a file that is not processed yet."""
    minimum_by_method: Mapping[str, int] = field(default_factory=dict)
    """Fewest examples, where they are not `minimum_examples`."""
    answers_models: bool = True
    """Whether it can be asked for one model."""
    model_facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What it tells of a model beside its name, such as `shutdown_date`."""

    file_limit: int = 512 * MIB
    upload_limit: int = 8192 * MIB
    part_limit: int = 64 * MIB
    upload_lifetime: float = 3600
    """Real seconds, unlike the other times: what arrives takes real time, and would come too late on a fast clock."""
    minimum_examples: int = 10
    suffix_limit: int = 64
    metadata_pairs: int = 16
    metadata_key_limit: int = 64
    metadata_value_limit: int = 512
    files_page_limit: int = 10_000
    jobs_page_limit: int = 100
    active_jobs_limit: int | None = None
    """Jobs that may be under way at once; one more is answered with 429."""
    creations_per_hour: int | None = None
    """Jobs of one model that may be created in any hour; one more is answered with 429, and counted as a breach."""
    files_per_hour: int | None = None
    """Likewise, files and uploads."""
    refuses_unprocessed_files: bool = True
    adapter_files: bool = False
    """A checkpoint names the files of its LoRA adapter, as Nebius has it."""
    base64_results: bool = False
    """OpenAI hands out the result file's CSV in base64."""

    processing_seconds: float = 5
    validating_seconds: float = 20
    queued_seconds: float = 30


_OPEN_MODELS = {
    "openai.gpt-oss-20b": ("supervised", "reinforcement"),
    "qwen.qwen3-32b": ("supervised", "reinforcement"),
}
_LLAMAS = {
    "meta-llama/Meta-Llama-3.1-8B-Instruct": ("supervised",),
    "meta-llama/Llama-3.3-70B-Instruct": ("supervised",),
}
_WITHOUT_METHOD = ("hyperparameters", "integrations", "seed", "suffix", "validation_file")

MANNERS: Mapping[str, Manners] = {
    "openai": Manners(),
    "azure": Manners(
        base_path="/openai/v1",
        error_form="azure",
        more_words=("trainingType",),
        statuses={"validating_files": "pending", "queued": "pending"},
        unprocessed="pending",
        model_facts={
            name: {"capabilities": {"fine_tune": True}, "lifecycle_status": "generally-available"} for name in _MODELS
        },
    ),
    "bedrock": Manners(
        models=_OPEN_MODELS,
        aliases={},
        job_words=("method", "validation_file"),
        graders=("lambda",),
        minimum_by_method={"reinforcement": 100},
        answers_models=False,
    ),
    "nebius": Manners(
        models=_LLAMAS,
        aliases={},
        error_form="detail",
        job_words=_WITHOUT_METHOD,
        more_hyperparameters=(
            "lora",
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "packing",
            "weight_decay",
            "warmup_ratio",
        ),
        file_limit=5 * 1024 * MIB,
        answers_models=False,
    ),
    "litellm": Manners(
        error_form="litellm",
        job_words=_WITHOUT_METHOD,
        more_words=("custom_llm_provider",),
        answers_models=False,
    ),
    "compatible": Manners(
        job_words=("hyperparameters", "integrations", "method", "seed", "suffix", "validation_file"),
        answers_models=False,
    ),
}
"""The manners of the services that tunedrop.providers has profiles of, by the same names."""
