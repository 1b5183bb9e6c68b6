"""Which files belong together, what outputs are called, and the lists of pairs."""

from __future__ import annotations

import pytest

from pipelines.inpainting import inputs
from pipelines.inpainting.inputs import Inputs, Item, Sources, common_folder
from pipelines.inpainting.matching import match_files, match_listed, output_names, pair_up
from pipelines.pairs.names import root_of
from pipelines.transforms.rejects import Reject
from trainer import storage
from trainer.errors import UserError


def test_output_names():
    assert output_names(["x/a.jpg"], ".png") == {"x/a.jpg": "x/a.png"}
    assert output_names(["a.PNG"], ".png") == {"a.PNG": "a.png"}
    assert output_names(["v1.2/a"], ".jpg") == {"v1.2/a": "v1.2/a.jpg"}
    assert output_names(["a.jpg", "a.tif"], ".png") == {"a.jpg": "a.jpg.png", "a.tif": "a.tif.png"}
    assert output_names(["a.jpg", "a.jpg"], ".png") == {"a.jpg": "a.png"}


def matched(images, masks, match="stem", extension=".png", lone=False):
    found = [None if names is None else [name.partition("/")[2] for name in names] for names in (images, masks)]
    (root,) = {root_of(name) for names in found for name in names or ()}
    where = Inputs(base="/in", images="/in", masks="" if masks is None else "/m", match=match)
    kinds = {"images": (storage.Selection("/in", name="a" if lone else ""), storage.Selection("/m"))}
    sources = Sources(where=where, kinds=kinds, mask_base="/m")
    results = list(match_files(found[0], found[1], sources, extension))
    pairs, others = pair_up(found[0], found[1], sources)
    assert pairs.keys() | others.keys() == {root} and not pairs.keys() & others.keys()
    for stem, image, mask in pairs.values():  # found at once, what is said of each root
        address = sources.mask_address(mask) if mask else where.masks
        assert results == [Item(sources.image_address(image), address, stem + extension)]
    assert all(alike == (found[0], found[1] or []) for alike in others.values())
    items = [tuple(part.removeprefix("/") for part in (r.image, r.mask, r.output)) for r in results if type(r) is Item]
    return items, [(r.source.removeprefix("/"), r.error) for r in results if isinstance(r, Reject)]


def test_masks_of_the_same_stem():
    assert matched(["in/a.jpg"], ["m/a.png"]) == ([("in/a.jpg", "m/a.png", "a.png")], [])
    items, rejects = matched(["in/a.jpg", "in/a.tif"], ["m/a.png"])
    assert items == [("in/a.jpg", "m/a.png", "a.jpg.png"), ("in/a.tif", "m/a.png", "a.tif.png")] and not rejects
    assert matched(["in/a.jpg"], None) == ([("in/a.jpg", "", "a.png")], [])


def test_files_without_a_counterpart():
    message = "MatchError: expected a mask file named a.*, a_mask.* or a.jpg.*. Found none."
    assert matched(["in/a.jpg"], []) == ([], [("in/a.jpg", message)])
    ((source, error),) = matched(["in/a.jpg"], ["m/a.png", "m/a.bmp"])[1]
    assert source == "in/a.jpg" and error.endswith("Found a.bmp, a.png.")
    assert error.startswith("MatchError: expected masks that are this image's alone")
    strays = [
        ("m/a.bmp", "MatchError: expected an image file named a.*. Found none."),
        ("m/a_mask.png", "MatchError: expected an image file named a.*. Found none."),
    ]
    assert matched([], ["m/a_mask.png", "m/a.bmp"])[1] == strays
    assert matched([], ["m/a_mask.png", "m/a.bmp"], lone=True) == ([], [])


def test_masks_of_the_same_path():
    items, rejects = matched(["in/a.jpg", "in/a.png"], ["m/a.png", "m/a.bmp"], match="path")
    assert items == [("in/a.png", "m/a.png", "a.png.png")]
    assert rejects == [
        ("in/a.jpg", "MatchError: expected a mask file named a.jpg. Found none."),
        ("m/a.bmp", "MatchError: expected an image file named a.bmp. Found none."),
    ]
    assert matched(["in/a"], ["m/a.png"], match="path")[0] == []


