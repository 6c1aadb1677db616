"""Builders that turn raw data sets into ArrayRecord files; installed, this package is called `rice_data`."""
