"""Fetching an adapter: the files that some fine-tuning services hand out with a job's checkpoints, brought home."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tunedrop.bucket import Bucket
from tunedrop.errors import Transient
from tunedrop.provider import Provider
from tunedrop.runs import CONFIG, WEIGHTS

MAX_CONFIG_BYTES = 1 << 20
# https://github.com/huggingface/safetensors#format: 8 bytes that count the header's, the header as JSON, the tensors.
MAX_HEADER_BYTES = 16 << 20


def find_adapter(checkpoints: Sequence[Mapping[str, Any]], provider: Provider) -> dict[str, str] | None:
    """The ids of the last adapter's files by their names; None where no checkpoint has both of them.

    Raises what :meth:`~tunedrop.provider.Provider.file` does.
    """
    for checkpoint in sorted(checkpoints, key=_step, reverse=True):
        listed = checkpoint.get("result_files")
        ids = [file_id for file_id in listed if isinstance(file_id, str)] if isinstance(listed, list) else []
        names = {provider.file(file_id).name.rpartition("/")[2]: file_id for file_id in ids}
        if CONFIG in names and WEIGHTS in names:
            return {name: names[name] for name in (CONFIG, WEIGHTS)}
    return None


def fetch_config(key: str, file_id: str, provider: Provider, bucket: Bucket) -> str:
    """Copies the adapter's configuration into the bucket, as ``key``, which it answers."""
    text = b""
    for chunk in provider.chunks(file_id):
        text += chunk
        if len(text) > MAX_CONFIG_BYTES:
            raise Transient(f"{CONFIG} has more than {MAX_CONFIG_BYTES} bytes")
    _object(text, CONFIG)
    bucket.write(key, text, "application/json")
    return key


def fetch_weights(key: str, file_id: str, provider: Provider, bucket: Bucket, deadline: float) -> str:
    """Copies the adapter's weights into the bucket, as ``key``, while they are read; answers the key.

    Memory does not grow with them, and the object is there only once all of them are.

    Raises:
        Transient: they do not come whole, or not before ``deadline`` of the monotonic clock.
    """
    bucket.write_stream(key, _whole(_until(provider.chunks(file_id), deadline)), "application/octet-stream")
    return key


def _step(checkpoint: Mapping[str, Any]) -> int:
    step = checkpoint.get("step_number")
    return step if isinstance(step, int) else 0


def _until(chunks: Iterable[bytes], deadline: float, clock: Callable[[], float] = time.monotonic) -> Iterator[bytes]:
    for chunk in chunks:
        if clock() > deadline:
            raise Transient("the adapter takes longer to fetch than the run has")
        yield chunk


def _whole(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Hands the chunks of a safetensors file on; raises at the end of one that is cut short, or is none."""
    start, expected, size = b"", None, 0
    for chunk in chunks:
        size += len(chunk)
        if expected is None:
            start += chunk
            expected = _size_told(start)
            if expected is not None:
                start = b""
        yield chunk
    if size != expected:
        raise Transient(f"{WEIGHTS} ended after {size} bytes, which is not where its header says")


def _size_told(start: bytes) -> int | None:
    """The file's size as its header tells it; None while the header is not read to its end."""
    length = int.from_bytes(start[:8], "little")
    if len(start) >= 8 and length > MAX_HEADER_BYTES:
        raise Transient(f"{WEIGHTS} does not begin as such a file does")
    if len(start) < 8 or len(start) < 8 + length:
        return None
    tensors = _object(start[8 : 8 + length], WEIGHTS)
    try:
        ends = [int(tensor["data_offsets"][1]) for name, tensor in tensors.items() if name != "__metadata__"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Transient(f"the header of {WEIGHTS} does not say where its tensors are") from error
    return 8 + length + max(ends, default=0)


def _object(text: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Transient(f"{name} does not hold the JSON object that it should")
    return value
