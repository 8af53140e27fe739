"""Names and numbers of objects."""

from __future__ import annotations

import hashlib

NO_SURVEY_KEYS = (-1, -1, -1)
_BITS = (16, 20, 22)  # of release, brickid, objid in a TARGETID
_HASHED = 1 << 62
_HASH_BITS = (1 << 61) - 1


def survey_keys(release: float, brickid: float, objid: float) -> tuple[int, int, int]:
    """Release, brickid and objid as integers, or −1 for all three when one of them is unknown or out of its range."""
    keys = (release, brickid, objid)
    if all(0 <= key < 1 << bits and key % 1 == 0 for key, bits in zip(keys, _BITS, strict=True)):  # false for NaN
        return int(release), int(brickid), int(objid)
    return NO_SURVEY_KEYS


def target_id(release: int, brickid: int, objid: int) -> int:
    """DESI's TARGETID: objid in bits 0–21, brickid in bits 22–41, release in bits 42–57; ValueError out of range."""
    if survey_keys(release, brickid, objid) == NO_SURVEY_KEYS:
        raise ValueError(f"release {release}, brickid {brickid}, objid {objid} do not fit 16, 20 and 22 bits")
    return (release << 42) | (brickid << 22) | objid


def printable(name: str) -> str:
    """A file name as text that can be written: bytes of it that are no UTF-8 become \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode()


def hashed_id(source_name: str) -> int:
    """An id for an object without survey keys: a 61-bit hash of its stable source name, with bit 62 set."""
    digest = hashlib.blake2b(source_name.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") & _HASH_BITS) | _HASHED
