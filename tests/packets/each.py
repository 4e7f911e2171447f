"""Markers for tests that run for every iptables variant, or for every family."""

from __future__ import annotations

import pytest

from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family

variants = pytest.mark.parametrize("variant", list(Variant), ids=lambda variant: variant.value)
families = pytest.mark.parametrize("family", list(Family), ids=str)
