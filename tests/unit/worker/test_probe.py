"""A build of llama.cpp whose AMX kernels crash must cost speed, not the worker."""

from __future__ import annotations

import os
import signal

import pytest

from neuron.worker import llama, probe


def _with_amx(monkeypatch: pytest.MonkeyPatch, value: int) -> None:
    versions = ("0", f"CPU : AVX512 = 1 | AMX_INT8 = {value} |")
    monkeypatch.setattr(llama, "versions", lambda: versions)


def test_without_amx_in_the_build_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_amx(monkeypatch, 0)
    monkeypatch.setattr(probe, "_compute_and_exit", lambda: os._exit(9))
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    assert probe.are_extra_kernels_sound()


def test_a_child_that_computes_shows_the_kernels_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_amx(monkeypatch, 1)
    monkeypatch.setattr(probe, "_compute_and_exit", lambda: os._exit(0))
    assert probe.are_extra_kernels_sound()


def test_a_child_killed_by_its_first_matrix_shows_them_broken(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _with_amx(monkeypatch, 1)
    monkeypatch.setattr(probe, "_compute_and_exit", lambda: os.kill(os.getpid(), signal.SIGKILL))
    assert not probe.are_extra_kernels_sound()
    assert "AMX kernels that crash" in capfd.readouterr().err
