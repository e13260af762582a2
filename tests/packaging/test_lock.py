"""The hash-locked pins are the pins, and every one of them has hashes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)", re.MULTILINE)


def pins(name: str) -> dict[str, str]:
    found = PIN.findall((ROOT / name).read_text())
    return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}


def test_the_lock_holds_the_pins_of_the_constraints():
    """All but torch, whose builds differ by machine. `make lock` renews it."""
    assert pins("requirements.lock") == {
        k: v for k, v in pins("constraints.txt").items() if k != "torch"
    }


def test_every_locked_file_has_a_hash_and_comes_from_no_named_place():
    blocks = re.split(r"\n(?=[A-Za-z0-9])", (ROOT / "requirements.lock").read_text().strip())
    assert len(blocks) == len(pins("requirements.lock"))
    for block in blocks:
        assert re.fullmatch(r"\S+==\S+( ; [^\n]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", block), (
            block[:200]
        )
