"""Tell a file that ends early from one that is damaged.

Pillow and pydicom report both by the same exceptions, and the same damage by different ones,
so the file itself is asked: whether the mark at its end is there, or whether the lengths that
it states reach beyond its end. Asked only of files whose decoding failed, because many sound
files have a missing mark or a wrong length that no decoder minds.
"""

import struct

import numpy as np

# Tags of a TIFF: where its strips or tiles begin, and how long they are.
STARTS, LENGTHS = (273, 324), (279, 325)
# Bytes per value of the TIFF types 1 to 12, and the types that offsets and lengths have.
TYPE_BYTES = dict(enumerate([1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8], start=1))
INTEGERS = {3: "u2", 4: "u4"}
ENTRY_BYTES = 12
BIG_TIFF = 43  # the version; that of other TIFF files is 42


def ends_early(data: bytes, format_name: str) -> bool:
    """Say whether a file that cannot be decoded has lost its end.

    A mark that stands in the lost part's place by chance, or a stated length that is itself
    damaged, misleads it.

    Args:
        data: Content of the file.
        format_name: As Pillow names it.

    Example:
        >>> ends_early(b"GIF89a and so on", "GIF"), ends_early(b"GIF89a and so on;", "GIF")
        (True, False)
    """
    if format_name == "JPEG":
        # A preview in the metadata has marks of its own, hence the last ones of either kind.
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if format_name == "PNG":
        return b"IEND" not in data
    if format_name == "GIF":
        return not data.rstrip(b"\0").endswith(b";")
    if format_name == "WEBP":
        return _stated_length(data, 4) + 8 > len(data)
    if format_name == "BMP":
        return _stated_length(data, 2) > len(data)
    return format_name == "TIFF" and _tiff_ends_early(data)


def _stated_length(data: bytes, position: int) -> int:
    """Read the length that a file states; one that is cut off lies beyond the end."""
    field = data[position : position + 4]
    return int.from_bytes(field, "little") if len(field) == 4 else len(data) + 1


def _tiff_ends_early(data: bytes) -> bool:
    order = "<" if data.startswith(b"II") else ">"
    if data[2:4] == struct.pack(f"{order}H", BIG_TIFF):
        return False  # its directory is another one, and rare: it counts as damaged
    entries = {}
    try:
        [directory] = struct.unpack_from(f"{order}I", data, 4)
        [num_entries] = struct.unpack_from(f"{order}H", data, directory)
        for number in range(num_entries):
            at = directory + 2 + ENTRY_BYTES * number
            tag, kind, count = struct.unpack_from(f"{order}HHI", data, at)
            size = TYPE_BYTES.get(kind, 1) * count
            at += 8
            if size > 4:  # the entry holds where the values stand
                [at] = struct.unpack_from(f"{order}I", data, at)
            if at + size > len(data):
                return True
            if tag in (*STARTS, *LENGTHS) and kind in INTEGERS:
                values = np.frombuffer(data, order + INTEGERS[kind], count, at)
                entries[tag] = values.astype(np.int64)
    except struct.error:
        return True
    return any(
        tag in entries and _reach_beyond(entries[tag], entries.get(of_tag), len(data))
        for tag, of_tag in zip(STARTS, LENGTHS, strict=True)
    )


def _reach_beyond(starts: np.ndarray, lengths: np.ndarray | None, end: int) -> bool:
    if lengths is None or len(lengths) != len(starts):
        lengths = np.zeros_like(starts)
    return bool((starts + lengths > end).any())
