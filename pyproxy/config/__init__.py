"""Flags, configuration files and defaults, and the settings that result."""
