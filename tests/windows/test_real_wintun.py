"""The real wintun.dll, of whose driver there is none under wine: that it binds, and how it fails."""

from __future__ import annotations

import logging
import sys

import pytest

from tunstack.link.devices.wintun_api import WintunError, find_library, guid_of, load

if sys.platform == "win32":

    def test_the_dll_of_an_installed_package_is_found_and_has_all_functions() -> None:
        path = find_library()
        assert path.endswith("wintun.dll") and "pytun_pmd3" in path
        library = load()
        assert library is load(path)
        assert library.driver_version is None

    def test_without_a_driver_errors_are_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
        library = load()
        with caplog.at_level(logging.INFO, "real-wintun"):
            library.log_to(logging.getLogger("real-wintun"))
            for attempt in (library.open, lambda name: library.create(name, guid_of(name))):
                with pytest.raises(WintunError, match="'tunstack test' cannot be"):
                    attempt("tunstack test")
        assert any("Wintun: Failed" in record.getMessage() for record in caplog.records)
        library.log_to(logging.getLogger("tunstack"))

    def test_a_bare_name_is_not_looked_for_in_the_current_directory(
        tmp_path: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import shutil

        monkeypatch.chdir(str(tmp_path))
        shutil.copy(find_library(), "planted.dll")
        with pytest.raises(WintunError, match=r"planted\.dll"):
            load_bare("planted.dll")

    def load_bare(name: str) -> object:
        """As `load` does with a name that is no path."""
        from tunstack.link.devices import wintun_api

        return wintun_api._load_dll(name)
