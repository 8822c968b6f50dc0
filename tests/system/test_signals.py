"""Signals become requests, for as long as somebody answers them."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from horovod_transformer.system.signals import SIGNALS, StopRequest, handling, not_ignored


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered_and_its_handler_given_back(number):
    with handling([number], signal.SIG_DFL):  # also if all tests run under nohup
        with StopRequest() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            assert stop
            assert stop.signal_name == number.name
        assert signal.getsignal(number) == signal.SIG_DFL


def test_a_run_that_is_to_outlive_its_terminal_does():
    with handling([signal.SIGHUP], signal.SIG_IGN), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop.signal_name == "SIGUSR2"


def test_handlers_are_given_back_after_an_error():
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_second_interrupt_ends_the_process():
    with pytest.raises(KeyboardInterrupt), StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_sigterm_does_not():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop


def test_a_first_interrupt_that_a_sigterm_has_overtaken_does_not():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_another_thread_is_left_alone():
    before = [signal.getsignal(number) for number in SIGNALS]
    seen = []

    def use():
        with StopRequest() as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [False]
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_handlers_of_a_while_lie_over_each_other():
    came = []
    before = signal.getsignal(signal.SIGUSR1)
    with handling([signal.SIGUSR1], lambda number, frame: came.append("outer")):
        with handling([signal.SIGUSR1], lambda number, frame: came.append("inner")):
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert came == ["inner", "outer"]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_what_is_ignored_is_known():
    with handling([signal.SIGUSR1], signal.SIG_IGN):
        assert not_ignored([signal.SIGUSR1, signal.SIGTERM]) == [signal.SIGTERM]
