"""Model code and files before anything of them runs: the trust gate, digests, and code that
travels.
"""

from __future__ import annotations

import atexit
import hashlib
import importlib
import importlib.machinery
import importlib.util
import io
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from integrand.schemas.errors import DataError, IntegrityError, SpecError
from integrand.schemas.ids import digest_bytes
from integrand.schemas.records import Artefact
from integrand.schemas.specs.models import ModelPart
from integrand.schemas.uris import Uri
from integrand.workers.storage.store import Store

_UNPACKED: dict[str, Path] = {}


@dataclass(frozen=True)
class CodeBundle:
    """Model code as it travels to the workers: (name, bytes) of wheels, .py files and zipped
    folders.
    """

    parts: tuple[tuple[str, bytes], ...] = ()

    @property
    def digest(self) -> str:
        return digest_bytes(
            *(chunk for name, data in self.parts for chunk in (name.encode(), data))
        )


def check_trust(model: ModelPart, trusted: tuple[str, ...]) -> None:
    """Refuse model code whose module prefix the operator did not name. Runs before any import."""
    code = model.trusted_as
    if not any(code == prefix or code.startswith(prefix + ".") for prefix in trusted):
        raise SpecError(
            f"model code `{code}`",
            expected="code that the operator trusts",
            seen=f"trusted: {', '.join(trusted) or 'nothing'}",
            next_step=f"if you trust it: --trust-model-code {code}",
        )


def pack_code(store: Store, model: ModelPart, base: str) -> CodeBundle:
    """Read the wheels, folders and .py files that the model ships; folders are zipped with fixed
    times.
    """
    return CodeBundle(tuple(_pack(store, store.parse(text, base)) for text in model.shipped))


def _pack(store: Store, uri: Uri) -> tuple[str, bytes]:
    if uri.name.endswith((".whl", ".py")):
        return uri.name, _read(store, uri)
    files = [e.uri for e in store.list(uri) if e.uri.path.endswith(".py")]
    if not files:
        raise DataError(
            f"model.code {uri}",
            expected="a wheel, a .py file or a folder with .py files",
            seen="none",
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in files:
            inside = uri.name + file.path.removeprefix(uri.path)
            archive.writestr(zipfile.ZipInfo(inside), store.read(file))
    return uri.name + ".zip", packed.getvalue()


def check_shipped(bundle: CodeBundle, trusted: tuple[str, ...]) -> None:
    """Refuse shipped code outside the trusted prefixes: it would stand before installed packages of
    its name.
    """
    allowed = {prefix.split(".")[0] for prefix in trusted} - {"integrand"} - sys.stdlib_module_names
    for name, data in bundle.parts:
        beyond = sorted(_top_level(name, data) - allowed)
        if beyond:
            raise SpecError(
                f"model.code {name}",
                expected="modules below a trusted prefix",
                seen=f"`{beyond[0]}`; trusted: {', '.join(trusted)}",
                next_step="leave it out, put it into the model's package, or trust it",
            )


def _top_level(name: str, data: bytes) -> set[str]:
    """The module names that a part of a bundle brings along; the records of a wheel are none."""
    if name.endswith(".py"):
        return {name.removesuffix(".py")}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            tops = {inside.split("/")[0] for inside in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise DataError(
            f"model.code {name}", expected="a wheel", seen=str(error), next_step="build it again"
        ) from error
    return {top.removesuffix(".py") for top in tops if not top.endswith((".dist-info", ".data"))}


def install_code(bundle: CodeBundle) -> None:
    """Put shipped code, in a folder of its own, in front of sys.path; forget other modules imported
    by its names.
    """
    if not bundle.parts:
        return
    if bundle.digest not in _UNPACKED:
        _UNPACKED[bundle.digest] = _unpack(bundle)
    folder = _UNPACKED[bundle.digest]
    sys.path[:] = [str(folder), *(entry for entry in sys.path if entry != str(folder))]
    shipped = {path.name.removesuffix(".py") for path in folder.iterdir()}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] in shipped and not str(getattr(module, "__file__", "")).startswith(
            str(folder)
        ):
            del sys.modules[name]
    importlib.invalidate_caches()


def _unpack(bundle: CodeBundle) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="integrand-code-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, data in bundle.parts:
        if name.endswith(".py"):
            (folder / name).write_bytes(data)
        else:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                archive.extractall(folder)
    return folder


def code_digest(model: ModelPart) -> str | None:
    """sha256 over the source files of the top-level package of the model's module, found without
    importing it; None where its code is in its files.
    """
    if model.module is None:
        return None
    files = _source_files(model.module)
    return digest_bytes(*(c for name, path in files for c in (name.encode(), path.read_bytes())))


def _source_files(module: str) -> list[tuple[str, Path]]:
    parts = module.split(".")
    # a namespace package has no file of its own: look one level below
    for depth in range(1, len(parts) + 1):
        found = _find(".".join(parts[:depth]), module)
        if not found.has_location or found.origin is None:
            continue
        origin = Path(found.origin)
        if not found.submodule_search_locations:
            return [(origin.name, origin)]
        return [(str(p.relative_to(origin.parent)), p) for p in sorted(origin.parent.rglob("*.py"))]
    raise _not_found(module)


def _find(name: str, module: str) -> importlib.machinery.ModuleSpec:
    try:
        found = importlib.util.find_spec(name)
    except (
        ModuleNotFoundError,
        ValueError,
    ):
        # ValueError: a module made by hand, like __main__ of a notebook
        found = None
    if found is None:
        raise _not_found(module)
    return found


def _not_found(module: str) -> SpecError:
    return SpecError(
        f"model.entrypoint: module `{module}`",
        expected="an importable module",
        seen="no such module",
        next_step=(
            "name its wheel, folder or .py file under model.code, or install it on the workers"
        ),
    )


def model_artefacts(store: Store, model: ModelPart, base: str) -> tuple[Artefact, ...]:
    """Every weight or program file of the model with its sha256."""
    return tuple(_artefact(store, store.parse(text, base)) for text in model.files)


def _artefact(store: Store, uri: Uri) -> Artefact:
    return Artefact(uri=str(uri), sha256=hashlib.sha256(_read(store, uri)).hexdigest())


def _read(store: Store, uri: Uri) -> bytes:
    try:
        return store.read(uri)
    except FileNotFoundError:
        raise DataError(
            f"model file {uri}", expected="a readable file", seen="nothing there"
        ) from None


def read_verified(store: Store, artefact: Artefact) -> bytes:
    data = _read(store, store.parse(artefact.uri))
    seen = hashlib.sha256(data).hexdigest()
    if seen != artefact.sha256:
        raise IntegrityError(
            f"model file {artefact.uri}",
            expected=f"sha256 {artefact.sha256[:16]}…",
            seen=f"{seen[:16]}…",
            next_step="plan again: another model is another run",
        )
    return data
