"""Fixtures that the tests of this folder share."""

from sandboxes import sandboxed as sandboxed
