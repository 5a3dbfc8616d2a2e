"""The client library as others get it: installed, moved, found by CMake and by pkg-config, and used against a node;
and the example without it.

Covers A1. Needs a compiler, cmake and pkg-config, which a machine that only runs Holdfast has not.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest
from issuer import Issuer, as_uid, trust
from lab import A, SLOW, Lab, build_dir, policy

USER = 4001  # in no group of ours

PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(example LANGUAGES CXX)
find_package(Holdfast 0.1 CONFIG REQUIRED)
add_executable(client_example client_example.cpp)
target_link_libraries(client_example PRIVATE Holdfast::client)
"""


def sh(argv: Sequence[object], **environment: str) -> str:
    done = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, timeout=120 * SLOW, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
    return done.stdout


def cached(name: str) -> str:
    """A variable of the build that is tested."""
    (value,) = re.findall(rf"^{name}:\w+=(.*)$", (build_dir() / "CMakeCache.txt").read_text(), re.M)
    return value


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Installed for another prefix than was configured, into a staging directory, and then moved."""
    for tool in ("c++", "cmake", "pkg-config"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")
    directory = tmp_path_factory.mktemp("client")
    stage, moved = directory / "stage", directory / "moved"
    sh(["cmake", "--install", build_dir(), "--prefix", "/opt/holdfast", "--component", "client"], DESTDIR=str(stage))
    (stage / "opt" / "holdfast").rename(moved)
    return moved


def compiler() -> str:
    """The one of the build, whose sanitizers come with it."""
    return cached("CMAKE_CXX_COMPILER")


def sanitizers() -> list[str]:
    """What a program needs that links an archive of a sanitizer build."""
    names = cached("HOLDFAST_SANITIZE")
    return [f"-fsanitize={names}"] if names else []


def by_cmake(installed: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    (directory / "CMakeLists.txt").write_text(PROJECT)
    strict = " ".join(["-Wall", "-Wextra", "-Werror", *sanitizers()])
    words = [f"-DCMAKE_PREFIX_PATH={installed}", f"-DCMAKE_CXX_COMPILER={compiler()}", f"-DCMAKE_CXX_FLAGS={strict}"]
    sh(["cmake", "-S", directory, "-B", directory / "build", *words])
    sh(["cmake", "--build", directory / "build"])
    return directory / "build" / "client_example"


def flags(installed: pathlib.Path) -> list[str]:
    """What a compiler has to be told, by pkg-config and by the sanitizers."""
    (found,) = installed.rglob("pkgconfig")
    words = sh(["pkg-config", "--cflags", "--libs", "--static", "holdfast-client"], PKG_CONFIG_PATH=str(found)).split()
    return words + sanitizers()


def by_pkg_config(installed: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    strict = ["-std=c++23", "-Wall", "-Wextra", "-Werror"]
    sh([compiler(), *strict, "-o", directory / "client_example", directory / "client_example.cpp", *flags(installed)])
    return directory / "client_example"


@pytest.mark.parametrize("build", [by_cmake, by_pkg_config])
def test_the_example(own_lab: Lab, installed: pathlib.Path, tmp_path: pathlib.Path, build) -> None:
    """A1: issues, presents and checks a token, from the installed files alone."""
    (example,) = installed.rglob("examples/client_example.cpp")
    shutil.copy(example, tmp_path)
    program = build(installed, tmp_path)
    lab = own_lab
    issuer = Issuer(lab)
    words = [str(program), str(issuer.key), issuer.name, A, "web", str(lab.dir / "run")]
    trust(lab)
    done = lab.run("node", words, check=False)
    assert done.returncode == 1 and "nobody with that key may sign" in done.stderr, done
    trust(lab, issuer.anchor())
    said = lab.run("node", words).stdout.splitlines()
    (granted,) = [line.split()[2].rstrip(",") for line in said if line.startswith("granted")]
    assert list(lab.leases()) == [granted]
    asked = [line.rsplit(": ", 1)[1] for line in said if line.startswith("asked")]
    assert asked == ["good", "operation_not_named"] * 2, said


def test_the_example_in_python(own_lab: Lab) -> None:
    """A1, A2: one file, by the sockets alone, of a user in no group: a signed bundle, a watcher who signs, grant and renewal."""
    lab = own_lab
    issuer = Issuer(lab)
    key = lab.dir / "example.pem"
    key.write_bytes(issuer.key.read_bytes())
    key.chmod(0o400)
    os.chown(key, USER, USER)
    document = policy()
    document["generation"] = lab.ask("bundle.show")["generation"] + 1
    path = lab.write_policy(document)
    path.chmod(0o444)
    example = pathlib.Path(__file__).parents[2] / "userspace" / "dist" / "token_example.py"
    words = [
        *as_uid(USER), sys.executable, str(example), "--key", str(key), "--issuer", issuer.name, "--tenant", A, "--endpoint", "web",
        "--sockets", str(lab.dir / "run"), "--policy", str(path), "--watch",
    ]  # fmt: skip
    # What the key may not is refused: to sign bundles, and to ask for a watch.
    for uses in (["token"], ["token", "bundle"]):
        trust(lab, issuer.anchor(uses=uses))
        done = lab.run("node", words, check=False)
        assert done.returncode == 1 and "refused: " in done.stderr and "granted" not in done.stdout, done
        assert ("pushed" in done.stdout) == ("bundle" in uses), done
    assert lab.leases() == {}
    document["generation"] += 1
    path.write_text(json.dumps(document))
    trust(lab, issuer.anchor(uses=["token", "bundle", "request"], verbs=["watch"]))
    said = lab.run("node", words).stdout.splitlines()
    (lease,) = lab.leases().values()
    assert lab.ask("bundle.show")["signed"]["generation"] == document["generation"]
    assert f"pushed  generation {document['generation']}, signed by {issuer.name}" in said
    watched = [line for line in said if line.startswith("watched")]
    assert watched == [f"watched {name} of {lease['id']}" for name in ("lease.grant", "lease.renew")], said
    assert f"renewed lease {lease['id']}, generation {lease['generation']}" in "\n".join(said)
    assert 60e9 < lease["remaining_ns"] <= 120e9


@pytest.mark.slow
def test_each_header_stands_alone(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Without a warning, and without headers of the libraries that the archive stands on."""
    headers = [path.relative_to(installed / "include") for path in (installed / "include").rglob("*.hpp")]
    assert len(headers) > 10
    source, read = tmp_path / "alone.cpp", tmp_path / "alone.d"
    for header in headers:
        source.write_text(f"#include <{header}>\n" * 2)
        strict = ["-std=c++23", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{installed}/include"]
        sh(["c++", *strict, "-fsyntax-only", "-MD", "-MF", read, source])
        for word in ("/fmt/", "openssl", "sodium", "/userspace/"):
            assert word not in read.read_text(), f"{header}: {word}"


@pytest.mark.slow
def test_a_shared_library_links_it(installed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Position independent; and the library exports none of it."""
    (example,) = installed.rglob("examples/client_example.cpp")
    library = tmp_path / "libexample.so"
    sh(["c++", "-std=c++23", "-shared", "-fPIC", "-o", library, example, *flags(installed)])
    exported = sh(["nm", "--dynamic", "--defined-only", "--demangle", library])
    assert " T main" in exported and " T holdfast::" not in exported, exported


def test_nothing_of_ours_leaks(installed: pathlib.Path) -> None:
    """No flag, no path of this build, no library of the daemon's."""
    (targets,) = installed.rglob("HoldfastTargets.cmake")
    (package,) = installed.rglob("holdfast-client.pc")
    for path in [*targets.parent.iterdir(), package]:
        text = path.read_text()
        for word in ("-Werror", "-fPIE", "-pie", "-fsanitize", "hf_", "bpf", "fyaml", "systemd", "/opt/holdfast", str(build_dir())):
            assert word not in text, f"{path.name}: {word}"
    assert [path.name for path in installed.rglob("*.a")] == ["libholdfast-client.a"]
