"""Builders that turn raw data sets into ArrayRecord files: the package `rice_data` where installed, `data` here."""
