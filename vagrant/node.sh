#!/bin/sh
# Install pyproxy from the tree in /vagrant as a systemd service. Usage: node.sh cluster|files NAME ADDRESS
# ADDRESS is the machine's address on the private network. Run it again after changing the tree or the files.
set -eu
lab=$1
name=$2
address=$3
tree=${PYPROXY_TREE:-/vagrant}

fail() {
    echo "node.sh: $*" >&2
    exit 1
}

[ "$(id -u)" = 0 ] || fail "needs root"
case $address in
    10.0.2.*) fail "$address is on Vagrant's own network, where every machine has the same address:" \
        "use the address on the private network" ;;
    127.*) fail "$address is a loopback address: use the address on the private network" ;;
esac
ip -oneline address show | grep -q " inet $address/" || fail "no interface of this machine has $address: use the ip of" \
    "private_network in the Vagrantfile, also for kubelet (--node-ip) and kubeadm (--apiserver-advertise-address)"

for package in iptables nftables python3; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="${missing:-} $package"
done
if [ -n "${missing:-}" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
fi

# The host name resolves to the private address, not to 127.0.1.1 as in the box.
sed -i "/^127\.0\.[12]\.1[[:space:]]/d; /[[:space:]]$name\$/d" /etc/hosts
echo "$address $name" >>/etc/hosts

# A node must forward packets, and iptables must see bridged packets. "-" ignores settings that the kernel does not have.
mkdir -p /etc/modules-load.d /etc/sysctl.d
echo br_netfilter >/etc/modules-load.d/pyproxy-lab.conf
modprobe --quiet br_netfilter || true
cat >/etc/sysctl.d/90-pyproxy-lab.conf <<EOF
net.ipv4.ip_forward = 1
net.ipv6.conf.all.forwarding = 1
-net.bridge.bridge-nf-call-iptables = 1
-net.bridge.bridge-nf-call-ip6tables = 1
EOF
/lib/systemd/systemd-sysctl /etc/sysctl.d/90-pyproxy-lab.conf

# Use the archive of `make dist`, or build one here from a copy of the tree.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
set -- "$tree"/dist/pyproxy-*.tar.gz
if [ ! -e "$1" ]; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq git make
    cp -R "$tree" "$work/tree"
    make -C "$work/tree" dist
    set -- "$work"/tree/dist/pyproxy-*.tar.gz
fi
mkdir "$work/archive"
tar -xzf "$1" -C "$work/archive" --strip-components=1
"$work/archive/install"

flags="--proxy-mode=nftables --hostname-override=$name --cluster-cidr=10.244.0.0/16"
case $lab in
    files)
        rm -rf /etc/pyproxy/manifests
        mkdir -p /etc/pyproxy /srv/lab
        cp -R "$tree/vagrant/manifests" /etc/pyproxy/manifests
        echo "$name" >/srv/lab/index.html
        cat >/etc/systemd/system/lab-web.service <<EOF
[Unit]
Description=Web server that returns the name of its machine
After=network-online.target
Wants=network-online.target

[Service]
ExecStart=/usr/bin/python3 -m http.server --bind $address --directory /srv/lab 8080
DynamicUser=yes
Restart=on-failure

[Install]
WantedBy=multi-user.target
EOF
        systemctl daemon-reload
        systemctl enable --quiet --now lab-web
        flags="$flags --manifests=/etc/pyproxy/manifests"
        ;;
    cluster)
        # The kubelet's kubeconfig, which kubeadm creates. cluster.sh gives nodes the permissions of pyproxy.
        flags="$flags --kubeconfig=/etc/kubernetes/kubelet.conf"
        ;;
    *) fail "unknown lab $lab: use cluster or files" ;;
esac
echo "PYPROXY_FLAGS=$flags ${PYPROXY_MORE_FLAGS:-}" >/etc/default/pyproxy
systemctl enable --quiet pyproxy
systemctl restart pyproxy
systemctl --no-pager --lines=0 status pyproxy
