"""Fixtures of the node tests. Each test gets a lab of its own, and on failure shows the daemon's log."""

import os
from collections.abc import Iterator

import pytest

HOOKS = {
    # what the kernel offers best, and the fallbacks of older kernels and drivers, which are forced here
    "first-choice": {"tenant_hook": "auto", "uplink_hook": "auto"},
    "fallback": {"tenant_hook": "clsact", "uplink_hook": "tc"},
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes many seconds; left out by scripts/test --quick")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = (yield).get_result()
    lab = getattr(item, "funcargs", {}).get("lab") or getattr(item, "funcargs", {}).get("both_hooks")
    if report.failed and lab is not None and hasattr(lab, "log"):
        report.sections.append(("holdfastd's log", lab.log[-6000:]))


@pytest.fixture
def lab() -> Iterator["Lab"]:
    with new_lab() as made:
        made.serve_all()
        yield made


@pytest.fixture(params=list(HOOKS))
def both_hooks(request: pytest.FixtureRequest) -> Iterator["Lab"]:
    """A lab for each way to attach."""
    with new_lab(**HOOKS[request.param]) as made:
        made.serve_all()
        yield made


def new_lab(**options: object) -> "Lab":
    if os.geteuid() != 0:
        pytest.skip("needs root, to make network namespaces")
    from lab import Lab

    return Lab(**options)
