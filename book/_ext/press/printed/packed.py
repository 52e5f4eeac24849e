"""A printed PDF made small: its many little objects packed together and compressed.

Chromium writes the structure that screen readers use as a million objects of plain
text.  Since PDF 1.5 objects can share compressed streams; nothing is lost by it.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Iterator

TOGETHER = 400  # objects in a stream
OBJECT = re.compile(rb"\s*\d+ 0 obj\s*(.*?)\s*endobj\s*\Z", re.S)
END = re.compile(rb"startxref\s+(\d+)\s+%%EOF\s*\Z")

Place = tuple[int, int, int]  # in the file: 1, offset, 0; in a stream: 2, its number, k


def packed(data: bytes, about: dict[str, str]) -> bytes:
    """Return a PDF with its objects packed, and with new words about itself.

    Args:
        data: As Chromium prints it: one table of objects, none of them encrypted.
        about: Title, Author, … of the document.

    Raises:
        ValueError: It is not such a file, or an object of it is not read.
    """
    found, root, info = objects(data)
    found[info] = words(about)
    found[root] = found[root].replace(
        b"/Type /Catalog", b"/Type /Catalog\n/PageMode /UseOutlines", 1
    )
    made = bytearray(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
    places: dict[int, Place] = {0: (0, 0, 65535)}
    small = {k: v for k, v in found.items() if not v.endswith(b"endstream")}
    for key in found.keys() - small.keys():
        places[key] = put(made, key, found[key])
    number = max(found) + 1
    for group in grouped(sorted(small)):
        places[number] = put(made, number, together(group, small))
        places |= {key: (2, number, k) for k, key in enumerate(group)}
        number += 1
    return finished(made, places, number, root, info)


def objects(data: bytes) -> tuple[dict[int, bytes], int, int]:
    """Return the objects of a file by their number, and those of Root and Info."""
    end = END.search(data[-2000:])
    start = int(end[1]) if end else 0
    head = re.match(rb"xref\s+0 (\d+)\s", data[start : start + 100])
    root, info = (re.search(rb"/%s (\d+) 0 R" % key, data[start:])
                  for key in (b"Root", b"Info"))  # fmt: skip
    if not (head and root and info):
        raise ValueError("data must be a PDF with one plain table of objects")
    first = start + head.end()
    lines = [data[first + 20 * k : first + 20 * (k + 1)] for k in range(int(head[1]))]
    at = {k: int(line[:10]) for k, line in enumerate(lines) if line[17:18] == b"n"}
    order = [*sorted(at.values()), start]
    after = dict(itertools.pairwise(order))
    found = {k: OBJECT.match(data[i : after[i]]) for k, i in at.items()}
    if lost := [k for k, match in found.items() if not match]:
        raise ValueError(f"these objects of the PDF are not read: {lost[:9]}")
    return {k: m[1] for k, m in found.items() if m}, int(root[1]), int(info[1])


def words(about: dict[str, str]) -> bytes:
    """Return the dictionary of what a document says of itself."""
    pairs = [f"/{key} <feff{text.encode('utf-16-be').hex()}>"
             for key, text in about.items()]  # fmt: skip
    return f"<<{' '.join(pairs)}>>".encode()


def grouped(keys: list[int]) -> Iterator[list[int]]:
    """Yield the numbers of the objects that share a stream."""
    for k in range(0, len(keys), TOGETHER):
        yield keys[k : k + TOGETHER]


def together(group: list[int], bodies: dict[int, bytes]) -> bytes:
    """Return the stream of some objects."""
    head, body = b"", b""
    for key in group:
        head += b"%d %d " % (key, len(body))
        body += bodies[key] + b"\n"
    return stream(
        b"/Type /ObjStm /N %d /First %d" % (len(group), len(head)), head + body
    )


def stream(about: bytes, body: bytes) -> bytes:
    """Return a compressed stream."""
    data = zlib.compress(body, 9)
    about += b" /Filter /FlateDecode /Length %d" % len(data)
    return b"<<%s>>\nstream\n%s\nendstream" % (about, data)


def put(made: bytearray, key: int, body: bytes) -> Place:
    """Write an object; return its place."""
    place = (1, len(made), 0)
    made += b"%d 0 obj\n%s\nendobj\n" % (key, body)
    return place


def finished(
    made: bytearray, places: dict[int, Place], number: int, root: int, info: int
) -> bytes:
    """Return the file with its table of objects, itself object ``number``."""
    start = len(made)
    places[number] = (1, start, 0)
    table = b"".join(
        struct.pack(">BIH", *places.get(k, (0, 0, 0))) for k in range(number + 1)
    )
    about = b"/Type /XRef /Size %d /W [1 4 2] /Root %d 0 R /Info %d 0 R"
    body = stream(about % (number + 1, root, info), table)
    put(made, number, body)
    return bytes(made) + b"startxref\n%d\n%%%%EOF\n" % start
