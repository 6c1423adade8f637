"""Compile the C kernels into a wheel; without a compiler the wheel is pure Python and works too."""

from __future__ import annotations

import platform
import re
import runpy
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Kernels(BuildHookInterface):
    """Adds the compiled kernels, and says for which platform they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """An editable install compiles on first use instead, from the source that it shows."""
        if version == "editable":
            return
        build = runpy.run_path(str(Path(self.root, "src/weightcast/kernels/build.py")))
        self._folder = tempfile.TemporaryDirectory()
        library = Path(self._folder.name, build["LIBRARY"].name)
        try:
            build["compile_library"](library)
        except OSError as error:
            self.app.display_warning(f"without compiled kernels: {error}")
            return
        system = sysconfig.get_platform().replace("universal2", platform.machine())
        build_data["tag"] = f"py3-none-{re.sub('[-.]', '_', system)}"
        build_data["pure_python"] = False
        build_data["force_include"][str(library)] = f"weightcast/kernels/{library.name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The compiled file is in the wheel now."""
        if version != "editable":
            self._folder.cleanup()
