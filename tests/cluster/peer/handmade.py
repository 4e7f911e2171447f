"""States with one Service for each thing that Services can be or have; what they are about is in their names."""

from .objects import Entry, State, entry, port, service

WEB = entry(service("web", port(80)), "pod1-1", "pod2-1")
DNS = entry(service("dns", port(53, "UDP", name="dns"), port(53, name="dns-tcp")), "pod1-1", "pod1-2")
EMPTY = Entry(service("empty", port(80)))

FIRST = State((WEB, DNS, EMPTY))
STATES = {"first": FIRST}
