"""A test that lacks its program is skipped and named at the end, or fails where REQUIRE_ALL
is set.
"""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

PLUGIN = Path(__file__).with_name("requirements.py").read_text()
TESTS = """
    import pytest

    @pytest.mark.needs_tool("no-such-tool")
    def test_without(): pass

    @pytest.mark.needs_tool("no-such-tool", "sh")
    def test_with_one_of_two(): pass

    @pytest.mark.needs_tool("sh")
    def test_with(): pass
"""


@pytest.fixture
def inner(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(PLUGIN)
    pytester.makepyfile(TESTS)
    return pytester


def test_a_missing_tool_skips_and_is_counted_at_the_end(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("REQUIRE_ALL", raising=False)
    result = inner.runpytest_inprocess("--strict-markers")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["skipped because a tool is missing: no-such-tool (2)"])


def test_require_all_turns_the_skip_into_a_failure(
    inner: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REQUIRE_ALL", "1")
    result = inner.runpytest_inprocess("--strict-markers")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*REQUIRE_ALL is set, but PATH lacks no-such-tool; install it*"])


def test_nothing_is_said_when_every_tool_is_there(inner: pytest.Pytester):
    result = inner.runpytest_inprocess("-k", "test_with and not without and not two")
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.no_fnmatch_line("*tool is missing*")
