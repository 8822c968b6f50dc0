"""What is started while signals are held back outlives them; the process itself gets them."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from horovod_transformer.system.signals import SIGNALS, StopRequest, handling, held_back
from horovod_transformer.training.watchdog import Watchdog

# Signals itself, as Slurm would, and says so if it is still there.
CHILD = ["sh", "-c", "for name in TERM USR1 USR2 HUP INT; do kill -$name $$; done; echo alive"]


def lives() -> bool:
    return subprocess.run(CHILD, capture_output=True, text=True, check=False).stdout == "alive\n"


def test_a_program_started_meanwhile_outlives_every_stop_signal():
    assert not lives()
    with held_back():
        assert lives()
    assert not lives()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_afterwards(number):
    with handling([number], signal.SIG_DFL), StopRequest() as stop:  # also if all tests run under nohup
        with held_back():
            os.kill(os.getpid(), number)
        assert stop.signal_name == number.name
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_they_are_let_through_after_an_error():
    with pytest.raises(ZeroDivisionError), held_back():
        raise ZeroDivisionError
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_watchdogs_companion_outlives_signals_as_soon_as_it_is_there():
    with Watchdog(60, 0) as watchdog:
        for number in SIGNALS:
            watchdog._companion.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            watchdog._companion.wait(2)
