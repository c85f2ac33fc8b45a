"""Checking a LoRA adapter before anything is created for it: its configuration, and the header of its weights.

The limits are Workers AI's, https://developers.cloudflare.com/workers-ai/features/fine-tunes/loras/; the names and
shapes are those that PEFT writes, https://huggingface.co/docs/peft/developer_guides/checkpoint; the form of the file is
https://github.com/huggingface/safetensors#format: 8 bytes that count the header's, the header as JSON, the tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tunedrop.runs import CONFIG, WEIGHTS
from tunedrop.workers_ai_models import MAX_RANK, ServedModel, is_quantised, known_bases, served

MAX_FILE_BYTES = 300_000_000
"""A file has fewer."""

MAX_CONFIG_BYTES = 1 << 20
MAX_HEADER_BYTES = 4 << 20
"""Tunedrop's own bound: an adapter of 80 layers with seven modules each takes 200 kB."""

MAX_PROBLEMS = 20
MODEL_TYPES = ("mistral", "gemma", "llama")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4}

_LONGEST_SIDE = 1 << 24
_LORA = re.compile(r"base_model\.model\.(?P<module>.{1,300})\.lora_(?P<part>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: the ``file`` it is in, the ``path`` of the key or the tensor's name, a stable ``code``,
    and a sentence with what mends it."""

    file: str
    path: str | None
    code: str
    message: str


@dataclass(slots=True)
class CheckedAdapter:
    """What the check found out. ``config`` is what is to be sent in the place of the dropped one.

    There is a ``model`` and a ``rank`` where there is no error. At most 20 errors are kept; ``error_count`` counts all.
    """

    config: bytes
    model: ServedModel | None = None
    rank: int | None = None
    tensors: int = 0
    parameters: int = 0
    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    error_count: int = 0

    def add(self, file: str, path: str | None, code: str, message: str) -> None:
        """Notes an error."""
        self.error_count += 1
        if len(self.errors) < MAX_PROBLEMS:
            self.errors.append(Problem(file, path[:200] if path else None, code, message))


class _Unreadable(ValueError):
    """The text is no JSON object; the message says why."""


def header_bytes(start: bytes) -> int | None:
    """How many of a file's first bytes hold its header; None where what it begins with is no length within bounds."""
    length = int.from_bytes(start[:8], "little")
    return 8 + length if len(start) >= 8 and 2 <= length <= MAX_HEADER_BYTES else None


def check_adapter(config: bytes, start: bytes, size: int) -> CheckedAdapter:
    """Checks an adapter by its configuration, the first bytes of its weights (:func:`header_bytes` says how many), and
    the size of these in bytes.

    Memory and time grow with the header alone, which is bounded.
    """
    checked = CheckedAdapter(config)
    ranks: frozenset[int] = frozenset()
    targets: tuple[str, ...] | None = None
    try:
        given = _object(config, MAX_CONFIG_BYTES)
    except _Unreadable as error:
        checked.add(CONFIG, None, "invalid_json", f"{error}; write it with PEFT's save_pretrained")
    else:
        ranks, targets = _check_config(given, checked)
    if size >= MAX_FILE_BYTES:
        checked.add(
            WEIGHTS,
            None,
            "too_large",
            f"{size:,} bytes, and Workers AI takes fewer than {MAX_FILE_BYTES:,}: train with a smaller r or fewer "
            "target_modules, or save as bfloat16",
        )
    _check_weights(start, size, ranks, targets, checked)
    return checked


def _check_config(given: Mapping[str, Any], checked: CheckedAdapter) -> tuple[frozenset[int], tuple[str, ...] | None]:
    """The ranks and the modules that the weights may have; no rank or None where that cannot be told."""

    def wrong(path: str, code: str, message: str) -> None:
        checked.add(CONFIG, path, code, message)

    if given.get("peft_type") != "LORA":
        wrong("peft_type", "not_lora", 'Workers AI serves LoRA adapters alone: it must be "LORA"')
    if given.get("task_type") not in (None, "CAUSAL_LM"):
        wrong("task_type", "wrong_task", 'the models that are served generate text: it must be "CAUSAL_LM"')
    for key in ("use_dora", "trainable_token_indices", "modules_to_save"):
        if given.get(key):
            wrong(key, "not_plain_lora", "this trains more than LoRA matrices, which is not served: train without")
    if given.get("bias") not in (None, "none"):
        wrong("bias", "not_plain_lora", 'trained biases are not served: train with "bias": "none"')
    ranks = _ranks(given, checked)
    targets = _targets(given, checked)
    _check_model(given, checked)
    return ranks, targets


def _ranks(given: Mapping[str, Any], checked: CheckedAdapter) -> frozenset[int]:
    ranks = set()
    pattern = given.get("rank_pattern") or {}
    listed = {f"rank_pattern.{key}": rank for key, rank in pattern.items()} if isinstance(pattern, dict) else {}
    for path, rank in {"r": given.get("r"), **listed}.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            checked.add(CONFIG, path, "invalid_rank", f"the rank is a whole number from 1 to {MAX_RANK}")
        elif rank > MAX_RANK:
            message = f"the rank is {rank}, and Workers AI serves at most {MAX_RANK}: train with a smaller one"
            checked.add(CONFIG, path, "rank_too_large", message)
        else:
            ranks.add(rank)
            if path == "r":
                checked.rank = rank
    return frozenset(ranks)


def _targets(given: Mapping[str, Any], checked: CheckedAdapter) -> tuple[str, ...] | None:
    targets = given.get("target_modules")
    if isinstance(targets, str) and targets:
        return None  # "all-linear" or a pattern: the tensors say which modules they are for
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        message = 'a list of module names is expected, such as ["q_proj", "v_proj"]'
        checked.add(CONFIG, "target_modules", "invalid_target_modules", message)
        return None
    for name in targets:
        if name.rpartition(".")[2] not in MODULES:
            message = f"{name[:60]} cannot be served: train {', '.join(MODULES)} or some of them"
            checked.add(CONFIG, "target_modules", "unsupported_module", message)
    return tuple(name.rpartition(".")[2] for name in targets)


def _check_model(given: Mapping[str, Any], checked: CheckedAdapter) -> None:
    """Which model serves it; what is not told of its kind is added to what is sent."""
    base, kind = given.get("base_model_name_or_path"), given.get("model_type")
    known = f"Workers AI serves adapters of {known_bases()}"
    if not isinstance(base, str) or not base:
        checked.add(CONFIG, "base_model_name_or_path", "unknown_base", f"the base model's name is missing; {known}")
        return
    if is_quantised(base):
        message = f"{base[:100]} is quantised; name the model that it was made of, if it is meant for that. {known}"
        checked.add(CONFIG, "base_model_name_or_path", "quantised_base", message)
        return
    model = checked.model = served(base)
    if model is None:
        message = f"nothing there serves adapters of {base[:100]}; {known}: train on one of these"
        checked.add(CONFIG, "base_model_name_or_path", "unsupported_base", message)
    elif kind is None:
        checked.config = json.dumps({**given, "model_type": model.model_type}, indent=2).encode()
        message = f'Workers AI asks for it and PEFT does not write it: "{model.model_type}" is added to what is sent'
        checked.warnings.append(Problem(CONFIG, "model_type", "model_type_added", message))
    elif kind != model.model_type:
        told = f'it must be "{model.model_type}" for {base[:100]}; write that, or leave it out and it is added'
        checked.add(CONFIG, "model_type", "wrong_model_type", told)


def _check_weights(
    start: bytes, size: int, ranks: frozenset[int], targets: tuple[str, ...] | None, checked: CheckedAdapter
) -> None:
    end = header_bytes(start)
    if end is None or end > min(len(start), size):
        length = int.from_bytes(start[:8], "little")
        message = (
            f"it does not begin as such a file does: its header would have {length:,} bytes, of {size:,} in all and "
            f"{MAX_HEADER_BYTES:,} at most; save it anew with PEFT's save_pretrained, and upload all of it"
        )
        checked.add(WEIGHTS, None, "invalid_header", message)
        return
    try:
        header = _object(start[8:end], MAX_HEADER_BYTES)
    except _Unreadable as error:
        checked.add(WEIGHTS, None, "invalid_header", f"its header is unreadable: {error}; save it anew")
        return
    header.pop("__metadata__", None)
    if not header:
        checked.add(WEIGHTS, None, "no_tensors", "it holds no tensor: save the trained adapter, not an empty one")
        return
    spans: list[tuple[int, int, str]] = []
    sides: dict[str, dict[str, tuple[int, int]]] = {}
    for name, tensor in header.items():
        found = _check_tensor(name, tensor, size - end, checked)
        if found:
            shape, span = found
            spans.append((*span, name))
            if named := _LORA.fullmatch(name):
                sides.setdefault(named["module"], {})[named["part"]] = shape
    if len(spans) == len(header):  # else an error has said so, and where the others lie means little
        _check_layout(spans, size - end, checked)
    for module, parts in sides.items():
        _check_pair(module, parts, ranks, targets, checked)
    if targets and sides:
        trained = {module.rpartition(".")[2] for module in sides}
        for missing in sorted(set(targets) & set(MODULES) - trained):
            message = f"{missing} is among the target modules, and no tensor is for it: drop what belongs together"
            checked.add(CONFIG, "target_modules", "missing_tensors", message)


def _check_tensor(
    name: str, tensor: object, room: int, checked: CheckedAdapter
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """A tensor's shape and place; None, and an error, where it is not as it should be."""

    def wrong(code: str, message: str) -> None:
        checked.add(WEIGHTS, name, code, message)

    if not isinstance(tensor, dict):
        wrong("invalid_header", "the header should say what this tensor is; save the adapter anew")
        return None
    named = _LORA.fullmatch(name)
    if named is None:
        wrong("not_plain_lora", "no LoRA matrix (base_model.model.MODULE.lora_A.weight): train without it")
        return None
    if named["module"].rpartition(".")[2] not in MODULES:
        wrong("unsupported_module", f"its module cannot be served: train {', '.join(MODULES)} or some of them")
        return None
    item = ITEM_BYTES.get(str(tensor.get("dtype"))) if isinstance(tensor.get("dtype"), str) else None
    if item is None:
        wrong("unsupported_dtype", f"its dtype must be one of {', '.join(ITEM_BYTES)}: convert the adapter")
        return None
    shape, place = _pair(tensor.get("shape"), _LONGEST_SIDE), _pair(tensor.get("data_offsets"), room)
    if shape is None or 0 in shape:
        wrong("invalid_shape", f"a LoRA matrix has two sides, of 1 to {_LONGEST_SIDE:,}; save the adapter anew")
        return None
    if place is None or place[1] - place[0] != item * shape[0] * shape[1]:
        wrong("invalid_offsets", f"its bytes do not lie within the file's {room:,} as its shape says: upload all of it")
        return None
    checked.tensors += 1
    checked.parameters += shape[0] * shape[1]
    return shape, place


def _check_layout(spans: Iterable[tuple[int, int, str]], room: int, checked: CheckedAdapter) -> None:
    """The tensors fill the file, without overlapping and without a hole, as the format wants it."""
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            what = "overlaps the one before it" if begin < at else "leaves a hole before it"
            checked.add(WEIGHTS, name, "invalid_offsets", f"its place {what}: save the adapter anew")
            return
        at = end
    if at != room:
        message = f"its tensors end after {at:,} bytes, and {room:,} are there: save the adapter anew"
        checked.add(WEIGHTS, None, "invalid_offsets", message)


def _check_pair(
    module: str,
    parts: Mapping[str, tuple[int, int]],
    ranks: frozenset[int],
    targets: tuple[str, ...] | None,
    checked: CheckedAdapter,
) -> None:
    """``lora_A`` has rank rows, ``lora_B`` rank columns."""
    name = f"base_model.model.{module}"
    if len(parts) < 2:
        only = next(iter(parts))
        checked.add(WEIGHTS, name, "half_a_pair", f"lora_{only} is there without its other half: save the adapter anew")
        return
    rank, other = parts["A"][0], parts["B"][1]
    if rank != other or (ranks and rank not in ranks):
        said = " or ".join(map(str, sorted(ranks))) or "unknown"
        message = (
            f"lora_A is of rank {rank}, lora_B of rank {other}, and {CONFIG} says {said}: drop the two files that "
            "belong together"
        )
        checked.add(WEIGHTS, name, "rank_mismatch", message)
    if targets is not None and module.rpartition(".")[2] not in targets:
        message = f"{CONFIG} does not name its module in target_modules: drop the two files that belong together"
        checked.add(WEIGHTS, name, "module_mismatch", message)


def _pair(value: object, most: int) -> tuple[int, int] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    if not all(isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= most for number in value):
        return None
    return value[0], value[1]


def _object(text: bytes, limit: int) -> dict[str, Any]:
    if len(text) > limit:
        raise _Unreadable(f"it has {len(text):,} bytes, and {limit:,} at most are read")
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except _Unreadable:
        raise
    except (ValueError, RecursionError):
        raise _Unreadable("it is no JSON text") from None
    if not isinstance(value, dict):
        raise _Unreadable("it is no JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Unreadable("it has a key twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _Unreadable(f"{name} is no JSON")
