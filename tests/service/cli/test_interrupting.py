"""What a driver does that is told to end."""

from __future__ import annotations

import os
import signal
import time

import pytest
import typer

from integrand.service.cli import commands


def test_a_sigterm_takes_back_the_abort_that_rays_handler_has_set() -> None:
    """Which comes 3 seconds later: stopping workers may take longer."""

    def told_to_end() -> None:
        signal.alarm(60)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        with pytest.raises(typer.Exit) as ended, commands._interruptible():
            told_to_end()
        assert ended.value.exit_code == 130
        assert signal.alarm(0) == 0
    finally:
        signal.signal(signal.SIGALRM, before)
