"""Lets old tools find the metadata, which is in pyproject.toml."""

import setuptools

setuptools.setup()
