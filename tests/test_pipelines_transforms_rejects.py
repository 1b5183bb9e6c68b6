"""pipelines.transforms.rejects: who is to blame for an error, and the lines that rejects become."""

from __future__ import annotations

import errno
import json
import pickle

import pytest

from pipelines.transforms import rejects
from pipelines.transforms.rejects import Rejected, blame
from trainer.errors import Denied, Outage, UserError


def test_a_reject_is_one_line():
    found = rejects.reject("gs://b/é\n.jpg", "decode", ValueError("two\n  lines\tof 'text'"), "val")
    assert found.error == "ValueError: two lines of 'text'"
    data = rejects.reject_lines([found, rejects.Reject(source="a", stage="s", error="e")])
    assert data.count(b"\n") == 2 and data.endswith(b"\n")
    assert [json.loads(line)["source"] for line in data.splitlines()] == ["a", "gs://b/é\n.jpg"]


@pytest.mark.parametrize("error", [ValueError("bad"), UserError("bad"), FileNotFoundError("bad"), MemoryError("bad")])
def test_an_input_is_blamed_for_its_own_faults(error):
    with pytest.raises(Rejected) as caught, blame("gs://b/a.tar", "decode", split="val", member="x.jpg"):
        raise error
    assert caught.value.reject == rejects.reject("gs://b/a.tar", "decode", error, "val", "x.jpg")
    assert caught.value.__cause__ is error
    assert str(caught.value) == f"gs://b/a.tar: decode: {type(error).__name__}: bad"


@pytest.mark.parametrize("faults", [rejects.FAULTS, (KeyError, UserError), LookupError])
def test_other_errors_pass(faults):
    with pytest.raises(ZeroDivisionError), blame("a", "read", faults):
        raise ZeroDivisionError
    with blame("a", "read", faults):
        pass


@pytest.mark.parametrize("faults", [rejects.FAULTS, Exception, (UserError, OSError)])
@pytest.mark.parametrize(
    "error", [Outage("down"), Denied("down"), OSError(errno.ENOSPC, "down"), ConnectionError("down")]
)
def test_nobody_is_blamed_for_an_outage(error, faults):
    with pytest.raises(Outage, match="down"), blame("outer", "read", Exception), blame("inner", "read", faults):
        raise error


def test_the_innermost_blame_counts():
    with pytest.raises(Rejected) as caught, blame("outer", "read", Exception), blame("inner", "decode"):
        raise ValueError("bad")
    assert (caught.value.reject.source, caught.value.reject.stage) == ("inner", "decode")
    with pytest.raises(Rejected) as caught, blame("outer", "read", Exception), blame("inner", "decode"):
        raise ZeroDivisionError
    assert (caught.value.reject.source, caught.value.reject.stage) == ("outer", "read")


def test_rejected_crosses_processes():
    found = pickle.loads(pickle.dumps(Rejected(rejects.reject("a", "read", ValueError("bad")))))
    assert found.reject == rejects.Reject(source="a", stage="read", error="ValueError: bad")
