"""External data found by a reader of a few lines, against what the onnx package finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edge import build as layout
from edge.onnx_wire import ExternalData, check_external_data, external_data
from genrecal.core.errors import BuildError


def outside(name: str = "w", **pairs: str) -> TensorProto:
    tensor = TensorProto(name=name, dims=[4], data_type=1, data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": "d", "offset": "0", "length": "16"} | pairs).items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_of(**where: TensorProto) -> onnx.ModelProto:
    """A model with a tensor in each of the places that are named."""
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [], [], [where["initializer"]] if "initializer" in where else [])
    model = helper.make_model(graph)
    for place, tensor in where.items():
        inner = helper.make_graph([], "inner", [], [], [tensor])
        if place == "attribute":
            node_in = model.graph.node.add(op_type="Constant")
            node_in.attribute.append(helper.make_attribute("value", tensor))
        elif place == "attributes":
            model.graph.node[0].attribute.add(name="v", type=9).tensors.append(tensor)
        elif place == "sub-graph":
            model.graph.node.add(op_type="If").attribute.append(helper.make_attribute("then_branch", inner))
        elif place == "sub-graphs":
            model.graph.node[0].attribute.add(name="v", type=10).graphs.append(inner)
        elif place == "sparse":
            model.graph.sparse_initializer.add().values.CopyFrom(tensor)
        elif place == "sparse indices":
            model.graph.sparse_initializer.add().indices.CopyFrom(tensor)
        elif place == "sparse attribute":
            model.graph.node[0].attribute.add(name="v", type=11).sparse_tensor.values.CopyFrom(tensor)
        elif place == "function":
            function = model.functions.add(name="f", domain="d")
            function.node.add(op_type="Constant").attribute.append(helper.make_attribute("value", tensor))
        elif place == "function attribute":
            function = model.functions.add(name="f", domain="d")
            function.attribute_proto.append(helper.make_attribute("value", tensor))
        elif place == "training":
            model.training_info.add().initialization.initializer.append(tensor)
        elif place == "training algorithm":
            model.training_info.add().algorithm.initializer.append(tensor)
    return model


PLACES = (
    "initializer",
    "attribute",
    "attributes",
    "sub-graph",
    "sub-graphs",
    "sparse",
    "sparse indices",
    "sparse attribute",
    "function",
    "function attribute",
    "training",
    "training algorithm",
)


def write(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    path = folder / "g.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refusal(folder: Path, model: onnx.ModelProto | bytes) -> str:
    path = write(folder, model)
    with pytest.raises(BuildError) as caught:
        check_external_data(folder, path.name, {"d": 16, "g.onnx": path.stat().st_size})
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_of_a_tensor(tmp_path: Path, place: str) -> None:
    path = write(tmp_path, model_of(**{place: outside()}))
    assert external_data(path) == [ExternalData(location="d", offset=0, length=16)]
    assert check_external_data(tmp_path, "g.onnx", {"d": 16}) == {"d"}
    assert "takes weights from '../d'" in refusal(tmp_path, model_of(**{place: outside(location="../d")}))


def test_real_graphs_have_none(build_folder: Path) -> None:
    for graph in layout.GRAPHS:
        assert external_data(build_folder / layout.graph_file(graph, "")) == []


def test_what_onnx_itself_writes(tmp_path: Path, build_folder: Path) -> None:
    model = onnx.load(str(build_folder / layout.graph_file(layout.DECODER, "")))
    onnx.save_model(
        model, str(tmp_path / "g.onnx"), save_as_external_data=True, location="w", size_threshold=64
    )
    found = external_data(tmp_path / "g.onnx")
    saved = onnx.load(str(tmp_path / "g.onnx"), load_external_data=False)
    expected = [
        {pair.key: pair.value for pair in tensor.external_data}
        for tensor in saved.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    ]
    assert len(found) == len(expected) > 10
    assert sorted((one.offset, one.length) for one in found) == sorted(
        (int(pairs["offset"]), int(pairs["length"])) for pairs in expected
    )
    size = (tmp_path / "w").stat().st_size
    assert check_external_data(tmp_path, "g.onnx", {"w": size}) == {"w"}
    with pytest.raises(BuildError, match="from beyond the end of 'w'"):
        check_external_data(tmp_path, "g.onnx", {"w": size - 1})


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"length": "17"}, "beyond the end"),
        ({"offset": "1"}, "beyond the end"),
        ({"offset": "-1"}, "without location, offset and length"),
        ({"offset": "0x0"}, "without location, offset and length"),
        ({"length": ""}, "without location, offset and length"),
        ({"length": "9" * 16}, "without location, offset and length"),
        ({"offset": "٣"}, "without location, offset and length"),
        ({"location": "/etc/passwd"}, "which is no file of this build"),
        ({"location": "*/_ORT_MEM_ADDR_/*"}, "which is no file of this build"),
        ({"location": "g.onnx"}, "which is no file of this build"),
        ({"location": "sub/d"}, "which is no file of this build"),
        ({"location": "d\0"}, "which is no file of this build"),
        ({"prepacked_0": "x"}, "external data with 'prepacked_0'"),
    ],
)
def test_external_data_that_is_refused(tmp_path: Path, pairs: dict[str, str], message: str) -> None:
    assert message in refusal(tmp_path, model_of(initializer=outside(**pairs)))


def test_a_key_twice_and_no_entry_at_all(tmp_path: Path) -> None:
    tensor = outside()
    tensor.external_data.add(key="location", value="/etc/passwd")
    assert "external data with 'location'" in refusal(tmp_path, model_of(initializer=tensor))
    del tensor.external_data[:]
    assert "whose values lie nowhere" in refusal(tmp_path, model_of(initializer=tensor))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def message(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(varint(number << 3 | 2) + varint(len(data)) + data for number, data in fields)


def test_a_tensor_whose_parts_stand_apart(tmp_path: Path) -> None:
    """Parsers join the two halves of a message that may stand once; neither half is let through."""
    first = TensorProto(dims=[4], data_type=1, data_location=TensorProto.EXTERNAL).SerializeToString()
    entry = message((1, b"location"), (2, b"/etc/passwd"))
    attribute = message((1, b"value"), (5, first), (5, message((13, entry))))
    data = message((7, message((1, message((4, b"Constant"), (5, attribute))))))
    joined: Any = onnx.ModelProto.FromString(data).graph.node[0].attribute[0].t
    assert joined.data_location == TensorProto.EXTERNAL and joined.external_data[0].value == "/etc/passwd"
    assert "is no ONNX graph that can be checked" in refusal(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\x3a\xff\xff\xff\xff\x0f", "ends behind its message"),
        (b"\x3a\x05abc", "ends behind its message"),
        (b"\x3a" + b"\xff" * 11, "more than ten bytes"),
        (b"\x3a\x80", "cut off"),
        (b"\x3b\x3c", "wire type 3"),
        (b"\x02\x00", "field number 0"),
        (b"\xba\x80\x80\x80\x10\x00", "field number"),
        (message((7, message((1, message((4, b"EPContext")))))), "compiled engine"),
    ],
)
def test_bytes_that_are_no_graph(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in refusal(tmp_path, data)


def test_depth_is_bounded(tmp_path: Path) -> None:
    data = message((5, outside().SerializeToString()))
    for _ in range(100):
        data = message((1, message((4, b"If"), (5, message((6, data))))))
    assert "messages more than 64 deep" in refusal(tmp_path, message((7, data)))


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_end(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.getbasetemp(), data)
    try:
        found = external_data(path)
    except BuildError:
        return
    # Whatever this reader takes for a graph without external data, the onnx package does not see any in.
    if not found:
        try:
            model = onnx.ModelProto.FromString(data)
        except Exception:  # protobuf's own error: no graph for anybody
            return
        assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_a_graph_of_another_ending(tmp_path: Path) -> None:
    """ONNX Runtime opens `.ort` as another format, which this reader does not know."""
    (tmp_path / "g.ort").write_bytes(b"ORTM")
    with pytest.raises(BuildError, match=r"a graph's name ends with \.onnx"):
        external_data(tmp_path / "g.ort")
