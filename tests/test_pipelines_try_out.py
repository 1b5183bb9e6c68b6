"""The page of `pconv try`, on a real server: what it fills is what the inpainting job writes, what it refuses too."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import Running

from networks import small_config, write_run
from page_server import MAX_PIXELS, mask_of, photo, png, run_job, serving, turned_jpeg
from pipelines import try_out
from pipelines.retouching import guard
from trainer.errors import UserError

PAGE = Path(try_out.__file__).parent / "retouching"


# The name of each picture, its file, and that of its mask; the last is larger than what is painted on.
PICTURES = {
    "turned.jpg": (turned_jpeg(), mask_of(90, 60)),
    "deep.png": (png(photo(64, 64, np.uint16)), mask_of(64, 64)),
    "wide.png": (png(photo(40, 3000)), mask_of(27, 2048)),
    "no_hole.png": (png(photo(32, 32)), png(np.full((32, 32, 3), 255, np.uint8))),
}
BAD = {
    "text.png": (b"this is no image", mask_of(8, 8)),
    "cut.png": (png(photo(64, 64))[:1000], mask_of(64, 64)),
    "large.png": (png(np.zeros((2001, 2000), np.uint8)), mask_of(64, 64)),
    "all_hole.png": (png(photo(32, 32)), png(np.zeros((32, 32, 3), np.uint8))),
    "three_levels.png": (png(photo(32, 32)), png(np.repeat(np.uint8([[0, 128, 255]]), 11, 1)[:, :32].repeat(32, 0))),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    return write_run(str(tmp_path_factory.mktemp("networks") / "run"), small_config(64))


@pytest.fixture(scope="module")
def port(run):
    with serving(run) as found:
        yield found


@pytest.fixture(scope="module")
def job(run, tmp_path_factory) -> Path:
    """The output folder of the inpainting job, for the same files."""
    return run_job(run, PICTURES | BAD, tmp_path_factory.mktemp("job"), "--max-pixels", str(MAX_PIXELS))


def ask(port: int, path: str, files=(), method: str = "POST", body: bytes | None = None, **headers: str | None):
    """Status, headers and body of an answer; ``files`` are (field, name, bytes). A header that is None is left out."""
    edge = "edge-of-a-part"
    parts = [
        f'--{edge}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for field, name, data in files
    ]
    form = {"Content-Type": f"multipart/form-data; boundary={edge}", guard.MARK: "1", "Host": f"127.0.0.1:{port}"}
    form |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    with contextlib.closing(connection):
        data = b"".join(parts) + f"--{edge}--\r\n".encode() if body is None else body
        form = {name: value for name, value in form.items() if value is not None}
        connection.request(method, path, data if method == "POST" else None, form)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def fill(port: int, name: str, image: bytes, mask: bytes, **headers):
    return ask(port, "/fill", [("image", name, image), ("mask", "mask.png", mask)], **headers)


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_filled_is_the_jobs_output(name, port, job):
    status, headers, data = fill(port, name, *PICTURES[name])
    assert status == 200, data
    assert data == (job / name).with_suffix(".png").read_bytes()
    items = [json.loads(line) for line in (job / "items.jsonl").read_text().splitlines()]
    (ratio,) = [item["hole_ratio"] for item in items if item["image"].endswith(name)]
    assert float(headers["X-Hole-Ratio"]) == pytest.approx(ratio, abs=1e-6)
    assert (ratio > 0) == (name != "no_hole.png")


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_gets_the_jobs_reason(name, port, job):
    status, _, body = fill(port, name, *BAD[name])
    rejects = [json.loads(line) for line in (job / "rejects.jsonl").read_text().splitlines()]
    (lost,) = [reject for reject in rejects if reject["source"].endswith(name)]
    reason = lost["error"].partition(f" ({job.parent}")[0]  # the mask's address
    assert status == 422 and json.loads(body)["error"].startswith(reason), (body, lost)


@pytest.mark.parametrize("name", PICTURES)
def test_a_view_is_upright_and_of_a_size_to_paint_on(name, port):
    status, headers, data = ask(port, "/view", [("image", name, PICTURES[name][0])])
    shown, mask = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(PICTURES[name][1]))
    assert status == 200 and (shown.mode, shown.size) == ("RGB", mask.size)
    full = {"turned.jpg": (60, 90), "deep.png": (64, 64), "wide.png": (3000, 40), "no_hole.png": (32, 32)}[name]
    assert (int(headers["X-Width"]), int(headers["X-Height"])) == full
    if name == "turned.jpg":
        expected = Image.open(io.BytesIO(PICTURES[name][0])).transpose(Image.Transpose.ROTATE_270)
        np.testing.assert_allclose(np.asarray(shown, int), np.asarray(expected, int), atol=2)


def test_a_form_that_is_none_and_a_file_that_is_too_large_are_told(port):
    image, mask = PICTURES["no_hole.png"]
    for path, files, body, status, words in [
        ("/fill", [("image", "a.png", image)], None, 400, "mask is missing"),
        ("/view", [("image", "a.png", image), ("mask", "b.png", mask)], None, 400, "once each"),
        ("/view", [("image", "a.png", image)] * 2, None, 400, "once each"),
        ("/view", (), b"--edge-of-a-part\r\nno header", 400, ""),
        ("/view", [("image", "a.png", b"\0" * (8 * MAX_PIXELS + (1 << 20) + 1))], None, 413, "33,048,576 bytes or"),
    ]:
        found, _, answer = ask(port, path, files, body=body)
        assert found == status and words in json.loads(answer)["error"], answer
    assert ask(port, "/view", body=image, Content_Type="image/png")[0] == 400
    assert fill(port, "a.png", image, mask)[0] == 200  # it goes on


def test_uploads_that_are_cut_leave_it_quiet_and_working(port, caplog):
    head = f"POST /view HTTP/1.1\r\nHost: localhost\r\n{guard.MARK}: 1\r\nContent-Length: 900000\r\n"
    head += "Content-Type: multipart/form-data; boundary=e\r\n\r\n"
    part = '--e\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + "x" * 200_000
    for body in ("", part):
        with socket.create_connection(("127.0.0.1", port), timeout=300) as connection:
            connection.sendall((head + body).encode())
    assert fill(port, "a.png", *PICTURES["no_hole.png"])[0] == 200  # the one that is worked on after them
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:{port}", "Sec_Fetch_Site": "same-origin"}, 200),
        ({"Host": "localhost:1"}, 200),  # through a tunnel
        ({"Host": "rebound.example"}, 403),
        ({"Host": "127.0.0.1.example:{port}"}, 403),
        ({"Host": "192.0.2.1:{port}"}, 403),
        ({"Origin": "http://other.example"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({guard.MARK.replace("-", "_"): None}, 403),
    ],
)
def test_no_other_site_can_use_it(headers, status, port):
    given = {name: value and value.format(port=port) for name, value in headers.items()}
    assert fill(port, "a.png", *PICTURES["no_hole.png"], **given)[0] == status
    if "Host" in headers:
        assert ask(port, "/", method="GET", Host=given["Host"])[0] == status


def test_the_page_needs_no_other_server(port):
    status, headers, body = ask(port, "/", method="GET")
    assert status == 200 and "default-src 'none'" in headers["Content-Security-Policy"]
    assert b"gs://bucket/run &lt;b&gt;1&lt;/b&gt;" in body
    for name in ("page.html.j2", "page.css", "page.js"):
        text = (PAGE / name).read_text(encoding="utf-8")
        assert "//" not in text.replace("\n  // ", "").replace("\n// ", ""), name
        if name != "page.html.j2":
            found = ask(port, f"/{name}", method="GET")
            assert found[0] == 200 and found[2].decode() == text
    assert [ask(port, path, method="GET")[0] for path in ("/fill", "/../server.py", "/page.html.j2")] == [405, 404, 404]


def test_names_of_a_network_are_those_that_were_given():
    def allowed(host, *names):
        return guard.refuse("GET", {"Host": host}, names) is None

    assert all(map(allowed, ("localhost", "LOCALHOST:80", "127.0.0.1", "127.9.9.9:7", "[::1]:7860")))
    assert not any(map(allowed, ("", "[::1", "a b", "localhost/x", "localhost@x", "10.0.0.1", "[fe80::1]", "host")))
    assert allowed("10.0.0.1", "0.0.0.0", "host") and allowed("Host:80", "0.0.0.0", "host")
    assert not allowed("host.example", "0.0.0.0", "host")


def test_a_network_needs_a_word(capsys):
    base = ["--model", "x", "--host"]
    for host in ("localhost", "127.0.0.1", "::1"):
        assert try_out.check_host(try_out.parser().parse_args([*base, host])) == []
    with pytest.raises(UserError, match="--host 0.0.0.0: .* expected --trusted-network"):
        try_out.check_host(try_out.parser().parse_args([*base, "0.0.0.0"]))
    assert capsys.readouterr().err == ""
    names = try_out.check_host(try_out.parser().parse_args([*base, "Box", "--trusted-network"]))
    assert names == ["box", socket.gethostname().lower()]
    assert "warning: everybody who reaches Box" in capsys.readouterr().err


def test_without_its_extra_it_says_what_to_install():
    program = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from pipelines.try_out import main; from trainer.command import run_command; run_command(main)"
    )
    done = subprocess.run([sys.executable, "-c", program, "--model", "x"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: aiohttp is not installed: pip install 'pconv[try]'\n"


@pytest.mark.slow
@pytest.mark.soak
def test_ctrl_c_ends_it_and_a_port_that_is_taken_is_told(run, tmp_path):
    command = ("-m", "pipelines.cli", "try", "--run", run, "--port")
    with Running(*command, "0", cwd=tmp_path) as running:
        running.wait_for("(Ctrl-C ends it)")
        taken = int(running.told.split(":")[2].partition("/")[0])
        assert running.told == f"http://127.0.0.1:{taken}/  (Ctrl-C ends it)\n"
        assert fill(taken, "a.png", *PICTURES["deep.png"])[0] == 200
        with Running(*command, str(taken), cwd=tmp_path) as other:
            code, told = other.wait()
            assert code == 2 and told.startswith(f"error: --host 127.0.0.1 --port {taken}: ") and told.count("\n") == 1
        assert running.stop(signal.SIGINT) == (130, "interrupted\n")
