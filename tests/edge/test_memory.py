"""What does not fit a device is refused in one line, before it is computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge.memory import available_bytes, encoder_shape, plan_memory
from edge.model import EdgeModel, weights_bytes
from edge.preprocess import Picture
from genrecal.core.errors import BuildError, ConfigError, DataError, DeviceError
from genrecal.demo.pair import Qwen2VLShape, write_qwen2_vl
from tests.edge.conftest import noise, write_build

# Qwen2-VL-2B's encoder: blocks of 1280 channels.
QWEN2_VL = {"vision_config": {"embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14}}
INTERNVL = {
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "patch_size": [14, 14],
    }
}
GB = 10**9


def picture(patches: int) -> Picture:
    return Picture(
        inputs={"pixel_values": np.zeros((patches, 4), np.float32)},
        prompt=(patches // 4,),
        grid=(1, patches // 2, 2),
    )


def test_an_8_gb_board_takes_a_2b_build_and_says_where_it_ends() -> None:
    budget = plan_memory(
        limit_bytes=6 * GB,
        weights_bytes=int(2.4 * GB),
        token_bytes=28 * 1024,
        positions=32768,
        encoder=encoder_shape(QWEN2_VL, tiles=4),
    )
    assert budget.max_context == 32768 and 2 * GB < budget.free_bytes < 2.3 * GB
    budget.check_context(32768)
    with pytest.raises(DataError, match=r"take 32,769 tokens, device and model allow 32,768. Ask with fewer"):
        budget.check_context(32769)
    budget.check_picture(picture(4 * 4096))  # 1,792 x 1,792 pixels
    with pytest.raises(
        DataError, match=r"an image of 8,192 tokens takes about 3.0 GB in the encoder, 2.2 GB"
    ):
        budget.check_picture(picture(4 * 8192))
    with pytest.raises(DataError, match=r"100 answers of up to 4,096 tokens take 11.7 GB"):
        budget.check_batch(100, 4096)


def test_tiles_run_a_few_at_a_time() -> None:
    shape = encoder_shape(INTERNVL, tiles=4)
    few, many = (
        Picture(inputs={"pixel_values": np.zeros((tiles, 3, 448, 448), np.float32)}, prompt=(256 * tiles,))
        for tiles in (4, 13)
    )
    more = shape.workspace_bytes(many) - shape.workspace_bytes(few)
    assert more == 2 * (many.inputs["pixel_values"].nbytes - few.inputs["pixel_values"].nbytes)


def test_weights_that_do_not_fit(build_folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"the build's weights take .* Export it with --int8 or --int4"):
        EdgeModel.open(build_folder, memory_bytes=1000)
    with pytest.raises(ConfigError, match="a memory limit of 0 bytes holds nothing"):
        EdgeModel.open(build_folder, memory_bytes=0)


def test_a_small_limit_refuses_and_goes_on(build_folder: Path, edge_model: EdgeModel) -> None:
    tokens = 300
    limit = weights_bytes(edge_model.build) + int(tokens * edge_model.sessions.layout.token_bytes / 0.6)
    model = EdgeModel.open(build_folder, threads=1, memory_bytes=limit)
    assert model.budget.max_context == pytest.approx(tokens, abs=1)
    with pytest.raises(DataError, match="GB in the encoder"):
        model.answer((noise(180, 180), "what?"))
    with pytest.raises(DataError, match="tokens, device and model allow"):
        model.answer(("what is in the picture? " * 60,))
    answer = model.answer(("what is in the picture?",), max_new_tokens=2000, eos_token_ids=())
    assert answer.stop == "length"
    assert answer.prompt_tokens + len(answer.token_ids) == model.budget.max_context


def test_a_vision_config_that_lacks_a_number() -> None:
    with pytest.raises(BuildError, match="its vision_config lacks 'patch_size'"):
        encoder_shape({"vision_config": {"hidden_size": 3, "intermediate_size": 3}}, tiles=4)


MEASURED = """
import sys
from pathlib import Path
from PIL import Image
from edge.model import EdgeModel

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

model = EdgeModel.open(Path(sys.argv[1]), threads=1, reuse=False)
model.image_features((Image.new("RGB", (112, 112)),))
prepare, settings = model.pictures._preprocessor.prepare, model.pictures._settings
picture = prepare(Image.new("RGB", (1024, 1024)), settings, True)
before = peak()
model.sessions.encode_image(picture.inputs, tilewise=False)
print(peak() - before, model.budget.encoder.workspace_bytes(picture))
"""


@pytest.mark.full
def test_the_encoder_takes_no_more_than_is_planned(tmp_path: Path) -> None:
    """In a process of its own; wide enough that activations outweigh what loading the graphs took before."""
    shape = Qwen2VLShape(
        patch=8,
        max_pixels=1024 * 1024,
        vision_hidden=512,
        vision_layers=2,
        vision_heads=8,
        hidden=32,
        heads=2,
    )
    write_qwen2_vl(tmp_path / "student", ["a b c"], shape=shape, seed=0)
    folder = write_build(tmp_path / "student", tmp_path / "build", "qwen2_vl")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    taken, planned = map(int, done.stdout.split())
    assert 0.5 * planned < taken < planned


def test_free_memory_is_the_systems_or_the_groups(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable:    6000000 kB\n")
    assert available_bytes(tmp_path) == int(6000000 * 1024 * 0.85)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("1000000000\n")
    assert available_bytes(tmp_path) == int(6000000 * 1024 * 0.85)
    (group / "memory.max").write_text("3000000000\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 500000000\n")
    assert available_bytes(tmp_path) == int(2_500_000_000 * 0.85)
    with pytest.raises(ConfigError, match="does not tell how much memory is free"):
        available_bytes(tmp_path / "nowhere")
