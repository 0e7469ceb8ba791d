import numpy as np
import pytest
from PIL import Image

from msn_deploy.core.errors import InputError
from msn_deploy.core.model_info import Frame
from msn_deploy.data.frame import framed, placement
from msn_deploy.tasks.maps import bilinear, channels_first, nearest, on_image

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("small", "large"), [((4, 6), (16, 24)), ((5, 3), (17, 10)), ((9, 8), (4, 5)), ((1, 1), (3, 2))]
)
def test_scaling_is_that_of_torch(small, large):
    torch = pytest.importorskip("torch")
    maps = RNG.normal(size=(3, *small))
    asked = torch.from_numpy(maps)[None]
    smooth = torch.nn.functional.interpolate(asked, size=large, mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(bilinear(maps, large), smooth.numpy(), atol=1e-12)
    exact = torch.nn.functional.interpolate(asked, size=large, mode="nearest-exact")[0]
    np.testing.assert_array_equal(nearest(maps, large), exact.numpy())


def test_a_map_of_the_right_size_stays_as_it_is():
    maps = RNG.normal(size=(2, 5, 7)).astype(np.float32)
    assert bilinear(maps, (5, 7)) is maps
    assert nearest(maps, (5, 7)) is maps
    assert bilinear(maps.astype(np.float16), (10, 14)).dtype == np.float32


@pytest.mark.parametrize(
    ("fit", "options"),
    [("resize", {}), ("letterbox", {}), ("letterbox", {"align": "corner"}), ("crop", {}), ("crop", {"short_px": 40})],
)
@pytest.mark.parametrize("size", [(30, 50), (64, 20)])
def test_a_map_of_the_frame_is_brought_to_the_image(fit, options, size):
    """A mask of the image is brought to the frame as the image itself is, and comes back nearly the same."""
    high, wide = size
    y, x = np.mgrid[:high, :wide]
    mask = np.where((y // 10 + x // 10) % 2, 255, 0).astype(np.uint8)
    frame = Frame(height_px=32, width_px=40, channels=1, fit=fit, interpolation="nearest", **options)
    seen = framed(Image.fromarray(mask), frame)[..., 0]
    where = placement(wide, high, frame)
    back = on_image(seen, where, (32, 40), smooth=False, outside=7)
    assert back.shape == mask.shape
    assert (back == 7).any() == (fit == "crop")
    inside = back != 7
    assert (back[inside] == mask[inside]).mean() > 0.9
    finer = on_image(seen.repeat(2, 0).repeat(2, 1), where, (32, 40), smooth=False, outside=7)
    np.testing.assert_array_equal(finer, back)


def test_what_is_outside_of_a_crop_has_the_value_asked_for_or_that_of_the_border():
    where = placement(8, 4, Frame(height_px=4, width_px=4, channels=1, fit="crop"))
    seen = np.arange(16.0).reshape(4, 4)
    outside = on_image(seen, where, (4, 4), smooth=True, outside=np.nan)
    np.testing.assert_array_equal(outside[:, 2:6], seen)
    assert np.isnan(outside[:, [0, 1, 6, 7]]).all()
    assert on_image(seen, where, (4, 4), smooth=True)[:, 0].tolist() == seen[:, 0].tolist()


@pytest.mark.parametrize(
    ("shape", "layout", "counts", "found"),
    [
        ((2, 3, 8, 9), None, (3,), (2, 3, 8, 9)),
        ((2, 8, 9, 3), None, (3,), (2, 3, 8, 9)),
        ((2, 3, 9, 3), None, (3,), (2, 3, 9, 3)),
        ((2, 3, 9, 3), "nhwc", (3,), (2, 3, 3, 9)),
        ((2, 8, 9), None, (1,), (2, 1, 8, 9)),
        ((2, 8, 9, 1), None, (1,), (2, 1, 8, 9)),
    ],
)
def test_channels_are_found(shape, layout, counts, found):
    assert channels_first(np.zeros(shape), layout, counts, model="net", wanted="w").shape == found


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((2, 4, 8, 9), None), ((2, 3, 8, 9), "nhwc"), ((2, 10), None), ((2, 8, 9), "nchw"), ((2,), None)],
)
def test_other_shapes_are_refused(shape, layout):
    with pytest.raises(InputError, match=r"net gives (no|4x8x9|3x8x9|10|8x9) numbers per image.*; three of them"):
        channels_first(np.zeros(shape), layout, (3,), model="net", wanted="three of them")
