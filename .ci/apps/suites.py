"""Suites and programs that have to be installed first; only in the full run."""

import os
import subprocess


def prepare(chosen, top):
    """Installs what the chosen checks need and this machine lacks."""
