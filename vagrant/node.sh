#!/bin/sh
# Make this machine run pyproxy from the tree in /vagrant, as a service of systemd: node.sh cluster|files NAME ADDRESS.
# ADDRESS is the machine's own on the private network. Can be run again, to bring a changed tree or changed files in.
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
    10.0.2.*) fail "$address is Vagrant's own network, where every machine has the same address:" \
        "give the address of the private network" ;;
    127.*) fail "$address is this machine to itself only: give the address of the private network" ;;
esac
ip -oneline address show | grep -q " inet $address/" || fail "$address is on no card of this machine: in the Vagrantfile" \
    "it is the ip of private_network; kubelet and kubeadm need the same one (--node-ip, --apiserver-advertise-address)"

for package in iptables nftables python3; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="${missing:-} $package"
done
if [ -n "${missing:-}" ]; then
    apt-get update -qq
    # shellcheck disable=SC2086  # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing
fi

# The name is the private address, and not 127.0.1.1, which is what the box says.
sed -i "/^127\.0\.[12]\.1[[:space:]]/d; /[[:space:]]$name\$/d" /etc/hosts
echo "$address $name" >>/etc/hosts

# What a node needs besides pyproxy: it forwards, and iptables sees what passes a bridge. A "-" forgives the kernel that
# has no such setting.
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

# The archive of `make dist`, or one that is made here, in a copy.
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
Description=A web server that says which machine it is on
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
        # Of the kubelet, which kubeadm has made; cluster.sh lets nodes see Services.
        flags="$flags --kubeconfig=/etc/kubernetes/kubelet.conf"
        ;;
    *) fail "$lab is no kind of lab: cluster or files" ;;
esac
echo "PYPROXY_FLAGS=$flags ${PYPROXY_MORE_FLAGS:-}" >/etc/default/pyproxy
systemctl enable --quiet pyproxy
systemctl restart pyproxy
systemctl --no-pager --lines=0 status pyproxy
