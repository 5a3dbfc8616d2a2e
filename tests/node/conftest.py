"""Fixtures of the node tests: labs, shared or of a test's own. A failed test shows its daemon's log."""

import os
import signal
from collections.abc import Iterator

import pytest
from issuer import Issuer, trust
from lab import Lab, sweep

HOOKS = {
    # what the kernel offers best, and the fallbacks of older kernels and drivers, which are forced here
    "first-choice": {"tenant_hook": "auto", "uplink_hook": "auto"},
    "fallback": {"tenant_hook": "clsact", "uplink_hook": "tc"},
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes many seconds; left out by scripts/test --quick")
    # SIGTERM is an interruption like Ctrl-C, after which fixtures clean up; SIGKILL's leavings are swept here.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.geteuid() == 0:
        sweep()


def pytest_unconfigure() -> None:
    """Of pytest-xdist's processes the one in charge ends last: it sweeps for those that were interrupted."""
    if os.geteuid() == 0:
        sweep()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow ones first, so that no process is left with one when the others have nothing more to do."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    report = (yield).get_result()
    labs = [value for value in getattr(item, "funcargs", {}).values() if hasattr(value, "spoiled")]
    for lab in labs if report.failed else []:
        lab.spoiled = True
        report.sections.append(("holdfastd's log", lab.log[-6000:]))


class Pool:
    """Labs that tests use one after the other: a daemon's start costs seconds, the reset in between little."""

    def __init__(self) -> None:
        self.labs: dict[str, Lab] = {}

    def take(self, hooks: str) -> Lab:
        if hooks not in self.labs:
            made = Lab(**HOOKS[hooks])
            made.__enter__()
            self.labs[hooks] = made
            made.serve_all()
        return self.labs[hooks]

    def give_back(self, hooks: str) -> None:
        lab = self.labs[hooks]
        try:
            if not lab.spoiled:
                return lab.reset()
        except BaseException:
            lab.spoiled = True
            raise
        finally:
            if lab.spoiled:
                del self.labs[hooks]
                lab.__exit__(AssertionError, None, None)

    def close(self) -> None:
        for lab in self.labs.values():
            lab.__exit__(None, None, None)


@pytest.fixture(scope="session")
def pool() -> Iterator[Pool]:
    made = Pool()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def lab(pool: Pool) -> Iterator[Lab]:
    """A lab with servers, no lease, and the hooks the kernel offers best. Others used it before."""
    try:
        yield pool.take("first-choice")
    finally:
        pool.give_back("first-choice")


@pytest.fixture(params=list(HOOKS))
def both_hooks(request: pytest.FixtureRequest, pool: Pool) -> Iterator[Lab]:
    """The same, for each way to attach."""
    try:
        yield pool.take(request.param)
    finally:
        pool.give_back(request.param)


@pytest.fixture
def own_lab() -> Iterator[Lab]:
    """A lab of the test's own, to do with as it likes; no servers yet."""
    with Lab() as made:
        yield made


@pytest.fixture(params=list(HOOKS))
def own_both(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The same, for each way to attach."""
    with Lab(**HOOKS[request.param]) as made:
        yield made


@pytest.fixture
def believed(lab: Lab) -> Iterator[None]:
    """Nobody is believed afterwards, and nothing is revoked."""
    yield
    if lab.daemon is not None:
        for each in lab.cli("trust", "show")["revocations"]:
            lab.cli("trust", "restore", each["what"], *(["--tenant", each["tenant"]] if each["tenant"] else []))
        trust(lab)


@pytest.fixture
def issuer(lab: Lab, believed: None) -> Issuer:
    """One that the node believes, for both tenants and one operation."""
    issuer = Issuer(lab)
    trust(lab, issuer.anchor())
    return issuer
