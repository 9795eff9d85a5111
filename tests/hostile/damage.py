"""What can be wrong with a file, as tables: an id, and what does the damage.

The tests put each of these where pare reads something; the fuzzers begin with them.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Damage = Callable[[Path], object]
"""Does something to the file at this path, which is there and whole."""


def content(data: bytes) -> Damage:
    return lambda path: path.write_bytes(data)


def changed(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def instead(make: Callable[[Path], object]) -> Damage:
    """Something else under the file's name."""

    def damage(path: Path) -> None:
        if path.exists():
            path.unlink()
        make(path)

    return damage


def sparse(size: int) -> Damage:
    """A file of so many zeros that take no room."""

    def damage(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return damage


# --- what is no file -----------------------------------------------------------------------

NO_FILES: dict[str, Damage] = {
    "folder": instead(Path.mkdir),
    "fifo": instead(os.mkfifo),
    "missing": instead(lambda path: None),
    "dangling-link": instead(lambda path: path.symlink_to("nowhere")),
    "link-to-itself": instead(lambda path: path.symlink_to(path.name)),
    "dev-zero": instead(lambda path: path.symlink_to("/dev/zero")),
    "dev-null": instead(lambda path: path.symlink_to("/dev/null")),
    "dev-full": instead(lambda path: path.symlink_to("/dev/full")),
}

# --- JSON ----------------------------------------------------------------------------------

JSON: dict[str, Damage] = {
    "empty": content(b""),
    "blank": content(b" \n\t "),
    "brace": content(b"{"),
    "array": content(b"[]"),
    "null": content(b"null"),
    "number": content(b"3"),
    "string": content(b'"{}"'),
    "byte-order-mark": changed(lambda data: b"\xef\xbb\xbf" + data),
    "utf-16": changed(lambda data: data.decode().encode("utf-16")),
    "latin-1": changed(lambda data: data.replace(b"{", '{"é": 1,'.encode("latin-1"), 1)),
    "deep-arrays": content(b"[" * 200_000),
    "deep-objects": content(b'{"a":' * 200_000),
    "deep-value": changed(
        lambda d: d.replace(b"{", b'{"x":' + b"[" * 9000 + b"]" * 9000 + b",", 1)
    ),
    "long-number": changed(lambda data: data.replace(b"{", b'{"x": ' + b"9" * 5000 + b",", 1)),
    "garbage-behind": changed(lambda data: data + b"}"),
    "nul-inside": changed(lambda data: data[:9] + b"\0" + data[9:]),
    "single-quotes": changed(lambda data: data.replace(b'"', b"'")),
    "trailing-comma": changed(lambda data: data.rstrip().removesuffix(b"}") + b",}"),
    "half": changed(lambda data: data[: len(data) // 2]),
    "five-gigabytes": sparse(5 * 2**30),
    "image": content(b"\x89PNG\r\n\x1a\n" + bytes(40)),
    "web-page": content(b"<!DOCTYPE html><html><body>404</body></html>"),
    "lfs-pointer": content(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
}

# --- safetensors -----------------------------------------------------------------------------

Header = dict[str, Any]


def read_safetensors(data: bytes) -> tuple[Header, bytes]:
    """(the table, the numbers)"""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def safetensors(header: Header | bytes, numbers: bytes = b"", *, size: int | None = None) -> bytes:
    """A file with this header; `size` is what it says of the header's length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + numbers


def says(**changes: object) -> Damage:
    """The table says something else about one of the tensors."""

    def change(data: bytes) -> bytes:
        header, numbers = read_safetensors(data)
        name = max((n for n in header if n != "__metadata__"), key=lambda n: end(header, n))
        header[name] = {k: v for k, v in (header[name] | changes).items() if v is not ...}
        return safetensors(header, numbers)

    return changed(change)


def end(header: Header, name: str) -> int:
    return int(header[name]["data_offsets"][1])


def moved(by: Callable[[list[int]], list[int]]) -> Damage:
    """The last tensor lies elsewhere."""

    def change(data: bytes) -> bytes:
        header, numbers = read_safetensors(data)
        name = max((n for n in header if n != "__metadata__"), key=lambda n: end(header, n))
        header[name]["data_offsets"] = by(header[name]["data_offsets"])
        return safetensors(header, numbers)

    return changed(change)


def table(change: Callable[[Header], Header]) -> Damage:
    def damage(data: bytes) -> bytes:
        header, numbers = read_safetensors(data)
        return safetensors(change(header), numbers)

    return changed(damage)


def header_text(change: Callable[[bytes], bytes], more: int = 0) -> Damage:
    """Another text for the table, which is said to be `more` bytes longer than it is."""

    def damage(data: bytes) -> bytes:
        header, numbers = read_safetensors(data)
        text = change(json.dumps(header).encode())
        return safetensors(text, numbers, size=len(text) + more)

    return changed(damage)


def with_length(size: int) -> Damage:
    return changed(lambda data: struct.pack("<Q", size) + data[8:])


NO_BYTES = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

SAFETENSORS: dict[str, Damage] = {
    "empty": content(b""),
    "seven-bytes": content(bytes(7)),
    "eight-zeros": content(bytes(8)),
    "length-2-to-60": with_length(2**60),
    "length-2-to-63": with_length(2**63),
    "length-2-to-64": with_length(2**64 - 1),
    "length-one-more": changed(
        lambda d: struct.pack("<Q", struct.unpack("<Q", d[:8])[0] + 1) + d[8:]
    ),
    "length-of-the-file": changed(lambda data: struct.pack("<Q", len(data)) + data[8:]),
    "header-array": content(safetensors(b"[]")),
    "header-null": content(safetensors(b"null")),
    "header-empty-object": content(safetensors(b"{}")),
    "header-half": header_text(lambda text: text[: len(text) // 2]),
    "header-latin-1": header_text(lambda text: text.replace(b"conv", b"c\xf6nv")),
    "header-bom": header_text(lambda text: b"\xef\xbb\xbf" + text),
    "header-utf-16": header_text(lambda text: text.decode().encode("utf-16")),
    "header-deep": content(safetensors(b'{"a":' * 100_000)),
    "header-deep-arrays": content(safetensors(b"[" * 300_000)),
    "header-nul": header_text(lambda text: text.replace(b"{", b"{\0", 1)),
    "header-spaces": content(safetensors(b" " * 2_000_000)),
    "header-wide": content(safetensors({f"t{k}": NO_BYTES for k in range(20_000)})),
    "offsets-beyond-the-end": moved(lambda place: [place[0] + 64, place[1] + 64]),
    "offsets-far-beyond": moved(lambda place: [2**62, 2**62 + place[1] - place[0]]),
    "offsets-overflow": moved(lambda place: [2**64 - 8, 2**64 + place[1] - place[0] - 8]),
    "offsets-backwards": moved(lambda place: place[::-1]),
    "offsets-overlap": moved(lambda place: [place[0] - 32, place[1] - 32]),
    "offsets-same-as-another": moved(lambda place: [0, place[1] - place[0]]),
    "offsets-negative": moved(lambda place: [-place[1], -place[0]]),
    "offsets-fractions": moved(lambda place: [place[0] + 0.5, place[1] + 0.5]),  # type: ignore[list-item]
    "offsets-three": moved(lambda place: [*place, place[1]]),
    "offsets-strings": says(data_offsets=["0", "4"]),
    "offsets-missing": says(data_offsets=...),
    "dtype-unknown": says(dtype="F31"),
    "dtype-lower-case": says(dtype="f32"),
    "dtype-number": says(dtype=32),
    "dtype-missing": says(dtype=...),
    "dtype-too-wide": says(dtype="F64"),
    "dtype-too-narrow": says(dtype="F16"),
    "dtype-integer": says(dtype="I32"),
    "dtype-unsigned": says(dtype="U32"),
    "shape-negative": says(shape=[-4]),
    "shape-fraction": says(shape=[1.5]),
    "shape-string": says(shape="4"),
    "shape-missing": says(shape=...),
    "shape-scalar": says(shape=[]),
    "shape-larger": says(shape=[2**40]),
    "shape-overflows": says(shape=[2**32, 2**32, 2**32]),
    "shape-overflows-to-right": says(shape=[2**32, 2**32, 0]),
    "shape-zero": says(shape=[0, 2**60]),
    "shape-thousand-dimensions": says(shape=[1] * 1000),
    "key-twice": header_text(lambda text: text.replace(b"{", b'{"conv_in.bias": 1,', 1)),
    "entry-null": table(lambda header: header | {"conv_in.bias": None}),
    "entry-array": table(lambda header: header | {"conv_in.bias": []}),
    "metadata-array": table(lambda header: header | {"__metadata__": []}),
    "metadata-numbers": table(lambda header: header | {"__metadata__": {"format": 1}}),
    "metadata-deep": table(lambda header: header | {"__metadata__": {"a": {"b": {}}}}),
    "name-empty": table(lambda header: header | {"": NO_BYTES}),
    "name-escape": table(lambda header: header | {"\x1b[2J\n\0": NO_BYTES}),
    "name-right-to-left": table(lambda header: header | {"\u202egnp.exe": NO_BYTES}),
    "name-surrogate": header_text(lambda text: text.replace(b"{", b'{"\\ud800": 1,', 1)),
    "name-megabyte": table(lambda header: header | {"n" * 1_000_000: NO_BYTES}),
    "one-byte-less": changed(lambda data: data[:-1]),
    "one-byte-more": changed(lambda data: data + b"\0"),
    "half": changed(lambda data: data[: len(data) // 2]),
    "header-alone": changed(lambda data: data[: 8 + struct.unpack("<Q", data[:8])[0]]),
    "zeros": changed(lambda data: bytes(len(data))),
    "gigabytes-of-zeros": sparse(9 * 2**30),
    "web-page": JSON["web-page"],
    "lfs-pointer": JSON["lfs-pointer"],
    "image": JSON["image"],
    "zip": content(b"PK\x05\x06" + bytes(18)),
    "gguf": content(b"GGUF" + bytes(40)),
    "pickle": content(pickle.dumps({"a": 1}, protocol=2)),
}

# --- pickles -----------------------------------------------------------------------------------


def archive(
    data: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    name: str = "archive/data.pkl",
    compressed: bool = False,
    more: Mapping[str, bytes] | None = None,
) -> Damage:
    """A zip as `torch.save` writes it, around this pickle."""

    def damage(path: Path) -> None:
        kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", kind) as file:
            file.writestr(name, data)
            file.writestr("archive/version", "3\n")
            file.writestr("archive/byteorder", "little")
            for key, stored in (storages or {}).items():
                file.writestr(f"archive/data/{key}", stored)
            for key, stored in (more or {}).items():
                file.writestr(key, stored)

    return damage


def call(function: str, arguments: bytes) -> bytes:
    """A pickle of {"a": function(*arguments)}; `arguments` are opcodes between marks."""
    module, _, name = function.rpartition(".")
    called = b"c" + f"{module}\n{name}\n".encode() + b"(" + arguments + b"tR"
    return b"\x80\x02}" + text("a") + called + b"s."


def text(word: str) -> bytes:
    data = word.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def whole(number: int) -> bytes:
    data = number.to_bytes((number.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def storage(numel: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """A reference to a storage of the archive."""
    parts = text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu")
    return b"(" + parts + whole(numel) + b"tQ"


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def tensor(
    size: tuple[int, ...], stride: tuple[int, ...], *, numel: int = 4, offset: int = 0
) -> bytes:
    """A pickle of {"a": a tensor of this shape in a storage of 4 numbers}."""
    rest = storage(numel) + whole(offset) + numbers(*size) + numbers(*stride)
    empty = b"ccollections\nOrderedDict\n)R"
    return call("torch._utils._rebuild_tensor_v2", rest + b"\x89" + empty)


FOUR = {"0": struct.pack("<4f", 1, 2, 3, 4)}


def exponential(depth: int = 60) -> bytes:
    """{t: 1} for a tuple of tuples of tuples …, which takes 2**depth steps to hash."""
    doubled = b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(1, depth + 1))
    return b"\x80\x02}" + b")" + doubled + b"K\x01s."


def colliding(count: int) -> bytes:
    """A dictionary of integers that all have one hash: multiples of 2**61 - 1."""
    keys = (b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") for k in range(count))
    return b"\x80\x02}(" + b"".join(key + b"N" for key in keys) + b"u."


def colliding_tuples(count: int, *, in_a_set: bool = False) -> bytes:
    """The same of tuples: -1 and -2 have one hash, and so have all tuples of them."""
    bits = max(1, (count - 1).bit_length())
    tuples = (
        b"(" + b"".join(whole(-1 - (k >> bit & 1)) for bit in range(bits)) + b"t"
        for k in range(count)
    )
    if in_a_set:
        return call("builtins.set", b"](" + b"".join(tuples) + b"e")
    return b"\x80\x02}(" + b"".join(one + b"N" for one in tuples) + b"u."


def encodings(count: int) -> bytes:
    """A megabyte of text, encoded `count` times."""
    word = text("x" * 2**20) + b"q\x01" + text("latin1") + b"q\x02" + b"00"
    one = b"c_codecs\nencode\nh\x01h\x02\x86R0"
    return b"\x80\x02" + word + one * count + b"}."


class Runs:
    """Makes a folder when it is unpickled by whoever runs code."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.name,)


PICKLES: dict[str, Damage] = {
    "empty": content(b""),
    "one-byte": content(b"P"),
    "pk": content(b"PK\x03\x04"),
    "half": changed(lambda data: data[: len(data) // 2]),
    "end-missing": changed(lambda data: data[:-40]),
    "zeros-inside": changed(lambda data: data[:200] + bytes(200) + data[400:]),
    "bare-pickle": content(pickle.dumps({"a": 1}, protocol=2)),
    "bare-pickle-with-code": content(pickle.dumps(Runs("it-ran"), protocol=2)),
    "text-pickle": content(pickle.dumps(Runs("it-ran"), protocol=0)),
    "code": archive(pickle.dumps({"a": Runs("it-ran")}, protocol=2)),
    "code-protocol-4": archive(pickle.dumps({"a": Runs("it-ran")}, protocol=4)),
    "code-protocol-0": archive(pickle.dumps({"a": Runs("it-ran")}, protocol=0)),
    "code-as-key": archive(pickle.dumps({Runs("it-ran"): 1}, protocol=2)),
    "os-system": archive(call("os.system", text("mkdir it-ran"))),
    "posix-system": archive(call("posix.system", text("mkdir it-ran"))),
    "builtins-eval": archive(call("builtins.eval", text("1"))),
    "py2-eval": archive(call("__builtin__.eval", text("1"))),
    "getattr": archive(call("builtins.getattr", text("a") + text("b"))),
    "subprocess": archive(call("subprocess.Popen", text("true"))),
    "torch-load": archive(call("torch.load", text("x"))),
    "hub-load": archive(call("torch.hub.load", text("x") + text("y"))),
    "numpy-load": archive(call("numpy.load", text("x"))),
    "inst-opcode": archive(b"\x80\x02(" + text("mkdir it-ran") + b"ios\nsystem\n."),
    "obj-opcode": archive(b"\x80\x02(cos\nsystem\n" + text("mkdir it-ran") + b"o."),
    "extension-opcode": archive(b"\x80\x02\x82\x01."),
    "much-memory-bytearray": archive(call("builtins.bytearray", whole(2**37))),
    "much-memory-tensor": archive(call("torch.FloatTensor", whole(2**37))),
    "counter": archive(call("collections.Counter", text("a"))),
    "device": archive(call("torch.device", text("cuda"))),
    "number": archive(b"\x80\x02K\x01."),
    "none": archive(b"\x80\x02N."),
    "list": archive(b"\x80\x02]."),
    "empty-dict": archive(b"\x80\x02}."),
    "empty-pickle": archive(b""),
    "stack-empty": archive(b"\x80\x02."),
    "pop-of-nothing": archive(b"\x80\x02ss."),
    "memo-missing": archive(b"\x80\x02h\x07."),
    "unhashable-key": archive(b"\x80\x02}]K\x01s."),
    "number-keys": archive(b"\x80\x02}K\x01K\x02s."),
    "surrogate-key": archive(b"\x80\x02}" + text("\ud800\x1b[2J") + b"K\x01s."),
    "dict-in-itself": archive(b"\x80\x02}q\x01" + text("state_dict") + b"h\x01s."),
    "long-number": archive(b"\x80\x02}" + text("epoch") + whole(2**2000) + b"s."),
    "exponential-key": archive(exponential()),
    "protocol-9": archive(b"\x80\x09}."),
    "persistent-string": archive(b"\x80\x02" + text("x") + b"Q."),
    "persistent-module": archive(b"\x80\x02(" + text("module") + b"tQ."),
    "storage-missing": archive(tensor((4,), (1,))),
    "storage-short": archive(tensor((4,), (1,), numel=4), {"0": bytes(8)}),
    "storage-key-a-path": archive(
        b"\x80\x02}" + text("a") + storage(4, "../../../../etc/passwd") + b"s."
    ),
    "storage-said-longer": archive(tensor((4,), (1,), numel=2**40), FOUR),
    "storage-negative": archive(tensor((4,), (1,), numel=-4), FOUR),
    "tensor-beyond": archive(tensor((8,), (1,)), FOUR),
    "tensor-offset": archive(tensor((4,), (1,), offset=2**40), FOUR),
    "tensor-negative-offset": archive(tensor((4,), (1,), offset=-4), FOUR),
    "tensor-negative-size": archive(tensor((-4,), (1,)), FOUR),
    "tensor-negative-stride": archive(tensor((4,), (-1,)), FOUR),
    "tensor-sizes-overflow": archive(tensor((2**32, 2**32, 2**32), (1, 1, 1)), FOUR),
    "tensor-stride-0": archive(tensor((2**20, 2**20), (0, 0)), FOUR),
    "tensor-rank": archive(tensor((2, 2), (1,)), FOUR),
    "tensor-stride-0-one-row": archive(
        tensor((75, 2**24), (0, 0)).replace(text("a"), text("emb_params")), FOUR
    ),
    "pickle-in-two-cases": archive(
        b"\x80\x02}.", more={"archive/DATA.PKL": call("builtins.bytearray", whole(2**33))}
    ),
    "pickle-in-two-folders": archive(
        b"\x80\x02}.", name="b/data.pkl", more={"archive/DATA.PKL": b"\x80\x02}."}
    ),
    "storage-in-two-cases": archive(
        tensor((4,), (1,)), {"a": FOUR["0"]} | FOUR, more={"archive/data/A": FOUR["0"]}
    ),
    "blocked-module": archive(call("sys.exit", b"")),
    "reduce-of-a-tensor": archive(b"\x80\x02}" + text("a") + text("b") + b")Rs."),
    "colliding-keys": archive(colliding(200_000)),
    "colliding-tuples": archive(colliding_tuples(20_000)),
    "colliding-in-a-set": archive(colliding_tuples(20_000, in_a_set=True)),
    "one-byte-opcodes": archive(b"\x80\x02" + b"N" * (15 * 2**20) + b"."),
    "opcodes-and-pops": archive(b"\x80\x02" + b"N0" * (7 * 2**20) + b"N."),
    "encoded-again-and-again": archive(encodings(100_000)),
    "two-pickles": archive(b"\x80\x02}.", more={"b/data.pkl": b"\x80\x02}."}),
    "no-pickle": archive(b"x", name="readme.txt"),
    "pickle-elsewhere": archive(b"\x80\x02}.", name="../data.pkl"),
    "zip-bomb": archive(bytes(100_000_000), compressed=True),
    "large-pickle": archive(bytes(17 * 2**20)),
    "web-page": JSON["web-page"],
    "image": JSON["image"],
    "rar": content(b"Rar!\x1a\x07\x00" + bytes(30)),
    "gzip": content(b"\x1f\x8b" + bytes(30)),
    "zeros": content(bytes(4096)),
    "gigabytes-of-zeros": sparse(9 * 2**30),
}


def copy(path: Path, to: Path) -> Path:
    return Path(shutil.copy(path, to))
