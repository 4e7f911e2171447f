#!/bin/sh
# Join this machine to a kubeadm cluster without kube-proxy. Usage: cluster.sh NAME ADDRESS CONTROL-PLANE-ADDRESS
# If both addresses are equal, the machine becomes the control plane. Not run in tests, because it downloads packages and
# images of Kubernetes.
set -eu
name=$1
address=$2
control=$3
version=v1.37
# Only for a private network of this computer: the token is public, so any machine on the network can join.
token=pyprxy.0123456789abcdef
export DEBIAN_FRONTEND=noninteractive

if ! command -v kubeadm >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq ca-certificates containernetworking-plugins containerd curl gpg
    mkdir -p /etc/apt/keyrings
    curl -fsSL "https://pkgs.k8s.io/core:/stable:/$version/deb/Release.key" | gpg --dearmor >/etc/apt/keyrings/kubernetes.gpg
    echo "deb [signed-by=/etc/apt/keyrings/kubernetes.gpg] https://pkgs.k8s.io/core:/stable:/$version/deb/ /" \
        >/etc/apt/sources.list.d/kubernetes.list
    apt-get update -qq
    apt-get install -y -qq kubeadm kubectl kubelet
fi

# containerd with the systemd cgroup driver, like the kubelet, and Debian's directory for network plugins.
mkdir -p /etc/containerd /etc/cni/net.d
containerd config default |
    sed -e 's/SystemdCgroup = false/SystemdCgroup = true/' -e 's#bin_dir = .*#bin_dir = "/usr/lib/cni"#' \
        >/etc/containerd/config.toml
systemctl restart containerd

# The pod network: a bridge on each machine, and routes to the bridges of the other machines. The last byte of the machine's
# address is part of its pod CIDR.
number=${address##*.}
cat >/etc/cni/net.d/10-lab.conflist <<EOF
{
  "cniVersion": "0.4.0",
  "name": "lab",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": false,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.244.$number.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
EOF
cat >/etc/systemd/system/lab-routes.service <<EOF
[Unit]
Description=Routes to the pods of the other machines
After=network-online.target
Wants=network-online.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for other in 10 11 12; do [ \$\$other = $number ] || ip route replace 10.244.\$\$other.0/24 via ${address%.*}.\$\$other; done'
# Pods reach the Internet through the first interface.
ExecStart=/bin/sh -c 'iptables -t nat -C POSTROUTING -s 10.244.$number.0/24 ! -d 10.0.0.0/8 -j MASQUERADE || iptables -t nat -A POSTROUTING -s 10.244.$number.0/24 ! -d 10.0.0.0/8 -j MASQUERADE'

[Install]
WantedBy=multi-user.target
EOF
systemctl daemon-reload
systemctl enable --quiet --now lab-routes

# Not 10.0.2.15, which every machine has on its first interface.
echo "KUBELET_EXTRA_ARGS=--node-ip=$address" >/etc/default/kubelet
swapoff --all
modprobe br_netfilter
echo 1 >/proc/sys/net/ipv4/ip_forward

if [ -e /etc/kubernetes/kubelet.conf ]; then
    exit
fi
if [ "$address" = "$control" ]; then
    kubeadm init --node-name "$name" --apiserver-advertise-address "$address" --pod-network-cidr 10.244.0.0/16 \
        --token "$token" --token-ttl 0 --skip-phases addon/kube-proxy
    export KUBECONFIG=/etc/kubernetes/admin.conf
    # pyproxy runs as a systemd service and uses the kubelet's credentials.
    kubectl apply --filename /vagrant/manifests/base/rbac.yaml
    kubectl create clusterrolebinding pyproxy-on-nodes --clusterrole pyproxy --group system:nodes
    kubectl taint nodes --all node-role.kubernetes.io/control-plane- || true
    mkdir -p /home/vagrant/.kube
    cp /etc/kubernetes/admin.conf /home/vagrant/.kube/config
    chown -R vagrant: /home/vagrant/.kube
else
    kubeadm join "$control:6443" --node-name "$name" --token "$token" --discovery-token-unsafe-skip-ca-verification
fi
