"""What a machine has that can be fenced: a first use of each, so that later tests can build on it.

Needs the profile `devices` of kernels/machines.toml, whose places and serial numbers are named here.
"""

import os
import pathlib
import subprocess
import time
from collections.abc import Callable

import pytest

pytestmark = pytest.mark.xdist_group("devices")  # there is one of each

PCI = pathlib.Path("/sys/bus/pci")
NVME = "0000:00:10.0"
SIZE = 64 << 20


@pytest.fixture(scope="module", autouse=True)
def drivers() -> None:
    names = ("nvme", "virtio_scsi", "sd_mod", "xhci_pci", "usb_storage", "i6300esb", "vfio_pci", "vfio_iommu_type1")
    subprocess.run(["modprobe", "--all", *names], check=True)


def wait_for(condition: Callable[[], object], what: str) -> object:
    end = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return value


def disk(under: str) -> str | None:
    """The name of the block device whose place in the machine has this in it."""
    return next((path.name for path in pathlib.Path("/sys/block").iterdir() if under in str(path.resolve())), None)


def reads(name: str) -> None:
    """All of it, by the disk itself and not from a cache."""
    node = pathlib.Path("/dev", name)
    wait_for(node.exists, f"{node} is there")
    done = subprocess.run(["dd", f"if={node}", "of=/dev/null", "bs=1M", "iflag=direct"], check=True, capture_output=True, text=True)
    assert f"{SIZE} bytes" in done.stderr


@pytest.mark.parametrize("under", ["/nvme/", "/virtio", "/usb"])
def test_a_disk(under: str) -> None:
    reads(wait_for(lambda: disk(under), f"a disk below {under}"))


def test_an_iommu_and_a_disk_that_is_handed_out() -> None:
    """Behind the IOMMU each device is of a group; one that is taken from its driver is VFIO's, and comes back."""
    group = (PCI / "devices" / NVME / "iommu_group").resolve().name
    wait_for(lambda: disk("/nvme/"), "the NVMe disk")
    override, driver = PCI / "devices" / NVME / "driver_override", PCI / "devices" / NVME / "driver"

    def hand_to(name: str) -> None:
        override.write_text(name)
        (driver / "unbind").write_text(NVME)
        (PCI / "drivers_probe").write_text(NVME)
        assert driver.resolve().name == name

    hand_to("vfio-pci")
    wait_for(lambda: disk("/nvme/") is None, "the disk is gone")
    opened = os.open(f"/dev/vfio/{group}", os.O_RDWR)  # whoever has this drives the device
    os.close(opened)
    hand_to("nvme")
    reads(wait_for(lambda: disk("/nvme/"), "the disk is back"))


def test_a_usb_disk_is_shut_out() -> None:
    name = wait_for(lambda: disk("/usb"), "a disk by USB")
    path = pathlib.Path("/sys/block", name).resolve()
    port = next(parent for parent in path.parents if (parent / "idVendor").exists())
    (port / "authorized").write_text("0")
    wait_for(lambda: disk("/usb") is None, "the disk is gone")
    (port / "authorized").write_text("1")
    reads(wait_for(lambda: disk("/usb"), "the disk is back"))


def test_a_watchdog() -> None:
    """It runs from its first ping on, and stops for the letter V only."""
    (watchdog,) = pathlib.Path("/sys/class/watchdog").iterdir()
    assert (watchdog / "identity").read_text().strip() == "i6300ESB timer"
    assert (watchdog / "state").read_text().strip() == "inactive"
    opened = os.open(f"/dev/{watchdog.name}", os.O_WRONLY)
    assert (watchdog / "state").read_text().strip() == "active"
    os.write(opened, b"V")
    os.close(opened)
    assert (watchdog / "state").read_text().strip() == "inactive"
