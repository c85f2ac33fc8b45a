"""What the first bytes of a file give away."""

from __future__ import annotations

#: Bytes that suffice to recognise every opening below.
ENOUGH = 6

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


def compression(opening: bytes) -> str | None:
    """The name of the compression that a file begins with, None where it begins with none that is known."""
    return next((name for magic, name in _COMPRESSED.items() if opening.startswith(magic)), None)


def is_wide(opening: bytes) -> bool:
    """Whether a file says of itself that it is UTF-16 or UTF-32."""
    return opening.startswith(_WIDE)
