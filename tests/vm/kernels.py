"""Kernels of kernels/matrix.toml, from the mirror that this machine's own apt sources name.

apt downloads them with its own signature checks, from an apt root of our own beside the machine's: another suite
name in the machine's own source, so that nothing of the machine changes. What a guest needs of one is kept unpacked
in the cache directory, named by its release, until it is asked for anew.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import lzma
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MATRIX, GUEST = ROOT / "kernels" / "matrix.toml", ROOT / "kernels" / "guest.toml"
KEYRING = pathlib.Path("/usr/share/keyrings/debian-archive-keyring.gpg")  # package debian-archive-keyring
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "holdfast" / "vm"


class KernelError(Exception):
    """A kernel could not be had; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    name: str  # the row's
    suite: str
    package: str
    path: pathlib.Path = pathlib.Path()  # vmlinuz, and modules/ as in a guest's /lib/modules

    @property
    def release(self) -> str:
        return next((self.path / "modules").iterdir()).name


def matrix() -> list[Kernel]:
    return [Kernel(**row) for row in tomllib.loads(MATRIX.read_text())["kernel"]]


def find(name: str, refresh: bool = False, say=print) -> Kernel:
    """The kernel of a row, unpacked: from the cache, or from the mirror."""
    rows = {kernel.name: kernel for kernel in matrix()}
    if name not in rows:
        raise KernelError(f"there is no kernel '{name}' in kernels/matrix.toml; there are {', '.join(rows)}")
    wanted = dataclasses.replace(rows[name], path=CACHE / name)
    # Other modules wanted than are in the cache: unpack again.
    if refresh or not (wanted.path / "guest.toml").exists() or (wanted.path / "guest.toml").read_text() != GUEST.read_text():
        fetch(wanted, say)
    return wanted


def fetch(kernel: Kernel, say) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f".{kernel.name}-") as name:
        work = pathlib.Path(name)
        apt = Apt(work / "apt", kernel.suite)
        say(f"vm: looking up {kernel.package} in {kernel.suite}")
        packages = apt.kernel_packages(kernel.package)
        say(f"vm: downloading {', '.join(packages)}")
        tree = work / "tree"
        for archive in apt.download(packages, work / "archives"):
            run(["dpkg-deb", "--extract", str(archive), str(tree)])
        unpacked = work / "kernel"
        unpack(tree, unpacked)
        (unpacked / "guest.toml").write_text(GUEST.read_text())
        # In one step, so that an interrupted run leaves a whole kernel or none.
        old = work / "old"
        if kernel.path.exists():
            kernel.path.rename(old)
        unpacked.rename(kernel.path)


def run(argv: list[str], **options) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options)
    if done.returncode != 0:
        raise KernelError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


class Apt:
    """An apt root of our own with one suite in it."""

    def __init__(self, root: pathlib.Path, suite: str) -> None:
        self.suite = suite
        for part in ("lists/partial", "cache/archives/partial", "parts"):
            (root / part).mkdir(parents=True)
        (root / "status").touch()
        (root / "suite.sources").write_text(source_of(suite))
        settings = {
            "Dir::State": root,
            "Dir::State::status": root / "status",
            "Dir::State::lists": root / "lists",
            "Dir::Cache": root / "cache",
            "Dir::Etc::sourcelist": root / "suite.sources",
            "Dir::Etc::sourceparts": root / "parts",
            "Dir::Etc::preferences": root / "none",
            "Dir::Etc::preferencesparts": root / "parts",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "APT::Sandbox::User": "root",  # the apt root is private to whoever runs this
        }
        self.options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        run(["apt-get", "-q", "--error-on=any", *self.options, "update"])

    def kernel_packages(self, package: str) -> list[str]:
        """Those that hold a kernel and its modules: what `package` depends on, as far as it is named linux-*."""
        found: list[str] = []
        ahead = [package]
        while ahead:
            name = ahead.pop()
            record = run(["apt-cache", *self.options, "--no-all-versions", "show", name])
            depends = re.search(r"^Depends: (.*)$", record, re.M)
            for other in re.findall(r"\blinux-[a-z]+-\d[\w.+-]*", depends.group(1) if depends else ""):
                if other not in found:
                    found.append(other)
                    ahead.append(other)
        if not found:
            raise KernelError(f"{package} in {self.suite} names no kernel")
        return found

    def download(self, packages: list[str], to: pathlib.Path) -> list[pathlib.Path]:
        to.mkdir()
        run(["apt-get", "-q", *self.options, "download", *packages], cwd=to)
        return sorted(to.glob("*.deb"))


def source_of(suite: str) -> str:
    """The machine's own source of its release's main archive, with another suite in the release's place."""
    own = re.search(r"^VERSION_CODENAME=(\w+)$", pathlib.Path("/etc/os-release").read_text(), re.M)
    listed = run(["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)", "Created-By: Packages"])
    for line in listed.splitlines():
        site, codename, component = line.split(" ")
        if own and codename == own.group(1) and component == "main":
            # Debian's own keys, and no others that the machine trusts for other archives.
            signed_by = f"Signed-By: {KEYRING}\n" if KEYRING.exists() else ""
            return f"Types: deb\nURIs: {site}\nSuites: {suite}\nComponents: main\n{signed_by}"
    raise KernelError(f"this machine's apt sources do not name Debian's own archive: cannot look for {suite} beside it")


def unpack(tree: pathlib.Path, to: pathlib.Path) -> None:
    """vmlinuz and the modules of kernels/guest.toml with all they depend on, uncompressed, for modprobe."""
    base = tree / "usr" if (tree / "usr/lib/modules").is_dir() else tree
    source = next((base / "lib/modules").iterdir())
    image = next(iter([*(tree / "boot").glob("vmlinuz-*"), *source.glob("vmlinuz")]), None)
    if image is None:
        raise KernelError("the packages hold no vmlinuz")
    modules = to / "modules" / source.name
    modules.mkdir(parents=True)
    shutil.copy(image, to / "vmlinuz")

    run(["depmod", "--basedir", str(base), source.name])
    depends = {}
    for line in (source / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        depends[path] = others.split()
    names = {path: pathlib.PurePath(path).name.partition(".ko")[0] for path in depends}
    wanted = tomllib.loads(GUEST.read_text())["modules"]
    chosen = {
        path
        for path, name in names.items()
        if any(fnmatch.fnmatchcase(name.replace("-", "_"), pattern.replace("-", "_")) for pattern in wanted)
    }
    chosen |= {other for path in chosen for other in depends[path]}
    for path in sorted(chosen):
        copy = modules / path.removesuffix(".xz")
        copy.parent.mkdir(parents=True, exist_ok=True)
        data = (source / path).read_bytes()
        copy.write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        if (source / name).exists():
            shutil.copy(source / name, modules / name)
    # depmod wants lib/modules below its base.
    with tempfile.TemporaryDirectory() as name:
        (pathlib.Path(name) / "lib").mkdir()
        (pathlib.Path(name) / "lib/modules").symlink_to(to / "modules")
        run(["depmod", "--basedir", name, source.name])
