"""Exit codes and output of commands, as a shell sees them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.command import ArgumentParser, code_version, duration, integer, printable
from trainer.errors import UserError


def run_script(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=600)


def run_main(body, *arguments):
    code = f"import sys\nfrom trainer.command import *\ndef main(argv):\n    {body}\nrun_command(main)\n"
    return run_script(code, *arguments)


def test_exit_codes_and_output():
    assert run_main("return None").returncode == 0
    assert run_main("return 3").returncode == 3
    seen = run_main("print(argv)", "--a", "b")
    assert (seen.returncode, seen.stdout, seen.stderr) == (0, "['--a', 'b']\n", "")


def test_user_errors_are_one_line():
    seen = run_main(r"raise UserError('first\n   second\tthird')")
    assert (seen.returncode, seen.stdout, seen.stderr) == (2, "", "error: first second third\n")


def test_what_a_terminal_might_obey_is_printed_as_escapes():
    name = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202etxt\udcff \xe4\u65e5"
    escaped = r"a\x1b]0;title\x07\x1b[2J\x9b31m\u202etxt\udcff " + "\xe4\u65e5"
    assert printable(name) == escaped and printable("two\nlines, as they are") == "two\nlines, as they are"
    seen = run_main(f"from trainer.errors import UserError; raise UserError({ascii(name)})")
    assert (seen.returncode, seen.stderr) == (2, f"error: {escaped}\n")


def test_mistakes_of_the_program_keep_their_traceback():
    seen = run_main("raise ValueError('ours')")
    assert seen.returncode == 1 and seen.stderr.startswith("Traceback") and "ValueError: ours" in seen.stderr


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (
            "--images {0}/in/*.jpg",
            "Received 3: {0}/in/a.jpg, {0}/in/b.jpg, {0}/in/c d.jpg. Without quotes, the shell "
            "replaces a pattern by the names that match it: --images '{0}/in/*.jpg', or name the folder, "
            "--images {0}/in",
        ),
        ("--images=in/*.jpg --flag", "Received 3: .* --images 'in/*.jpg', or name the folder, --images in"),
        ("--flag --images *.txt", "Received 2: 1.txt, 2.txt. .* --images '*.txt', or name the folder, --images ."),
        ("--images */*", "Received 4: in/a.jpg, in/b.jpg, in/c d.jpg .... .* --images '**/*', or name the folder"),
        ("--images my photos", "Received 2: my, photos. A name with blanks needs quotes: --images 'my photos'"),
        ("--images gone x", "Received 2: gone, x. A value with blanks, and a pattern such as '*.jpg', need quotes."),
        (
            "--set a=1 b=2",
            "--set: expected one value. Received 2: a=1, b=2. Give the option once for each: --set a=1 --set b=2",
        ),
        ("--flag in/a.jpg", "unexpected argument 'in/a.jpg' after --flag"),
        ("in/a.jpg --flag", "unexpected argument 'in/a.jpg'"),
        ("--images in --xyzzy", "unrecognized arguments: --xyzzy"),
    ],
)
def test_what_the_shell_makes_of_a_pattern(argv, expected, tmp_path, monkeypatch):
    """The arguments are those that bash makes of the line."""
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.jpg", "in/b.jpg", "in/c d.jpg", "my photos/e.gif", "1.txt", "2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    line = "printf '%s\\0' " + argv.format(tmp_path).replace(
        "--images=in/*.jpg", "--images=in/a.jpg in/b.jpg in/c\\ d.jpg"
    )
    made = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout.split("\0")[:-1]
    parser = ArgumentParser(prog="job")
    parser.add_argument("--images")
    parser.add_argument("--set", action="append")
    parser.add_argument("--flag", action="store_true")
    with pytest.raises(UserError) as caught:
        parser.parse_args(made)
    pattern = re.escape(expected.format(tmp_path)).replace(r"\ \.\*\ ", " .*")
    assert re.search(pattern, str(caught.value)), caught.value
    assert str(caught.value).endswith("(job --help lists the options)")


def test_interrupt_is_one_line():
    seen = run_main("raise KeyboardInterrupt")
    assert (seen.returncode, seen.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--images"),
        (["--images", "a", "--nonsense"], "--nonsense"),
        (["--imag", "a"], "--images"),  # an abbreviation would change its meaning with the next option
        (["--images", "a", "--count", "many"], "--count"),
    ],
)
def test_wrong_options_are_user_errors(argv, message):
    parser = ArgumentParser(prog="python -m x")
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int)
    with pytest.raises(UserError, match=f"{message}.*python -m x --help"):
        parser.parse_args(argv)


@pytest.mark.parametrize(
    ("low", "high", "text", "message"),
    [
        (1, 9, "0", "--count: expected 1 to 9. Received 0."),
        (1, 9, "10", "--count: expected 1 to 9. Received 10."),
        (1, 9, "many", "--count: expected 1 to 9. Received 'many'."),
        (-1, None, "-2", "--count: expected -1 or more. Received -2."),
        (1, None, "1.5", "--count: expected 1 or more. Received '1.5'."),
    ],
)
def test_integers_out_of_range_are_user_errors(low, high, text, message):
    parser = ArgumentParser(prog="python -m x")
    parser.add_argument("--count", type=integer(low, high))
    with pytest.raises(UserError, match=re.escape(message)):
        parser.parse_args([f"--count={text}"])
    for value in {low, high} - {None}:
        assert parser.parse_args([f"--count={value}"]).count == value


def test_help_keeps_the_lines_of_the_docstring():
    description = "First line.\n\n    python -m x --images A\n    python -m x --images B\n"
    assert description in ArgumentParser(description=description).format_help()


def test_quiet_imports_hold_back_output_below_python():
    seen = run_script(
        "import os, sys\n"
        "from trainer.command import quiet_imports\n"
        "with quiet_imports():\n"
        "    os.write(2, b'native ')\n"
        "    print('python ', file=sys.stderr)\n"
        "    print('out')\n"
        "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])\n"
        "print('after', file=sys.stderr)\n"
    )
    assert (seen.returncode, seen.stdout, seen.stderr) == (0, "out\n3\n", "after\n")


def test_quiet_imports_show_everything_when_loading_fails():
    seen = run_script(
        "import os\n"
        "os.environ['TF_CPP_MIN_LOG_LEVEL'] = '1'\n"
        "from trainer.command import quiet_imports\n"
        "try:\n"
        "    with quiet_imports():\n"
        "        os.write(2, b'the reason\\n')\n"
        "        import no_such_module_anywhere\n"
        "except ImportError:\n"
        "    os.write(2, b'caught\\n')\n"
        "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])\n"
    )
    assert (seen.returncode, seen.stdout, seen.stderr) == (0, "1\n", "the reason\ncaught\n")


@pytest.mark.parametrize("collects", [True, False])
def test_modules_are_exempt_from_garbage_collection(collects):
    seen = run_script(
        "import gc, sys\n"
        "from trainer.command import quiet_imports\n"
        f"gc.enable() if {collects} else gc.disable()\n"
        "with quiet_imports():\n"
        "    assert not gc.isenabled()\n"
        "    import wave\n"
        f"assert gc.isenabled() is {collects}\n"
        "frozen = gc.get_freeze_count()\n"
        "assert not any(found is vars(wave) for found in gc.get_objects()) and frozen\n"
        "garbage = [set() for _ in range(1000)]\n"
        "with quiet_imports():\n"
        "    import wave\n"
        "assert gc.get_freeze_count() <= frozen\n"
        "try:\n"
        "    with quiet_imports(): import no_such_module_anywhere\n"
        "except ImportError: pass\n"
        f"assert gc.isenabled() is {collects}\n"
    )
    assert seen.returncode == 0, seen.stderr


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (-1, "0:00")]
)
def test_durations_are_written_as_on_a_clock(seconds, text):
    assert duration(seconds) == text


def test_code_version_is_the_projects():
    pyproject = Path(__file__).resolve().parents[1] / "pyproject.toml"
    assert code_version() == re.search(r'^version = "(.+)"$', pyproject.read_text(), re.M)[1]


@pytest.mark.parametrize(("library", "extra"), [("apache_beam", "beam"), ("ray", "ray")])
def test_a_library_that_is_not_installed_is_told_with_its_extra(library, extra):
    seen = run_main(f"sys.modules[{library!r}] = None; import {library}")
    expected = f"error: {library} is not installed: pip install 'pconv[{extra}]'\n"
    assert (seen.returncode, seen.stderr) == (2, expected)


def test_a_version_with_the_commit(monkeypatch):
    monkeypatch.setenv("PCONV_COMMIT", "3f2a1b")
    assert re.fullmatch(r"\d[\d.]+\+3f2a1b", code_version())
