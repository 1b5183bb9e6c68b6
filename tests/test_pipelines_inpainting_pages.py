"""pipelines.inpainting.pages: what is packed comes back, all of it and once, in the share that it belongs to."""

from __future__ import annotations

import itertools
import posixpath

import pytest

from pipelines.inpainting import pages, resume
from pipelines.inpainting.inputs import Inputs, Sources
from pipelines.inpainting.pages import Page, Survey
from pipelines.pairs.names import root_of, roots_of, stem_of

FAMILIES = [  # an image, names of its masks, and its output
    ("x/a.jpg", ["x/a.png", "x/a_mask.png", "x/MASK-a.png", "x/a.jpg.png", "x/a_mask_2.png"], "x/a.png"),
    ("x/a.jpg", [], "x/a.jpg.png"),
    ("image_07.tif", ["mask_07.png", "mask07.png", "07.png"], "image_07.png"),
    ("v1.2/b.c.jpg", ["v1.2/b.c_mask.png"], "v1.2/b.c.png"),
    ("plain", ["plain_mask"], "plain.png"),
]
ENDS = {pages.IMAGES: ".jpg", pages.MASKS: ".png", pages.OUTPUTS: ".png"}


@pytest.mark.parametrize(("image", "masks", "output"), FAMILIES)
def test_what_belongs_together_is_in_one_share(image, masks, output):
    assert {pages.hash_of(pages.root_in(name, False)) for name in (image, *masks, output)} == {
        pages.hash_of(root_of(image))
    }


def test_images_of_one_output_are_in_one_share_or_both_are_known_to_be_contested():
    """Of all names of some parts: an output is the stem, or the name where others have the stem, and an extension."""
    parts = [".jpg", ".xyz", ".7", "_mask", ".mask", "_image.tiff"]
    names = ["a" + "".join(ends) for count in range(4) for ends in itertools.product(parts, repeat=count)]
    possible: dict[str, set[str]] = {}
    for name in names:
        for output in (posixpath.splitext(name)[0] + ".png", name + ".png"):
            possible.setdefault(output, set()).add(name)
    apart = [output for output, images in possible.items() if len({root_of(name) for name in images}) > 1]
    assert "a.xyz.png" in apart and all(resume.is_contested(output) for output in apart)
    plain = ["a.png", "a.jpg.png", "x.y/a.png", "a_mask.png", "a.tif_mask.png", ".png"]
    assert [name for name in plain if resume.is_contested(name)] == []


def test_objects_that_become_one_file_are_in_one_share():
    assert pages.root_in("a//b.jpg", True) == pages.root_in("/a/b.jpg", True) == "a/b"
    assert pages.root_in("a//b.jpg", False) == "a//b"


def test_shares_are_as_many_as_images_need():
    expected = {0: 0, 1: 0, 50_000: 0, 50_001: 1, 800_000: 1, 800_001: 2, 10_000_000: 2, 12_800_001: 3, 10**12: 4}
    assert {images: Survey(images).digits for images in expected} == expected


@pytest.mark.parametrize("at_once", [10**6, 400])
def test_pages_are_spread_without_loss(monkeypatch, at_once):
    monkeypatch.setattr(pages, "_AT_ONCE", at_once)
    names = {kind: [f"{top}/{n}{end}" for top in ("a", "b c") for n in range(300)] for kind, end in ENDS.items()}
    rows = {kind: [(name, name[::-1]) for name in mine] for kind, mine in names.items()}
    listed = [pages.pack(Page.of(kind, mine[n::2])) for kind, mine in rows.items() for n in range(2)]
    where = Inputs(base="gs://b/in", images="gs://b/in")
    sources = Sources(where=where, kinds={}, output="gs://b/out")
    found = [(share, pages.unpack(data)) for share, data in pages.spread(listed, Survey(10**6), sources)]
    for kind, mine in rows.items():
        parts = [(share, part) for share, part in found if part.kind == kind]
        assert all(len(share) == 2 for share, _ in parts) and len({share for share, _ in parts}) > 200
        assert sorted(row for _, part in parts for row in part.rows()) == sorted(mine)
        assert all(pages.hash_of(root_of(name)).startswith(share) for share, part in parts for name in part.names)
    is_once = len({(share, part.kind) for share, part in found}) == len(found)
    assert is_once == (at_once > 400)  # of each share and kind one page, if all is spread together


