"""A bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from horovod_transformer.system import console as progress_bar
from horovod_transformer.system.console import ProgressBar, counted, narrate, tell, telling_time

PROGRAM = """
from horovod_transformer.system.console import ProgressBar
bar = ProgressBar("training", 10, start=4)
bar.advance(7, loss="3.142")
bar.message("a line above")
bar.advance(10, loss="2.718")
bar.close()
"""


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: Clock.now)
    return Clock


def test_without_a_terminal_a_line_now_and_then(clock, capsys):
    bar = ProgressBar("training", 100, start=10)
    for done in range(11, 41):
        clock.now += 1
        bar.advance(done, loss=f"{done / 10:.1f}")
    lines = capsys.readouterr().err.splitlines()
    # 30 s, a line each 15; 15 updates took 15 s, so 75 more take 75 s.
    assert lines[0] == "training: update 25/100, loss 2.5, 01:15 left"
    assert len(lines) == 2


def test_the_last_step_is_always_told(clock, capsys):
    bar = ProgressBar("reading", 3, unit="book")
    for done in (1, 2, 3):
        bar.advance(done)
    assert capsys.readouterr().err == "reading: book 3/3, 00:00 left\n"


def test_a_message_goes_to_stdout(capsys):
    ProgressBar("training", 3).message("done")
    assert capsys.readouterr().out == "done\n"


@pytest.fixture
def verbosity():
    yield progress_bar.set_verbosity
    progress_bar.set_verbosity(progress_bar.USUAL)


def test_quiet_leaves_results_warnings_and_errors(capsys, verbosity):
    verbosity(progress_bar.QUIET)
    bar = ProgressBar("reading", 1)
    bar.advance(1)
    for say in (bar.message, narrate):
        for text in ("going on", "warning: no room", "error: gone"):
            say(text)
    bar.message("a result", always=True)
    tell("another")
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [*(["warning: no room", "error: gone"] * 2), "a result", "another"]
    assert captured.err == ""


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("terminal", "variables", "shows"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (False, {"FORCE_COLOR": "1"}, True),
        (True, {"FORCE_COLOR": "0"}, False),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
    ],
)
def test_colours_where_they_are_wanted(monkeypatch, terminal, variables, shows):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stream = Stream(terminal)
    for text in ("error: x", "warning: y", "a warning: z"):
        tell(text, stream)
    plain = "error: x\nwarning: y\na warning: z\n"
    coloured = "\x1b[1;31merror:\x1b[0m x\n\x1b[1;33mwarning:\x1b[0m y\na warning: z\n"
    assert stream.getvalue() == (coloured if shows else plain)


def test_work_that_says_nothing_shows_that_it_goes_on(monkeypatch, capsys):
    monkeypatch.setattr(progress_bar, "LINE_INTERVAL_S", 0.01)
    with telling_time("compressing"):
        while not (said := capsys.readouterr().err):
            time.sleep(0.005)
    assert said.startswith("compressing: 0 s so far\n")


SPEAKING = """
import os, sys
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.system.console import ProgressBar, tell
from horovod_transformer.errors import UserError

def main(arguments):
    tell("prüfung – č ± \\udcfc")
    print("straight")
    bar = ProgressBar("č", 2)
    bar.advance(2, loss="±")
    bar.message("above – it")
    bar.close()
    os.write(2, b"from C\\n")
    raise UserError("č: is wrong")

sys.exit(run_command(main))
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "ascii:strict"])
def test_a_terminal_of_any_encoding(run_python, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    done = run_python("-c", SPEAKING, encoding=encoding.partition(":")[0])
    assert done.returncode == 2, done.stderr
    assert "straight" in done.stdout and "Traceback" not in done.stderr and "?" in done.stdout


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(root, tmp_path, closed):
    (tmp_path / "speaking.py").write_text(SPEAKING)
    command = f"exec {sys.executable} {tmp_path}/speaking.py {closed}"
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 2


def test_a_closed_stream_does_not_lead_into_the_next_file(root, tmp_path):
    script = SPEAKING.replace("os.write", f"open({str(tmp_path / 'precious')!r}, 'w'); os.write")
    (tmp_path / "speaking.py").write_text(script.replace("open(", "kept = open("))
    command = f"exec {sys.executable} {tmp_path}/speaking.py 2>&-"
    subprocess.run(
        ["sh", "-c", command], env={**os.environ, "PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL
    )
    assert (tmp_path / "precious").read_text() == ""


PRINTING = """
import sys
from horovod_transformer.commands.command_line import run_command
sys.exit(run_command(lambda arguments: print("a result" * int(arguments[0])) or 0))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("times", ["1", "10000"])  # found out at the end, and while printing
def test_results_that_a_full_disk_does_not_take_are_a_mistake(root, tmp_path, times, unbuffered):
    (tmp_path / "printing.py").write_text(PRINTING)
    command = f"exec {sys.executable} {tmp_path}/printing.py {times} > /dev/full"
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: standard output takes no more: No space left on device; what was printed is lost\n"
    )


TELLING = """
import sys
from horovod_transformer.commands.command_line import run_command
from horovod_transformer.system.console import tell
sys.exit(run_command(lambda arguments: [tell("a line") for _ in range(3)] and 0))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a disk that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_lines_about_work_that_is_done_may_be_lost(root, tmp_path, unbuffered):
    (tmp_path / "telling.py").write_text(TELLING)
    command = f"exec {sys.executable} {tmp_path}/telling.py > /dev/full"
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


TYPING = """
import sys, time
from horovod_transformer.commands.command_line import run_command

def main(arguments):
    print(ascii(input()), flush=True)
    time.sleep(100)

sys.exit(run_command(main))
"""


@pytest.mark.slow
def test_what_is_typed_may_be_in_any_letters_and_ctrl_c_ends_without_a_traceback(root, tmp_path):
    (tmp_path / "typed.py").write_text(TYPING)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "typed.py")],
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write("né\n".encode())
    process.stdin.flush()
    assert process.stdout.readline() == b"'n\\ufffd\\ufffd'\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1] == b"" and process.returncode == -signal.SIGINT


def on_a_terminal(command, **options) -> str:
    """What a command that ends well shows on a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, **options)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_on_a_terminal_a_bar(root):
    text = on_a_terminal([sys.executable, "-c", PROGRAM], cwd=root)
    assert "training: 100%" in text and "10/10" in text and "loss=2.718" in text
    assert "a line above\r\n" in text


@pytest.mark.distributed
def test_horovodrun_shows_lines_on_a_terminal_and_no_bar(root, tmp_path):
    """It puts `[0]<stderr>:` before each piece of what a rank writes, so that a bar becomes rubbish."""
    program = tmp_path / "bar.py"
    program.write_text(PROGRAM)
    horovodrun = str(Path(sys.executable).with_name("horovodrun"))
    command = [horovodrun, "-np", "1", sys.executable, str(program)]
    text = on_a_terminal(command, env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    assert "[0]<stderr>:training: update 10/10, loss 2.718, 00:00 left\r\n" in text
    assert "[0]<stdout>:a line above\r\n" in text
    assert "%|" not in text and "\r" not in text.replace("\r\n", ""), text


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 updates"), (1, "1 update"), (2, "2 updates"), (1184, "1,184 updates")]
)
def test_what_is_counted_has_its_plural(number, words):
    assert counted(number, "update") == words
    more = words.replace("updates", "processes").replace("update", "process")
    assert counted(number, "process", "processes") == more
