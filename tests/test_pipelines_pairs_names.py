"""Which masks belong to which images, by their names: every expectation is written by hand."""

from __future__ import annotations

import random

import pytest

from pipelines.pairs.names import match_names, root_of


@pytest.mark.parametrize(
    "mask",
    [
        "a.png",
        "a.jpg.png",
        "a.JPG",
        "a_mask.png",
        "a-mask.png",
        "a.mask.png",
        "a mask.png",
        "a (mask).png",
        "a(mask).png",
        "a_MASK.png",
        "a_Masks.png",
        "a_mask1.png",
        "a_mask001.png",
        "a_mask_2.png",
        "mask_a.png",
        "mask-a.png",
        "Mask.a.png",
        "a.jpg_mask.png",
        "a_mask.jpg.png",
        "mask_a.jpg.png",
    ],
)
def test_names_of_a_mask(mask):
    for folder in ("", "x/y.z/"):
        image, mine = f"{folder}a.jpg", folder + mask
        assert root_of(image) == root_of(mine) == f"{folder}a"
        found = match_names([image], [mine])
        assert (found.masks, found.unclear, found.strays) == ({image: [mine]}, {}, [])


@pytest.mark.parametrize(
    "name",
    ["amask.png", "a_masked.png", "bitmask.png", "mask.png", "masks.png", "unmask_a.png", "b/a_mask.png", "_mask.png"],
)
def test_names_of_other_files(name):
    found = match_names(["a.jpg"], [name])
    assert (found.masks, found.strays) == ({"a.jpg": []}, [name])


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("image_7.jpg", "mask_7.png"),
        ("img007.jpg", "mask007.png"),
        ("IMG_1234.JPG", "IMG_1234_mask.png"),
        ("x/a_image.jpg", "x/a_mask.png"),
        ("mask.jpg", "mask.png"),
        ("mask_1.jpg", "mask_1.png"),
        ("v1.2.png", "v1.2_mask.png"),
        ("a mask.png", "a mask_mask.png"),
        ("photo.2024.jpg", "photo.2024.jpg.png"),
    ],
)
def test_other_images(image, mask):
    assert root_of(image) == root_of(mask)
    assert match_names([image], [mask]).masks == {image: [mask]}


def test_the_plainest_reading_counts():
    found = match_names(["a.jpg", "a_mask.jpg"], ["a_mask.png", "a.png"])
    assert found.masks == {"a.jpg": ["a.png"], "a_mask.jpg": ["a_mask.png"]} and not found.unclear
    found = match_names(["a.jpg", "a.jpg.png"], ["a.jpg.png"])
    assert found.masks == {"a.jpg": [], "a.jpg.png": ["a.jpg.png"]}


def test_images_that_differ_in_the_extension():
    assert match_names(["a.jpg", "a.tif"], ["a.png"]).masks == {"a.jpg": ["a.png"], "a.tif": ["a.png"]}
    found = match_names(["a.jpg", "a.tif"], ["a.jpg.png", "a.tif_mask.png"])
    assert found.masks == {"a.jpg": ["a.jpg.png"], "a.tif": ["a.tif_mask.png"]}
    found = match_names(["a.jpg", "a.tif"], ["a_mask1.png", "a_mask2.png"])
    assert found.masks == dict.fromkeys(["a.jpg", "a.tif"], ["a_mask1.png", "a_mask2.png"])


def test_numbered_masks_are_joined():
    masks = [f"a_mask_{n}.png" for n in (1, 2, 10)]
    assert match_names(["a.jpg"], masks).masks == {"a.jpg": sorted(masks)}
    assert match_names(["a.jpg"], ["a_mask.png", "a_mask2.png"]).masks == {"a.jpg": ["a_mask.png", "a_mask2.png"]}


@pytest.mark.parametrize(
    ("images", "masks", "unclear"),
    [
        (["a.jpg"], ["a.bmp", "a.png"], ["a.jpg"]),
        (["a.jpg"], ["a.png", "a_mask.png"], ["a.jpg"]),  # a.png may be a photograph
        (["a.jpg"], ["a_mask.bmp", "a_mask.png"], ["a.jpg"]),
        (["a.jpg", "a.tif"], ["a.jpg_mask.png", "a_mask.png"], ["a.jpg"]),
        (["image_1.jpg", "img_1.jpg"], ["mask_1.png"], ["image_1.jpg", "img_1.jpg"]),
    ],
)
def test_what_cannot_be_told_is_not_guessed(images, masks, unclear):
    found = match_names(images, masks)
    assert sorted(found.unclear) == unclear and not found.strays
    assert set(found.masks) == set(images) - set(unclear)


def test_images_and_masks_in_one_folder():
    names = ["a.png", "a_mask.png", "mask_a.png"]
    found = match_names(names, names, both=names)
    assert (found.masks, found.unclear, found.strays) == ({"a.png": ["a_mask.png", "mask_a.png"]}, {}, [])
    found = match_names(["a.jpg", "a.png"], ["a.png"], both=["a.png"])
    assert (found.masks, found.strays) == ({"a.jpg": ["a.png"]}, [])
    found = match_names(["a.jpg", "a.png"], ["a.jpg", "a.png"], both=["a.jpg", "a.png"])
    assert (found.masks, found.unclear) == ({}, {"a.jpg": ["a.png"], "a.png": ["a.jpg"]})
    found = match_names(["a.jpg"], ["a.jpg"], both=["a.jpg"])
    assert (found.masks, found.strays) == ({"a.jpg": []}, [])


def test_nothing_is_lost():
    """Of any files, each image has masks or none, and each mask an image, or is a stray."""
    rng, words = random.Random(0), ["a", "a_mask", "a_mask_1", "mask_a", "image_a", "img_a", "a.jpg", "a.jpg_mask"]
    names = [f"{word}.{kind}" for word in words for kind in ("jpg", "png")]
    for _ in range(500):
        images, masks = rng.sample(names, rng.randint(0, 6)), rng.sample(names, rng.randint(0, 6))
        both = set(images) & set(masks) if rng.random() < 0.5 else set()
        found = match_names(images, masks, both)
        told = {*found.masks, *found.unclear}
        used = {mask for mine in [*found.masks.values(), *found.unclear.values()] for mask in mine}
        assert not found.masks.keys() & found.unclear.keys() and not used & set(found.strays)
        named = used | set(found.strays)
        assert told | (named & both) >= set(images) and named | (told & both) >= set(masks)
        assert told <= set(images) and all(name not in mine for name, mine in found.masks.items() if name in both)


@pytest.mark.parametrize("mask", ["a_mask.png", "mask_a.png", "a.jpg.png"])
def test_folders_without_names_are_folders(mask):
    """Of objects in a bucket: ``x//a`` is not ``x/a``."""
    assert root_of(f"x//{mask}") == "x//a" and root_of(f"/{mask}") == "/a"
    found = match_names(["x/a.jpg", "x//a.jpg"], [f"x//{mask}", f"x/{mask}"])
    assert found.masks == {"x/a.jpg": [f"x/{mask}"], "x//a.jpg": [f"x//{mask}"]}
