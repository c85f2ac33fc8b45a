"""What the tools of others say: asl-validator, and SAM's own validation and build."""

import json
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from local import deploy, npm
from tests.template.reading import FOLDERS, MACHINE, stem

VALIDATOR = npm.PACKAGES / ".bin" / "asl-validator"
SAM = Path(sys.executable).with_name("sam")
REGION = "us-east-1"  # SAM wants one, whatever is done with it

UNZIPPED_BYTES = 250 * 1024 * 1024  # of a function with its layers
ELF_MACHINES = {"x86_64": 0x3E, "arm64": 0xB7}
HERE = {"x86_64": "x86_64", "AMD64": "x86_64", "aarch64": "arm64", "arm64": "arm64"}.get(platform.machine())


@pytest.fixture(scope="session")
def asl_validator() -> Path:
    """asl-validator, installed as tests/package-lock.json pins it, unless that has been done already."""
    try:
        npm.node()
    except npm.NoNode as missing:
        pytest.skip(str(missing))
    return VALIDATOR


def test_asl_validator_agrees(asl_validator: Path, tmp_path: Path, machine: Any) -> None:
    assert says(asl_validator, tmp_path, machine).returncode == 0


def test_asl_validator_would_not_agree_with_a_dangling_next(asl_validator: Path, tmp_path: Path, machine: Any) -> None:
    states = machine["States"] | {"Run succeeded": {"Type": "Pass", "Next": "Nowhere"}}
    ran = says(asl_validator, tmp_path, machine | {"States": states})
    assert ran.returncode == 1
    assert "Nowhere" in ran.stdout + ran.stderr


def says(asl_validator: Path, folder: Path, machine: Any) -> subprocess.CompletedProcess[str]:
    filled = re.sub(
        r"\$\{(\w+)\}",
        lambda found: f"arn:aws:lambda:{REGION}:{deploy.ACCOUNT}:function:{found[1]}",
        json.dumps(machine),
    )
    file = folder / "machine.json"
    file.write_text(filled)
    return subprocess.run([asl_validator, "--json-path", file], capture_output=True, text=True, check=False)


def test_npm_lock_pins_contents_and_no_addresses() -> None:
    lock = json.loads(npm.LOCK.read_text())
    wanted = json.loads(npm.LOCK.with_name("package.json").read_text())["devDependencies"]
    packages = {name: facts for name, facts in lock["packages"].items() if name}

    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    assert [name for name, facts in packages.items() if "resolved" in facts] == []
    assert [name for name, facts in packages.items() if "integrity" not in facts] == []


def test_definition_has_no_tabs_or_duplicate_states() -> None:
    """YAML takes the last of two states of one name without a word."""
    names = re.findall(r"^  (\S[^:]*):$", MACHINE.read_text(), re.MULTILINE)
    assert len(names) == len(set(names))
    assert "\t" not in MACHINE.read_text()


# ------------------------------------------------------------------ SAM


def sam_environment() -> dict[str, str]:
    """SAM builds with the Python that the functions run on: it wants `python3.13`, with pip, on the PATH."""
    beside = Path(sys.executable).with_name("python3.13")
    found = str(beside) if beside.exists() else shutil.which("python3.13")
    if found is None:
        pytest.skip("`sam build` needs python3.13 on the PATH")
    path = os.pathsep.join((str(Path(found).parent), os.environ["PATH"]))
    return {**os.environ, "PATH": path, "SAM_CLI_TELEMETRY": "0"}


def test_sam_finds_the_template_valid() -> None:
    ran = subprocess.run(
        [SAM, "validate", "--lint", "--region", REGION],
        cwd=deploy.ROOT,
        env={**os.environ, "SAM_CLI_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "is a valid SAM Template" in ran.stdout


@pytest.fixture(scope="session")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Path]]:
    """What `sam build` makes, by architecture, both at once: without its cache, which is one for all builds and which
    the one would tidy up while the other uses it."""
    environment = sam_environment()
    folders = {architecture: tmp_path_factory.mktemp(architecture) / "build" for architecture in ELF_MACHINES}
    running = {}
    for architecture, folder in folders.items():
        command = [SAM, "build", "--region", REGION, "--no-cached", "--build-dir", folder]
        command += ["--parameter-overrides", f"Architecture={architecture}"]
        running[architecture] = subprocess.Popen(
            command, cwd=deploy.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    said = {architecture: process.communicate()[0] for architecture, process in running.items()}
    for architecture, process in running.items():
        assert process.returncode == 0, said[architecture]
    yield folders
    for folder in folders.values():
        shutil.rmtree(folder)


def layers(build: Path) -> tuple[Path, Path]:
    """Where Lambda would lay the layers' packages."""
    return build / "DependenciesLayer" / "python", build / "TunedropLayer" / "python"


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("architecture", ELF_MACHINES)
def test_build_holds_every_function_and_layer(architecture: str, builds: Mapping[str, Path]) -> None:
    build = builds[architecture]
    for folder in FOLDERS:
        assert (build / f"{stem(folder)}Function" / "handler.py").is_file()
    assert (layers(build)[0] / "boto3").is_dir()
    assert (layers(build)[1] / "tunedrop" / "webhook.py").is_file()


@pytest.mark.parametrize("architecture", ELF_MACHINES)
def test_compiled_code_is_for_the_architecture(architecture: str, builds: Mapping[str, Path]) -> None:
    compiled = [file for layer in layers(builds[architecture]) for file in layer.rglob("*.so*")]
    machines = {struct.unpack_from("<H", file.read_bytes()[:20], 18)[0] for file in compiled}
    assert machines == {ELF_MACHINES[architecture]}


@pytest.mark.parametrize("architecture", ELF_MACHINES)
def test_layers_leave_room(architecture: str, builds: Mapping[str, Path]) -> None:
    build = builds[architecture]
    unzipped = {folder.name: size(folder) for folder in build.iterdir() if folder.is_dir()}
    together = unzipped.pop("DependenciesLayer") + unzipped.pop("TunedropLayer")
    print(f"{architecture}: layers {together / 1e6:.1f} MB unzipped")
    assert together + max(unzipped.values()) < UNZIPPED_BYTES


@pytest.mark.parametrize("folder", FOLDERS)
def test_built_function_imports_its_handler(folder: str, builds: Mapping[str, Path]) -> None:
    """With its folder, the layers and the standard library alone, as on Lambda; outside of it, nothing is made yet."""
    if HERE is None:
        pytest.skip(f"nothing is built for {platform.machine()}")
    build = builds[HERE]
    code = build / f"{stem(folder)}Function"
    environment = sam_environment()
    python = shutil.which("python3.13", path=environment["PATH"])
    ran = subprocess.run(
        [str(python), "-S", "-P", "-B", "-c", "import handler; assert callable(handler.handler)"],
        cwd=code,
        env={"PYTHONPATH": os.pathsep.join(map(str, (code, *layers(build)))), "PATH": environment["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
