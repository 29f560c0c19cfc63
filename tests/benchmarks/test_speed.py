"""Speed beside other engines: what is counted is counted right, and the engines that are here run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from benchmarks.reuse import build
from benchmarks.speed import roofline
from benchmarks.speed.cases import CASES, RESULT
from benchmarks.speed.engines import Edge, Torch
from benchmarks.speed.language import gguf_name, language_weights, write_language
from benchmarks.speed.roofline import Kernel, measure_kernel, product, reads_of_graph, roof
from benchmarks.speed.rounds import decoder, summarise
from benchmarks.speed.table import goals, ratios, shares, table
from genrecal.core.files import read_json
from genrecal.demo.pair import Qwen2VLShape

SHAPE = Qwen2VLShape(patch=14, max_pixels=112 * 112, vision_hidden=32, hidden=32, heads=2, layers=2)
EIGHT = Kernel(bits=8, block=32, accuracy_level=4)
FOUR = Kernel(bits=4, block=64, accuracy_level=4)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    build(folder, SHAPE)
    write_language(folder / "student", folder / "language")
    return folder


def test_edge_and_torch_do_the_same_work(work: Path) -> None:
    for engine in (Edge(work / "build", "fp32", 1), Torch(work / "student", "fp32", 1)):
        assert engine.decode(24, 5) > 0 and engine.prefill(40) > 0 and engine.vision(112) > 0


def test_a_text_of_exactly_so_many_tokens(work: Path) -> None:
    edge = Edge(work / "build", "fp32", 1)
    assert len(edge.model.prompt((edge._text(64),)).ids_S) == 64


def test_the_language_model_alone_gives_the_same_logits(work: Path) -> None:
    ids_BS = torch.arange(5, 25)[None]
    with torch.inference_mode():
        whole, alone = (
            kind.from_pretrained(work / folder, dtype=torch.float32).eval()(input_ids=ids_BS).logits
            for kind, folder in ((AutoModelForImageTextToText, "student"), (AutoModelForCausalLM, "language"))
        )
    torch.testing.assert_close(alone, whole)


def test_every_weight_has_a_name_in_gguf(work: Path) -> None:
    names = [gguf_name(name) for name, _ in language_weights(work / "student")]
    assert len(set(names)) == len(names) == 3 - 1 + 12 * 2
    assert {"token_embd.weight", "output_norm.weight", "blk.1.attn_q.bias", "blk.0.ffn_down.weight"} <= set(
        names
    )


@pytest.mark.parametrize("kernel", [EIGHT, FOUR])
def test_bytes_that_a_token_reads(kernel: Kernel, tmp_path: Path) -> None:
    model, size = product(kernel, 48, 128)
    (tmp_path / "graph.onnx").write_bytes(model)
    reads = reads_of_graph(tmp_path / "graph.onnx")
    assert reads.total == size == 48 * 128 * kernel.bits // 8 + 4 * 48 * 128 // kernel.block
    assert reads.by_kernel == {kernel: size}


def test_a_table_is_not_read(work: Path) -> None:
    embedding = reads_of_graph(work / "build/onnx/embed_tokens.onnx")
    parameters = sum(t.numel() for name, t in language_weights(work / "student"))
    read = reads_of_graph(decoder(work / "build")).total
    assert embedding.total == 0 and 4 * parameters <= read <= 4 * parameters + 2000


def test_the_lower_roof_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = roofline.Reads(total=1000, by_kernel={EIGHT: 600, FOUR: 400})
    peaks = {EIGHT: 6000.0, FOUR: 2000.0}
    found = roof(reads, 5000.0, peaks)
    assert found["bandwidth"] == 5 and found["kernel"] == pytest.approx(1 / 0.3)
    assert found["lower"] == found["kernel"]
    monkeypatch.setattr(roofline, "SECONDS", 0.01)
    assert measure_kernel(FOUR, 1) > 0


def test_ratios_are_of_engines_in_the_same_round() -> None:
    def turn(ours: float, torch_s: float) -> dict[str, dict[str, float]]:
        return {
            "genrecal int8": {"tokens_s": ours, "prefill_s": 2.0, "vision_s": 1.0},
            "torch fp32": {"tokens_s": 5.0, "prefill_s": torch_s, "vision_s": 1.5},
        }

    rounds = [turn(10.0, 4.0), turn(20.0, 1.0), turn(30.0, 2.0)]
    found = ratios(rounds)["genrecal int8"]
    assert found["tokens_s against torch fp32"] == {"median": 4, "lowest": 2, "highest": 6}
    assert found["prefill_s against torch fp32"] == {"median": 1, "lowest": 0.5, "highest": 2}
    assert found["vision_s against torch fp32"] == {"median": 1.5, "lowest": 1.5, "highest": 1.5}
    assert summarise(rounds)["genrecal int8"]["tokens_s"] == {"median": 20, "lowest": 10, "highest": 30}


def test_a_share_is_of_the_roofs_of_the_same_round() -> None:
    def turn(speed: float, bandwidth: float) -> dict[str, dict[str, float]]:
        return {"ours": {"tokens_s": speed}, "roofs": {"bandwidth": bandwidth, EIGHT.name: 1e9}}

    reads = {"ours": roofline.Reads(total=100, by_kernel={EIGHT: 100})}
    (found,) = shares([turn(8.0, 1000.0), turn(9.0, 1800.0), turn(14.0, 2000.0)], reads).values()
    assert found["share"] == pytest.approx({"median": 0.7, "lowest": 0.5, "highest": 0.8})


def test_the_committed_measurement() -> None:
    result = read_json(RESULT)
    assert set(CASES) < set(result["figures"]) and result["rounds"]
    assert result["ratios"] == ratios(result["rounds"])
    assert result["goals"] == goals(result)
    kernels = {kernel.name: kernel for kernel in (replace(EIGHT, block=64), FOUR)}
    reads = {
        name: roofline.Reads(
            total=one["bytes"], by_kernel={kernels[kernel]: size for kernel, size in one["kernels"].items()}
        )
        for name, one in result["roofline"].items()
    }
    assert result["roofline"] == shares(result["rounds"], reads)
    # The document shows these figures, whether a goal is reached or not.
    document = Path(__file__).parents[2] / "docs" / "performance.md"
    assert table(result) in document.read_text(encoding="utf-8")