def test_listed_pairs_need_masks_only_where_holes_come_from_masks():
    group = [("in/a.jpg", ""), ("in/a.tif", "m/x.png")]
    found = list(match_listed(group, "in", True, ".png"))
    assert found[0].error == "MatchError: expected a mask in the list. Found none."
    assert found[1] == Item("in/a.tif", "m/x.png", "a.tif.png")
    found = list(match_listed(group, "in", False, ".png"))
    assert found == [Item("in/a.jpg", "", "a.jpg.png"), Item("in/a.tif", "", "a.tif.png")]


def test_the_masks_of_an_image_in_a_list_are_joined():
    group = [("in/a.jpg", "m/2.png"), ("in/a.jpg", "m/1.png"), ("in/a.jpg", ""), ("in/a.jpg", "m/2.png")]
    (item,) = match_listed(group, "in", True, ".png")
    assert (item.masks, item.output) == (("m/1.png", "m/2.png"), "a.png")
    assert [item.masks for item in match_listed(group, "in", False, ".png")] == [()]


def test_common_folder():
    assert common_folder(["gs://b/x/1/a", "gs://b/x/2/b"]) == "gs://b/x"
    assert common_folder(["/x/a", "/x/b"]) == "/x"
    assert common_folder(["gs://b/x/a"]) == "gs://b/x"
    assert common_folder(["gs://b/ab/a", "gs://b/a/a"]) == "gs://b"
    with pytest.raises(UserError, match="in one bucket"):
        common_folder(["gs://b/x/a", "gs://c/x/a"])
    with pytest.raises(UserError, match="in one bucket"):
        common_folder(["gs://b/x/a", "/x/a"])


def test_shared_folder():
    assert inputs.shared_folder(["/a/b/c.png", "", "/a/b/d.png"]) == "/a/b"
    assert inputs.shared_folder(["/a/b/c.png", "/a/b/c/d.png"]) is None
    assert inputs.shared_folder([""]) is inputs.shared_folder([]) is None


def test_the_color_of_holes_may_stand_in_the_manifest(tmp_path):
    assert inputs.hole_of_folder(str(tmp_path)) is None
    for data, expected in ((b'{"hole": "white"}', "white"), (b'{"hole": "gray"}', None), (b"[", None), (b"[]", None)):
        storage.overwrite(f"{tmp_path}/manifest.json", data)
        assert inputs.hole_of_folder(str(tmp_path)) == expected


def test_reports_of_the_job_are_no_inputs(tmp_path):
    reports = ["manifest.json", "items.jsonl", "rejects.jsonl", "items-00003-of-00016.jsonl"]
    for name in ("a.png", *reports, "sub/manifest.json", "items.json", ".items/part-.jsonl"):
        storage.create(f"{tmp_path}/{name}", b"")
    where = Inputs(base=str(tmp_path), images=str(tmp_path))
    found = inputs.list_files(Sources.find(where), "images")
    assert sorted(name for names, *_ in found for name in names) == ["a.png", "items.json", "sub/manifest.json"]


def test_an_input_in_the_output_folder_is_found_by_the_job(tmp_path):
    storage.create(f"{tmp_path}/in/x/out/a.jpg", b"")
    where = Inputs(base=f"{tmp_path}/in", images=f"{tmp_path}/in/**/*.jpg")
    with pytest.raises(UserError, match="expected a folder without inputs. Received .*/out, where .*/a.jpg is one"):
        list(inputs.list_files(Sources.find(where, f"{tmp_path}/in/x/out"), "images"))


@pytest.mark.parametrize(
    ("patterns", "output", "refused"),
    [
        (["/d/in"], "/d/out", False),
        (["/d/in"], "/d/in", True),
        (["/d/in"], "/d/in/out", True),
        (["/d/in"], "/d/in2", False),
        (["/d/**"], "/d/out", True),
        (["/d/*.jpg"], "/d/out", False),
        (["/d/**/*.jpg"], "/d/out", False),
        (["gs://bucket"], "gs://bucket/out", True),
    ],
)
def test_outputs_that_a_second_run_would_read_are_refused(patterns, output, refused):
    if refused:
        with pytest.raises(UserError, match="--output"):
            inputs.check_outputs([], patterns, output, ".png")
    else:
        inputs.check_outputs([], patterns, output, ".png")
    with pytest.raises(UserError, match=f"where {output}/a.png is one"):
        inputs.check_outputs([f"{output}/a.png"], [], output, ".png")
