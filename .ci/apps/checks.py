"""All checks, in the order in which they run."""

import attributes  # noqa: F401
import names  # noqa: F401
import data  # noqa: F401
import locks  # noqa: F401
import apps  # noqa: F401
import suites
import life  # noqa: F401: last, because it kills nodes
from check import CHECKS as ALL  # noqa: F401

prepare = suites.prepare
