"""Fetches, checks and unpacks the two Debian packages of the real material; installs nothing.

The files are under the GPL and, some of them, other free licences, so they are fetched at run time
into a cache folder and are no part of this code base.
"""

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.stamps.errors import MaterialRefusedError, MaterialUnavailableError, StampsError
from datasets.stamps.qt_resources import read_rcc

log = logging.getLogger(__name__)

_UPDATE_TIMEOUT_S = 300
_DOWNLOAD_TIMEOUT_S = 1800
_UNPACK_TIMEOUT_S = 600


@dataclass(frozen=True)
class Package:
    """One pinned Debian package and the part of it that holds the material."""

    name: str
    version: str
    sha256: str
    root: str  # folder inside the unpacked package that keys are relative to
    archives: tuple[str, ...] = ()  # .rcc files to unpack below `root`

    @property
    def label(self) -> str:
        """Name and version as file names have them."""
        return f"{self.name}_{self.version}"


TUXPAINT = Package(
    name="tuxpaint-stamps-default",
    version="2022.06.04-1",
    sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    root="usr/share/tuxpaint/stamps",
)
GCOMPRIS = Package(
    name="gcompris-qt-data",
    version="3.1-2",
    sha256="e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    root="resources/gcompris/src/activities",
    archives=tuple(
        f"usr/share/gcompris-qt/rcc/{name}.rcc"
        for name in (
            "categorization",
            "explore_farm_animals",
            "explore_monuments",
            "instruments",
            "memory-sound",
        )
    ),
)


def default_cache() -> Path:
    """Where packages are kept unless the user says otherwise."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "stamps"


def fetch_package(package: Package, cache: Path) -> Path:
    """Gets a package's files: from the cache, or else with apt-get and dpkg.

    Args:
        package: What to fetch.
        cache: Folder that is kept between runs; made if need be.

    Returns:
        The folder that the package's keys are relative to.

    Raises:
        MaterialUnavailableError: apt-get or dpkg is missing, the version is not offered, or there
            is no network.
        MaterialRefusedError: The file does not have the expected sha256 or content.
    """
    unpacked = cache.resolve() / package.label
    if not unpacked.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        deb = _cached_deb(package, cache) or _download(package, cache.resolve())
        _unpack(package, deb, unpacked)
    return unpacked / package.root


def _cached_deb(package: Package, cache: Path) -> Path | None:
    debs = sorted(cache.glob(f"{package.label}_*.deb"))
    if not debs:
        return None
    _check_sha256(package, debs[0])
    return debs[0]


def _check_sha256(package: Package, deb: Path) -> None:
    with deb.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != package.sha256:
        raise MaterialRefusedError(
            f"{deb} has sha256 {actual}, expected {package.sha256}: refused. "
            "If the file is in the cache folder, delete it and retry."
        )


def _download(package: Package, cache: Path) -> Path:
    _require("apt-get", package)
    log.info("fetching %s %s into %s", package.name, package.version, cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
        private = Path(folder) / "apt"
        options = _private_options(private, with_lists=False)
        wanted = ["download", f"{package.name}={package.version}"]
        problem = _apt_get([*options, *wanted], folder, _DOWNLOAD_TIMEOUT_S)
        if problem:
            log.info("apt-get says '%s'; reading package lists into the cache folder", problem)
            options = _private_options(private, with_lists=True)
            update_problem = _apt_get([*options, "update"], folder, _UPDATE_TIMEOUT_S)
            problem = _apt_get([*options, *wanted], folder, _DOWNLOAD_TIMEOUT_S)
            problem = "; ".join(filter(None, (problem, update_problem)))
        debs = sorted(Path(folder).glob(f"{package.label}_*.deb"))
        if not debs:
            raise MaterialUnavailableError(
                f"Debian package {package.name} {package.version} cannot be had: "
                f"{problem or 'apt-get fetched nothing'}. Look at the network and the package "
                f"sources (Debian 12 has it), or put the .deb into {cache} yourself."
            )
        _check_sha256(package, debs[0])
        return debs[0].replace(cache / debs[0].name)


def _private_options(folder: Path, *, with_lists: bool) -> list[str]:
    """Makes apt-get write below `folder` only, so that it needs no root and changes no system."""
    settings = {
        "APT::Update::Error-Mode": "any",  # else update says nothing of an unreachable source
        "APT::Sandbox::User": "root",  # as root, apt's own user could not write to the cache
        "Acquire::Retries": "1",
        "Acquire::http::Timeout": "20",
        "Acquire::https::Timeout": "20",
        "Dir::Cache": f"{folder}/cache",
    }
    (folder / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    if with_lists:
        (folder / "state/lists/partial").mkdir(parents=True, exist_ok=True)
        settings |= {"Dir::State": f"{folder}/state", "Dir::State::Lists": f"{folder}/state/lists"}
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _apt_get(arguments: Sequence[str], folder: str, timeout_s: int) -> str:
    """Runs apt-get in `folder`; returns its last word of complaint, or nothing if all went well."""
    try:
        process = _run(["apt-get", "-q", *arguments], timeout_s, folder=folder)
    except subprocess.TimeoutExpired:
        return f"apt-get gave no result in {timeout_s} s"
    if process.returncode == 0:
        return ""
    complaints = [line for line in process.stderr.splitlines() if line.startswith("E: ")]
    return complaints[0][3:] if complaints else f"apt-get left with {process.returncode}"


def _unpack(package: Package, deb: Path, unpacked: Path) -> None:
    _require("dpkg", package)
    log.info("unpacking %s", deb.name)
    with tempfile.TemporaryDirectory(dir=unpacked.parent, prefix=".unpack-") as folder:
        content = Path(folder) / "content"
        try:
            process = _run(["dpkg", "-x", str(deb), str(content)], _UNPACK_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise StampsError(f"dpkg -x {deb} gave no result in {_UNPACK_TIMEOUT_S} s.") from error
        if process.returncode != 0:
            reason = " ".join(process.stderr.split())[-300:]
            raise StampsError(f"dpkg -x {deb} failed: {reason}. Is the disk full?")
        for archive in package.archives:
            for name, file_content in read_rcc(content / archive).items():
                target = (content / "resources" / name).resolve()
                if not target.is_relative_to(content.resolve()):
                    raise MaterialRefusedError(f"{archive} wants to write to {target}: refused.")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file_content)
        content.chmod(0o755)
        try:
            content.rename(unpacked)
        except OSError:
            if not unpacked.is_dir():  # else another run was faster with the same files
                raise


def _require(tool: str, package: Package) -> None:
    if shutil.which(tool) is None:
        raise MaterialUnavailableError(
            f"{tool} is not on PATH, so Debian package {package.name} {package.version} cannot "
            "be had. Use a Debian-like system, or --source procedural."
        )


def _run(
    command: Sequence[str], timeout_s: int, *, folder: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
        env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
    )
