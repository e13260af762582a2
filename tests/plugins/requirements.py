"""Marks tests that need a program outside Python: `@pytest.mark.needs_tool("faketime")`.

Where the program is missing the test is skipped, and the end of the output says so, lest a green
run hide it. With REQUIRE_ALL set, as in CI, the test fails instead.
"""

import os
import shutil
from collections import defaultdict

import pytest

_MISSING = pytest.StashKey[defaultdict[str, int]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MISSING] = defaultdict(int)
    config.addinivalue_line(
        "markers", "needs_tool(*names): programs that must be on PATH for this test"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    tools = [tool for marker in item.iter_markers("needs_tool") for tool in marker.args]
    missing = sorted(tool for tool in tools if shutil.which(tool) is None)
    if not missing:
        return
    if os.environ.get("REQUIRE_ALL"):
        pytest.fail(
            f"REQUIRE_ALL is set, but PATH lacks {', '.join(missing)}; install it", pytrace=False
        )
    for tool in missing:
        item.config.stash[_MISSING][tool] += 1
    pytest.skip(f"needs {', '.join(missing)}")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    missing = config.stash[_MISSING]
    if missing:
        counts = ", ".join(f"{tool} ({missing[tool]})" for tool in sorted(missing))
        terminalreporter.write_line(f"skipped because a tool is missing: {counts}")
