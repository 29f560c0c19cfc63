import io

import pytest
from PIL import Image

from genrecal.core.errors import DataError
from genrecal.data.check import check_overlap, pixel_hash


def plain(color, size=(8, 6)):
    return Image.new("RGB", size, color)


def test_the_same_pixels_collide_whatever_their_file_was():
    stream = io.BytesIO()
    plain("red").save(stream, format="BMP")
    reread = Image.open(io.BytesIO(stream.getvalue()))
    palette = plain("blue").quantize(2)
    report = check_overlap(
        [("a.png", plain("red")), ("b.png", plain("green")), ("c.png", palette)],
        [("q1", reread), ("q2", plain("yellow")), ("q3", plain("blue"))],
    )
    assert report.collisions == (("a.png", "q1"), ("c.png", "q3"))
    assert (report.training_images, report.testing_images) == (3, 3)


def test_one_pixel_or_another_shape_is_another_image():
    other = plain("red")
    other.putpixel((0, 0), (254, 0, 0))
    report = check_overlap([("a", plain("red"))], [("q1", other), ("q2", plain("red", (6, 8)))])
    assert report.collisions == ()
    report.require_none(where="set")


def test_the_error_names_both_images():
    report = check_overlap([("a.png", plain("red"))], [("q1", plain("red")), ("q2", plain("red"))])
    with pytest.raises(
        DataError, match=r"^mine: the test image 'q1' is the training image 'a.png' and 1 more"
    ):
        report.require_none(where="mine")


def test_a_stream_is_read_once():
    read = []

    def stream(names):
        for name in names:
            read.append(name)
            yield name, plain(name)

    assert check_overlap(stream(["red", "blue"]), stream(["blue"])).collisions == (("blue", "blue"),)
    assert read == ["red", "blue", "blue"]


def test_hash_is_of_rgb():
    assert pixel_hash(plain((7, 7, 7))) == pixel_hash(Image.new("L", (8, 6), 7))
