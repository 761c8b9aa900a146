"""Attacks, each with the bound that it must not exceed. docs/security.md lists them by class."""
