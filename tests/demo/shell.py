"""The shell in the client pod, and suggestions of what to try there.

Prints the suggestions and runs bash until it exits; changes nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess

from .cluster import PYPROXY, Cluster

_CHEAT_SHEET = """
You are in the client pod. Servers answer in one line: their name, the address and port at which the
request arrived, and the client that they see. Try:

  head -1 < /dev/tcp/10.96.0.10/80      a ClusterIP, with bash alone; repeat it: another pod
  ask 10.96.0.10 80                     the same, but gives up after 2 s
  ask 10.96.0.53 53 udp                 UDP
  ask fd00:10:96::110 25                IPv6
  ask 172.18.0.11 30080                 a NodePort, on a node without a pod of the Service
  ask 10.96.0.100 80                    a Service without pods: refused at once
  on outside1 ask 203.0.113.10 443      a load balancer IP, for a client that may use it
  on outside2 ask 203.0.113.10 443      and for one that may not
  on outside1 ask 172.18.0.11 30090     externalTrafficPolicy Local: the pod sees 172.18.0.101

  on HOST COMMAND...                    on any host of the drawing above, such as node1:
  on node1 pyproxy dump-rules --live --service default/web    the kernel's rules, with counters
  on node1 iptables-save -t nat         all rules of this table
  on node1 conntrack -L                 connections and their translation

The agents follow the files in this directory. Change one, and try again:
  {manifests}
The logs of the agents:
{logs}
Leave with exit or Ctrl-D; then everything is removed.
"""

_BASHRC = """
# ask ADDRESS PORT [udp]: print the answer of the server, or the last error message of bash.
ask() {
    timeout 2 bash -c '
        exec 3<>"/dev/${3:-tcp}/$1/$2" || exit
        echo >&3
        head -1 <&3' ask "$@" 2>&1 | tail -1
    [ "${PIPESTATUS[0]}" -ne 124 ] || echo 'no answer for 2 s'
}
# on HOST COMMAND...: run a command on another host of the lab.
on() {
    local namespace="$LAB$1"
    shift
    nsenter --net="$namespace" -- bash -c '"$@"' on "$@"
}
pyproxy() { "$PYPROXY" "$@"; }
export -f ask on pyproxy
PS1='client-pod# '
"""


def prompt(cluster: Cluster) -> None:
    """Run a shell in the client pod until it exits."""
    logs = "\n".join(f"  {agent.stderr_path}" for agent in cluster.agents)
    print(_CHEAT_SHEET.format(manifests=cluster.manifests, logs=logs), flush=True)
    bashrc = cluster.directory / "bashrc"
    bashrc.write_text(_BASHRC)
    client = cluster.lab.client_pod
    environment = {
        **os.environ,
        "LAB": str(client.namespace.path).removesuffix(client.name),
        "PYPROXY": str(PYPROXY),
    }
    # Ctrl-C interrupts the command that runs in bash; it must not end the lab.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        bash = client.namespace.command(["bash", "--noprofile", "--rcfile", str(bashrc), "-i"])
        subprocess.run(bash, env=environment, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
