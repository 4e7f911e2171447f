"""Checks of this node: settings, rules and objects that keep Services from working. Reads only, changes nothing."""
