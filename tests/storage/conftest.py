"""The suite of folders is a module of its own, because tests of S3 use it too."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("folder_suite")
