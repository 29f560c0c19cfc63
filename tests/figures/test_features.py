"""Figures 6 and 7: coordinates are seeded, cosines are those of the features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from genrecal.core.errors import GenrecalError
from genrecal.figures import cosine, tsne
from genrecal.figures.canvas import style
from genrecal.figures.runs import Missing, open_runs
from tests.figures.sample_runs import write_run


def plain(folder: Path, **settings: object) -> Path:
    return write_run(folder, metrics=False, points=False, **settings)  # type: ignore[arg-type]


@pytest.fixture
def both(tmp_path: Path) -> list[Path]:
    """A run with regularisation, whose outputs agree, and one without, whose outputs do not."""
    return [
        plain(tmp_path / "reg", shared=0.95),
        plain(tmp_path / "no-reg", method="genrecal-no-reg", shared=0.05),
    ]


def test_cosines(both: list[Path]) -> None:
    data = cosine.read(open_runs(both))
    regularised, without = data.matrices
    assert (regularised.run, without.run) == ("genrecal", "genrecal-no-reg")
    assert regularised.stage == "distill"
    tensors = load_file(both[0] / "stages" / "2-distill" / "features.safetensors")
    one, other = tensors["after.r_q_student"], tensors["after.r_q_teacher"]
    expected = [
        [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for b in other.astype(float)]
        for a in one.astype(float)
    ]
    np.testing.assert_allclose(regularised.cosines.matrix_NN, expected, rtol=1e-9)
    assert regularised.cosines.diagonal == pytest.approx(np.mean([expected[i][i] for i in range(10)]))
    off = [expected[i][j] for i in range(10) for j in range(10) if i != j]
    assert regularised.cosines.others == pytest.approx(np.mean(off))
    assert regularised.cosines.diagonal > 0.9 > abs(regularised.cosines.others) + 0.6
    assert abs(without.cosines.diagonal - without.cosines.others) < 0.2
    text = cosine.caption(data)
    means = regularised.cosines
    assert f"genrecal: diagonal {means.diagonal:.3f}, off it {means.others:.3f}" in text
    assert "n = 10 question-answer pairs" in text
    assert len(cosine.table(data)) == 2 * 10 * 10


def test_what_all_pairs_share_is_taken_off(tmp_path: Path) -> None:
    """A large common part brings every cosine near 1; centred, the diagonal shows again."""
    run = plain(tmp_path / "run")
    path = run / "stages" / "2-distill" / "features.safetensors"
    tensors = load_file(path)
    for name in ("after.r_q_student", "after.r_q_teacher"):
        tensors[name] = tensors[name] + np.float32(50)
    save_file(tensors, path)
    (matrix,) = cosine.read(open_runs([run])).matrices
    assert matrix.cosines.others > 0.98
    assert matrix.cosines.centred[0] > 0.9 and abs(matrix.cosines.centred[1]) < 0.2


def test_matrices_are_drawn_on_one_scale(both: list[Path]) -> None:
    data = cosine.read(open_runs(both))
    with style("test"):
        figure = cosine.draw(data)
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == 2 and images[0].get_clim() == images[1].get_clim()
    assert images[0].get_clim()[1] == 1.0


def test_maps_are_the_same_each_time(both: list[Path]) -> None:
    runs = open_runs(both[:1])
    data, again = tsne.read(runs), tsne.read(runs)
    start, end = data.maps
    assert (start.moment, end.moment) == ("start: before recalibrate", "end: after distill")
    for kind, points in end.points.items():
        assert points.shape == (10, 2)
        np.testing.assert_array_equal(points, again.maps[1].points[kind])
    # What the features share after the Recalibrator, they share in the plane: pairs lie close together.
    gaps = np.linalg.norm(end.points["h_q_student"] - end.points["h_q_teacher"], axis=1)
    spread = np.linalg.norm(end.points["h_q_student"] - end.points["h_q_student"].mean(0), axis=1)
    assert np.median(gaps) < 0.5 * np.median(spread)
    assert start.after < 0.5 < end.after
    with style("test"):
        figure = tsne.draw(data)
    assert len(figure.axes) == 2 and all(len(axes.collections) == 4 for axes in figure.axes)
    assert len(tsne.table(data)) == 2 * 4 * 10
    assert "n = 10" in tsne.caption(data)


def test_of_several_seeds_the_first_is_mapped(tmp_path: Path) -> None:
    folders = [plain(tmp_path / f"seed{seed}", seed=seed) for seed in (3, 4)]
    data = tsne.read(open_runs(folders))
    assert [one.run for one in data.maps] == ["genrecal, seed 3"] * 2
    assert "the first is shown" in tsne.caption(data)
    assert len(cosine.read(open_runs(folders)).matrices) == 2


def test_missing_and_damaged_features(tmp_path: Path) -> None:
    without = open_runs([plain(tmp_path / "sft", method="sft")])
    for figure in (tsne, cosine):
        with pytest.raises(Missing, match=r"no run left features\. .*feature_samples"):
            figure.read(without)
    run = plain(tmp_path / "run")
    path = run / "stages" / "2-distill" / "features.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if "r_q" not in name}, path)
    with pytest.raises(Missing, match=r"has no after\.r_q_student"):
        cosine.read(open_runs([run]))
    # It keeps no other run from being shown.
    other = plain(tmp_path / "other", seed=1)
    matrices = cosine.read(open_runs([run, other]))
    assert [one.run for one in matrices.matrices] == ["genrecal, seed 1"]
    assert f" Left out: {path} has no after.r_q_student." in cosine.caption(matrices)
    save_file({name: tensor[:2] for name, tensor in tensors.items()}, path)
    save_file(
        {name: tensor[:2] for name, tensor in tensors.items()},
        run / "stages" / "1-recalibrate" / "features.safetensors",
    )
    with pytest.raises(Missing, match=r"features of 2 pairs"):
        tsne.read(open_runs([run]))
    data = tsne.read(open_runs([run, other]))
    assert [one.run for one in data.maps] == ["genrecal, seed 1"] * 2
    assert f" Left out: {run} has features of 2 pairs." in tsne.caption(data)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(GenrecalError, match="cannot be read"):
        cosine.read(open_runs([run]))
