import numpy as np

from msn_deploy.tasks.drawing import colour_of, enlarged, tinted, with_legend


def test_classes_that_follow_each_other_have_colours_apart():
    colours = np.array([colour_of(index) for index in range(12)], float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert apart[np.triu_indices(12, 1)].min() > 25
    assert all(apart[at, at + 1] > 100 for at in range(11))
    assert colour_of(7) == colour_of(7)


def test_small_images_are_enlarged_pixel_by_pixel_and_large_ones_are_not():
    image = np.arange(8 * 10 * 3, dtype=np.uint8).reshape(8, 10, 3)
    large, factor = enlarged(image)
    assert (large.shape, factor) == ((160, 200, 3), 20)
    np.testing.assert_array_equal(large[10::20, 10::20], image)
    assert enlarged(np.zeros((160, 400, 3), np.uint8))[1] == 1


def test_a_colour_covers_what_it_is_asked_to_and_no_more():
    image = np.full((4, 4, 3), 100, np.uint8)
    where = np.zeros((4, 4), bool)
    where[1, 2] = True
    made = tinted(image, where, (255, 0, 0))
    assert made[1, 2].tolist() == [185, 45, 45]
    assert (made != image).any(2).sum() == 1


def test_a_legend_has_a_line_for_each_name_below_the_image():
    image = np.full((200, 300, 3), 9, np.uint8)
    made = with_legend(image, [("zero", (200, 0, 0)), ("one", (0, 0, 200))])
    np.testing.assert_array_equal(made[:200], image)
    strip = made[200:].reshape(2, -1, 300, 3)
    assert (strip[0] == [200, 0, 0]).all(2).any()
    assert (strip[1] == [0, 0, 200]).all(2).any()
    np.testing.assert_array_equal(with_legend(image, []), image)
