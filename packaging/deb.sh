#!/bin/sh
# Build a Debian package from the content of an archive. Usage: deb.sh CONTENT DIRECTORY VERSION PYTHON-VERSION MACHINE
# The package needs the minor version of Python for which the archive was built. Neither installation nor removal starts or
# removes anything in the kernel.
set -eu
content=$1
target=$2
version=$3
python_version=$4
case $5 in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    *) architecture=$5 ;;
esac
next=${python_version%.*}.$((${python_version#*.} + 1))
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
share=$root/usr/share

mkdir -p "$root/DEBIAN" "$root/opt" "$root/usr/bin" "$root/usr/lib/systemd/system" "$root/etc/default" \
    "$share/doc/pyproxy-node" "$share/bash-completion/completions" "$share/zsh/vendor-completions" \
    "$share/fish/vendor_completions.d"
cp -R "$content/pyproxy" "$root/opt/pyproxy"
ln -s /opt/pyproxy/bin/pyproxy "$root/usr/bin/pyproxy"
cp "$content"/systemd/*.service "$root/usr/lib/systemd/system"
cp -R "$content/share/man" "$share"
cp "$content/share/completion/bash" "$share/bash-completion/completions/pyproxy"
cp "$content/share/completion/zsh" "$share/zsh/vendor-completions/_pyproxy"
cp "$content/share/completion/fish" "$share/fish/vendor_completions.d/pyproxy.fish"
cp "$content/LICENSE" "$share/doc/pyproxy-node/copyright"
cat >"$root/etc/default/pyproxy" <<'END'
# Flags of pyproxy.service. Without this line: --config=/var/lib/kube-proxy/kube-proxy-config.yaml
#PYPROXY_FLAGS=--config=/var/lib/kube-proxy/config.conf --hostname-override=NODE
END
echo /etc/default/pyproxy >"$root/DEBIAN/conffiles"
cat >"$root/DEBIAN/control" <<END
Package: pyproxy-node
Version: $version+python$python_version
Architecture: $architecture
Maintainer: The pyproxy maintainers <maintainers@example.com>
Installed-Size: $(du -sk --apparent-size "$root" | cut -f1)
Depends: python3 (>= $python_version~), python3 (<< $next~), iptables | nftables
Recommends: iptables, nftables, kmod
Section: net
Priority: optional
Description: kube-proxy replacement for iptables, nftables and IPVS
 pyproxy watches Services and EndpointSlices of a Kubernetes cluster and programs
 the kernel so that connections to a Service reach one of its endpoints. It has
 the semantics, flags and metrics of kube-proxy.
END
cat >"$root/DEBIAN/postinst" <<'END'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    # A tree for another version of Python than that of the build machine is compiled here.
    find /opt/pyproxy/lib -name __pycache__ -print -quit | grep -q . ||
        /opt/pyproxy/bin/python3 -I -m compileall -q --invalidation-mode unchecked-hash /opt/pyproxy/lib
    # Not in a chroot, where systemd is not running.
    [ ! -d /run/systemd/system ] || systemctl daemon-reload
fi
END
cat >"$root/DEBIAN/prerm" <<'END'
#!/bin/sh
set -e
if [ "$1" = remove ]; then
    if [ -d /run/systemd/system ]; then
        systemctl stop pyproxy.service
    fi
    echo "pyproxy-node: the rules of pyproxy stay in the kernel until a reboot. To remove them, install the package again and run: systemctl start pyproxy-cleanup"
    find /opt/pyproxy -name __pycache__ -prune -exec rm -rf {} +
fi
END
cat >"$root/DEBIAN/postrm" <<'END'
#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
END
chmod 755 "$root"/DEBIAN/p*
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz -z1 --build "$root" "$target/pyproxy-node_$version+python${python_version}_$architecture.deb" >/dev/null
