"""What an attacker, or a bad disk, makes of a build's files: a seeded generator of mutations.

bytes of any file -> flipped, cut, doubled, moved, replaced by odd ones
JSON              -> values, keys and whole branches replaced, also by what no JSON may hold
ONNX              -> fields of the protobuf messages: paths of external data, shapes, types, operators, order
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import onnx

PATHS = (
    "../secret",
    "../../etc/passwd",
    "/etc/passwd",
    "onnx/../../secret",
    "C:\\secret",
    "C:secret",
    "..\\secret",
    "onnx\\embed_tokens.onnx",
    "./config.json",
    "onnx//embed_tokens.onnx",
    "onnx/",
    "",
    ".",
    "..",
    "config.json\0.txt",
    "CONFIG.JSON",
    "ONNX/embed_tokens.onnx",
    "con",
    "onnx/nul.onnx",
    "config.json ",
    "config.json.",
    "link.json",
    "folder",
    "pipe",
    "manifest.json",
    "MANIFEST.json",
    "manifest.sig",
    "ﬁle",
    "confi\u0261.json",
    "~/.ssh/id_rsa",
    "file:///etc/passwd",
    "a" * 300,
    "/".join("a" * 40),
    "*/_ORT_MEM_ADDR_/*",
    "line\nbreak",
    "\ud800",
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "0",
    "a" * 100_000,
    "\u0000",
    "\u202e",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"": None},
)


def mutated_bytes(data: bytes, generator: random.Random) -> bytes:
    """One to four changes that know nothing of the format."""
    content = bytearray(data)
    for _ in range(generator.choice((1, 1, 2, 4))):
        place = generator.randrange(len(content) + 1)
        end = min(len(content), place + generator.choice((1, 2, 8, 64, 1024)))
        kind = generator.randrange(7)
        if kind == 0 and content:
            content[place % len(content)] ^= 1 << generator.randrange(8)
        elif kind == 1 and content:
            content[place % len(content)] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5C, 0x0A))
        elif kind == 2:
            del content[place:]
        elif kind == 3:
            del content[place:end]
        elif kind == 4:
            content[place:place] = content[place:end]
        elif kind == 5:
            content[place:place] = generator.randbytes(generator.choice((1, 4, 40)))
        else:
            other = generator.randrange(len(content) + 1)
            content[place:end] = content[other : other + end - place]
    return bytes(content)


def mutated_json(data: bytes, generator: random.Random) -> bytes:
    """Changes of the value, of its text, or of its bytes."""
    kind = generator.randrange(10)
    if kind == 0:
        return mutated_bytes(data, generator)
    if kind == 1:
        return _odd_text(data, generator)
    value = json.loads(data)
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        value = _changed(value, generator)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _odd_text(data: bytes, generator: random.Random) -> bytes:
    """Texts that `json.dumps` does not write."""
    text = data.decode()
    depth = generator.choice((20, 100, 1000, 200_000))
    return generator.choice(
        (
            lambda: text.encode("utf-16"),
            lambda: b"\xef\xbb\xbf" + data,
            lambda: data + data,
            lambda: data.replace(b"{", b'{"kind": "build", "kind": "run", ', 1),
            lambda: _doubled(text, generator).encode(),
            lambda: data.replace(b"{", b'{"x": ' + b"[" * depth + b"]" * depth + b", ", 1),
            lambda: data.replace(b"{", b'{"x": ' + b"[" * depth + b", ", 1),
            lambda: data.replace(b"{", b'{"x": 1' + b"0" * depth + b", ", 1),
            lambda: data.replace(b"{", b'{"x": 1e' + b"9" * 20 + b", ", 1),
            lambda: data.replace(b"{", b'{"x": NaN, ', 1),
            lambda: data.replace(b"{", b'{"\\ud800": 1, ', 1),
            lambda: data.replace(b"{", b'{"\xff": 1, ', 1),
            lambda: b" " * 20_000_000,
            lambda: b"",
            lambda: b"null",
            lambda: b"[" * depth,
        )
    )()


def _doubled(text: str, generator: random.Random) -> str:
    """One line stands twice: a key that is there twice."""
    lines = text.splitlines()
    place = generator.randrange(len(lines))
    lines.insert(place, lines[place])
    return "\n".join(lines)


def _places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [way]
    if isinstance(value, dict):
        for key in value:
            found += _places(value[key], (*way, key))
    elif isinstance(value, list):
        for number in range(min(len(value), 20)):
            found += _places(value[number], (*way, number))
    return found


def _changed(value: Any, generator: random.Random) -> Any:
    value = copy.deepcopy(value)
    places = _places(value)
    way = generator.choice(places)
    if not way:
        return generator.choice(VALUES) if generator.random() < 0.02 else value
    holder = value
    for part in way[:-1]:
        holder = holder[part]
    key, old = way[-1], holder[way[-1]]
    kind = generator.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[generator.choice(PATHS)] = holder.pop(key)
    elif kind == 2:
        holder[key] = generator.choice(PATHS)
    elif kind == 3 and isinstance(old, (int, float)) and not isinstance(old, bool):
        holder[key] = generator.choice((old + 1, old - 1, -old, old * 2, old * 10**6, float(old), str(old)))
    elif kind == 4 and isinstance(old, str) and old:
        at = generator.randrange(len(old))
        holder[key] = old[:at] + generator.choice("aA0/.\\\0é") + old[at + 1 :]
    elif kind == 5:
        other: Any = value
        for part in generator.choice(places):
            other = other[part]
        holder[key] = copy.deepcopy(other)
    elif kind == 6 and isinstance(holder, dict):
        holder[generator.choice((*map(str, holder), "extra", *PATHS))] = copy.deepcopy(old)
    else:
        holder[key] = generator.choice(VALUES)
    return value


def mutated_graph(data: bytes, generator: random.Random) -> bytes:
    """Changes of an ONNX file, in its bytes or in its messages."""
    if generator.random() < 0.35:
        return mutated_bytes(data, generator)
    model = onnx.load_from_string(data)
    for _ in range(generator.choice((1, 1, 2))):
        _change_graph(model.graph, generator)
    return model.SerializeToString()


def _change_graph(graph: Any, generator: random.Random) -> None:
    node = generator.choice(graph.node)
    tensor = generator.choice(graph.initializer)
    value = generator.choice([*graph.input, *graph.output])
    dims = value.type.tensor_type.shape.dim
    kind = generator.randrange(13)
    if kind == 0:
        _point_outside(tensor, generator)
    elif kind == 1:
        tensor.dims[:] = generator.choice(([], [0], [-1], [2**40], [2**62, 4], [*tensor.dims, 2]))
    elif kind == 2:
        tensor.data_type = generator.randrange(30)
    elif kind == 3:
        tensor.raw_data = mutated_bytes(tensor.raw_data, generator)
    elif kind == 4:
        node.op_type = generator.choice(
            (*{other.op_type for other in graph.node}, "EPContext", "Nothing", "")
        )
    elif kind == 5 and node.input:
        node.input[generator.randrange(len(node.input))] = generator.choice(
            [*(name for other in graph.node for name in (*other.input, *other.output)), "", "nowhere"]
        )
    elif kind == 6 and node.attribute:
        _change_attribute(generator.choice(node.attribute), generator)
    elif kind == 7:
        del graph.node[generator.randrange(len(graph.node))]
    elif kind == 8:
        graph.node.append(node)
    elif kind == 9 and dims:
        dims[generator.randrange(len(dims))].dim_value = generator.choice((0, 1, 7, -1, 2**40))
    elif kind == 10:
        value.name = generator.choice(("logits", "inputs_embeds", "x", "", "past_key_values.9.key"))
    elif kind == 11:
        value.type.tensor_type.elem_type = generator.randrange(25)
    else:
        node.domain = generator.choice(("", "com.microsoft", "ai.onnx.ml", "evil"))


def _point_outside(tensor: Any, generator: random.Random) -> None:
    """Weights that lie in another file, or in memory."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    if generator.random() < 0.5:
        tensor.ClearField("raw_data")
    location = generator.choice((*PATHS[:-1], "decoder_model_merged.onnx", "embed_tokens.onnx"))
    pairs = [("location", location), ("offset", "0"), ("length", "64")]
    for _ in range(generator.choice((0, 0, 1, 2))):
        odd = ("", "-1", "0x10", "1e3", str(2**63), "9" * 40, "64")
        pairs.append((generator.choice(("offset", "length", "location", "prepacked")), generator.choice(odd)))
    generator.shuffle(pairs)
    for key, text in pairs[: generator.choice((1, 3, 3, 5))]:
        tensor.external_data.add(key=key, value=text)


def _change_attribute(attribute: Any, generator: random.Random) -> None:
    numbers = (0, -1, 1, 7, 2**31, -(2**63), 2**63 - 1)
    kind = generator.randrange(4)
    if kind == 0:
        attribute.i = generator.choice(numbers)
    elif kind == 1:
        attribute.ints[:] = [generator.choice(numbers) for _ in range(generator.randrange(6))]
    elif kind == 2:
        attribute.type = generator.randrange(12)
    else:
        attribute.name = generator.choice(("axis", "num_heads", "to", "x", ""))
