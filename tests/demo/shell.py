"""The prompt in the client pod, and what to try there.

Law: prints, and runs bash until its end; changes nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess

from .cluster import PYPROXY, Cluster

_CHEAT_SHEET = """
You are in the client pod. Servers answer in one line: their name, the address and port at which the
request arrived, and the client that they see. Try:

  head -1 < /dev/tcp/10.96.0.10/80      a ClusterIP, with nothing but bash; again: another pod
  ask 10.96.0.10 80                     the same, but gives up after 2 s
  ask 10.96.0.53 53 udp                 UDP
  ask fd00:10:96::110 25                IPv6
  ask 172.18.0.11 30080                 a NodePort, on a node without a pod of the Service
  ask 10.96.0.100 80                    a Service without pods: refused at once
  on outside1 ask 203.0.113.10 443      a load balancer's address, for a client that may use it
  on outside2 ask 203.0.113.10 443      and for one that may not
  on outside1 ask 172.18.0.11 30090     externalTrafficPolicy Local: the pod sees 172.18.0.101

  on HOST COMMAND...                    on any other host of the drawing above, such as node1:
  on node1 pyproxy dump-rules --live --service default/web    the kernel's rules, with counters
  on node1 iptables-save -t nat         all rules, in the kernel's own words
  on node1 conntrack -L                 what was translated to what

The agents follow the files in this directory. Change one, and ask again:
  {manifests}
What the agents say:
{logs}
Leave with exit or Ctrl-D; everything is removed then.
"""

_BASHRC = """
# ask ADDRESS PORT [udp]: print who answers, in one line; or the last thing that bash says about why nobody does.
ask() {
    timeout 2 bash -c '
        exec 3<>"/dev/${3:-tcp}/$1/$2" || exit
        echo >&3
        head -1 <&3' ask "$@" 2>&1 | tail -1
    [ "${PIPESTATUS[0]}" -ne 124 ] || echo 'no answer for 2 s'
}
# on HOST COMMAND...: run it on another host of the lab.
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
    """Give a prompt in the client pod until it is left."""
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
    # Bash takes Ctrl-C for the command that runs in it; here it must not end the lab around it.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        bash = client.namespace.command(["bash", "--noprofile", "--rcfile", str(bashrc), "-i"])
        subprocess.run(bash, env=environment, check=False)
    finally:
        signal.signal(signal.SIGINT, before)
