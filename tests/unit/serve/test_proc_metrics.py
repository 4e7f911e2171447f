"""Files of procfs as the kernel writes them, in a directory of our own: their sums, and what is not there."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from pyproxy.serve.proc_metrics import ProcCollector

NF_CONNTRACK = """\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error
0000000c  00000000 00000000 00000000 00000003 00000000 00000000 00000000 00000000 0000000a 00000001 00000000 00000000
0000000c  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000006 00000000 00000002 00000000
"""
NETSTAT = """\
TcpExt: SyncookiesSent SyncookiesRecv
TcpExt: 1 2
IpExt: InNoRoutes InOctets OutOctets
IpExt: 0 1000 2000
"""
FILES = {
    "sys/net/netfilter/nf_conntrack_count": "12\n",
    "sys/net/netfilter/nf_conntrack_max": "262144\n",
    "self/net/stat/nf_conntrack": NF_CONNTRACK,
    "self/net/netstat": NETSTAT,
}
CONNTRACK = {
    "pyproxy_conntrack_entries": 12,
    "pyproxy_conntrack_entries_limit": 262144,
    "pyproxy_conntrack_insert_failures_total": 16,
    "pyproxy_conntrack_drops_total": 1,
    "pyproxy_conntrack_early_drops_total": 2,
}
NETWORK = {"process_network_receive_bytes_total": 1000, "process_network_transmit_bytes_total": 2000}


def values(proc: Path, files: dict[str, str]) -> dict[str, float]:
    """Return what is collected where procfs has these files, but for what it does not come from."""
    for name, text in files.items():
        (proc / name).parent.mkdir(parents=True, exist_ok=True)
        (proc / name).write_text(text)
    registry = CollectorRegistry()
    registry.register(ProcCollector(proc))
    found = {sample.name: sample.value for metric in registry.collect() for sample in metric.samples}
    assert found.pop("process_virtual_memory_max_bytes") > 0
    return found


def test_all_is_there(tmp_path: Path) -> None:
    """Counters of all CPUs are added up; they are hexadecimal."""
    assert CONNTRACK | NETWORK == values(tmp_path, FILES)


def test_nothing_is_there(tmp_path: Path) -> None:
    """A kernel without connection tracking costs those metrics and nothing else."""
    assert {} == values(tmp_path, {})


def test_other_columns(tmp_path: Path) -> None:
    """A file without the known columns, or with text in place of numbers, is left out; the other files are used."""
    files = FILES | {
        "self/net/stat/nf_conntrack": "entries\n00000001\n",
        "sys/net/netfilter/nf_conntrack_max": "many\n",
    }

    assert NETWORK == values(tmp_path, files)
