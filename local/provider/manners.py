"""What differs between one provider and another, in one place."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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

    file_limit: int = 512 * MIB
    upload_limit: int = 8192 * MIB
    part_limit: int = 64 * MIB
    upload_lifetime: float = 3600
    minimum_examples: int = 10
    suffix_limit: int = 64
    metadata_pairs: int = 16
    metadata_key_limit: int = 64
    metadata_value_limit: int = 512
    files_page_limit: int = 10_000
    jobs_page_limit: int = 100
    active_jobs_limit: int | None = None
    """Jobs that may be under way at once; one more is answered with 429."""
    refuses_unprocessed_files: bool = True
    adapter_files: bool = False
    """A checkpoint names the files of its LoRA adapter, as Nebius has it."""
    base64_results: bool = False
    """OpenAI hands out the result file's CSV in base64."""

    processing_seconds: float = 5
    validating_seconds: float = 20
    queued_seconds: float = 30
