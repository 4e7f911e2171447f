"""Listening sockets, parsed from ``/proc/net/tcp6``."""

from pyproxy.linux.listening import listening_sockets

TABLE = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:2809 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 00000000000000000000000000000000:2809 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 100 0 0 10 0
   2: 00000000000000000000000001000000:2809 00000000000000000000000001000000:C350 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 20 4 30 10 -1
   3: 00000000000000000000000001000000:2810 00000000000000000000000001000000:2809 0A 00000000:00000000 00:00000000 00000000     0        0 4714 1 0000000000000000 100 0 0 10 0
"""


def test_sockets_of_a_port() -> None:
    """Sockets that listen on the port count, whatever their address; its connections and other ports do not."""
    assert {"4711", "4712"} == listening_sockets(TABLE, 10249)
    assert {"4714"} == listening_sockets(TABLE, 10256)
    assert set() == listening_sockets("", 10249)