def test_a_page_is_what_was_packed():
    for kind, row in (
        (pages.IMAGES, ("x/a.jpg", "AAAAAA==")),
        (pages.RECORDS, ("part--00000001-000000000000.jsonl",)),
        (pages.WRITTEN, ("x/a.png", 2**40)),
        (pages.FINISHED, ("", "", 0)),
    ):
        for rows in ([], [row], [row, row], [(f"\0{row[0]}\n", *row[1:]), row], [("\udcff", *row[1:])]):
            page = pages.unpack(pages.pack(Page.of(kind, rows)))
            assert page.kind == kind and list(page.rows()) == rows


def test_a_page_takes_few_bytes():
    """An engine in one process holds several times what the pages take: 10 million items in 1.5 GB."""
    rows = [(f"{number // 1000:05d}/{number:09d}.jpg", f"{number % 16:08x}") for number in range(0, 250_000, 250)]
    assert len(pages.pack(Page.of(pages.IMAGES, rows))) < 4.5 * len(rows)


def test_parts_of_other_runs_are_for_all_shares_that_they_may_have_lines_of():
    names = ["part--00000001-000000000000.jsonl", "part-3-00000001-000000000000.jsonl"]
    names += ["part-3f-00000001-000000000000.jsonl", "part-3fa9-00000001-000000000000.jsonl"]
    sources = Sources(where=Inputs(base="/in"), kinds={}, output="/out")
    data = [pages.pack(Page.of("records", [(name,) for name in names]))]
    for images, share, expected in (
        (1, "", names),
        (10**5, "3", names),
        (10**6, "3f", names),
        (10**6, "30", names[:2]),
    ):
        found = dict(pages.spread(data, Survey(images), sources))
        assert pages.unpack(found[share]).names == expected


def test_the_quick_way_to_a_root_is_the_plain_one(monkeypatch):
    words = [
        "a",
        "b.c",
        "mask",
        "Image_7",
        "img-3",
        "a_mask",
        "a.jpg",
        ".hidden",
        "x..y",
        "a (mask)",
        "7",
        "..",
        "...a",
        "a_ma\u017fk",
        "\u0130mg_3",
        "simple",
    ]
    ends = ["", ".jpg", ".PNG", ".7", ".", "_mask", "_mask_1.png", ".jpg.png", ".jpg_mask.png"]
    names = [f"{folder}{word}{end}" for folder in ("", "x/", "m.ask/", "/") for word in words for end in ends]
    assert [stem_of(name) for name in names] == [posixpath.splitext(name)[0] for name in names]
    assert roots_of(names) == ([stem_of(name) for name in names], [root_of(name) for name in names])
    assert roots_of([]) == ([], [])
    alike = ["a.jpg", "x/b.jpg"], ["a.jpg", "a\0b.jpg"], ["a.jpg\0x.jpg", "b"], ["x.y/a", "z.y/a"], ["a.", "x/b."]
    others = ["a.jpg", "x/b.PNG"], ["v1.2/a.jpg"], ["a.jpg", "x/.b"], ["a.b.jpg", "c"], ["x.y/a", "b.jpg"]
    for plain in (*alike, *others):
        assert roots_of(plain) == ([stem_of(name) for name in plain], [root_of(name) for name in plain])
    quick = [root_of(name) for name in names]
    monkeypatch.setattr("pipelines.pairs.names._is_plain", lambda _: False)
    assert quick == [root_of(name) for name in names]
