"""Files and uploads in parts. The caller holds the lock of `State` around everything here but the writing of bytes."""

import hashlib
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from local.provider.shapes import ApiError


class Incoming:
    """A new file on disk that keeps its size and digests while it is written; what a form parser streams into."""

    def __init__(self, path: Path, filename: str | None = None) -> None:
        self.path = path
        self.filename = filename
        self.bytes = 0
        self._file: BinaryIO = path.open("w+b")
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Append."""
        self._sha256.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move; the form parser goes back to the start once it is done."""
        return self._file.seek(offset, whence)

    def close(self) -> None:
        """Leave the bytes on disk."""
        self._file.close()

    def discard(self) -> None:
        """Remove the bytes from the disk."""
        self.close()
        self.path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """The digest of what was written so far."""
        return self._sha256.hexdigest()


@dataclass
class StoredFile:
    """A file of the Files API."""

    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    path: Path
    created_at: float
    processed_at: float
    listed_from: float
    expires_at: float | None = None

    def expired(self, now: float) -> bool:
        """Tell whether the service has removed it."""
        return self.expires_at is not None and self.expires_at <= now

    def view(self, now: float, unprocessed: str = "uploaded") -> dict[str, Any]:
        """Return the `file` object; `unprocessed` is the status of one that is not processed yet."""
        view = {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed" if now >= self.processed_at else unprocessed,
            "status_details": None,
        }
        return view if self.expires_at is None else view | {"expires_at": int(self.expires_at)}


@dataclass
class Upload:
    """A file that arrives in parts."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: float
    expires_at: float
    expires_after: dict[str, Any] | None
    status: str = "pending"
    parts: dict[str, Incoming] = field(default_factory=dict)
    file: StoredFile | None = None

    def view(self, now: float) -> dict[str, Any]:
        """Return the `upload` object."""
        return {
            "id": self.id,
            "object": "upload",
            "bytes": self.bytes,
            "created_at": int(self.created_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.status,
            "expires_at": int(self.expires_at),
            "file": self.file.view(now) if self.file else None,
        }

    def require_pending(self, now: float) -> None:
        """Raise `ApiError` unless parts may still come."""
        if self.status == "pending" and now >= self.expires_at:
            self.end("expired")
        if self.status != "pending":
            raise ApiError(400, f"Upload {self.id} is {self.status}.", param="upload_id")

    def chosen(self, part_ids: list[str]) -> list[Incoming]:
        """Return the named parts in order; raise `ApiError` unless they exist and add up to the announced size."""
        unknown = next((part_id for part_id in part_ids if part_id not in self.parts), None)
        if unknown or len(set(part_ids)) < len(part_ids):
            why = f"Part {unknown} is not of this upload." if unknown else "A part is named twice."
            raise ApiError(400, why, param="part_ids", code="invalid_value")
        parts = [self.parts[part_id] for part_id in part_ids]
        size = sum(part.bytes for part in parts)
        if size != self.bytes:
            raise ApiError(400, f"The parts hold {size} bytes, {self.bytes} were announced.", param="part_ids")
        return parts

    def end(self, status: str) -> None:
        """Take no more parts and free those that came."""
        self.status = status
        for part in self.parts.values():
            part.discard()
        self.parts.clear()


def join(parts: Iterable[Incoming], into: Incoming) -> str:
    """Write the parts one after the other and return the MD5 of the whole."""
    md5 = hashlib.md5(usedforsecurity=False)
    for part in parts:
        with part.path.open("rb") as source:
            while block := source.read(shutil.COPY_BUFSIZE):
                md5.update(block)
                into.write(block)
    into.close()
    return md5.hexdigest()
