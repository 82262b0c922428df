#!/usr/bin/env bash
# Writes an OCI image of the broker, without a daemon: an archive that podman, docker, skopeo and registries take.
#
#     image.sh PROGRAM VERSION OUTPUT.oci      writes OUTPUT.oci.tar
#
# The image holds the broker, the C library, and the roots of public certificate authorities, from Debian's packages: no shell, no package
# manager. The broker runs as user 65532. Mount its configuration at /etc/postern and its data at /var/lib/postern-broker.
set -euo pipefail
program=$1 version=$2 output=$3
: "${SOURCE_DATE_EPOCH:?is the time of every file in the image; packages.sh sets it}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Debian's packages whose files go into the image.
PACKAGES=(libc6 libgcc-s1 ca-certificates netbase)
root=$work/root
mkdir -p "$root" "$work/debs"
chmod 0755 "$root"
(cd "$work/debs" && apt-get download -qq -o APT::Sandbox::User=root "${PACKAGES[@]}")
for deb in "$work"/debs/*.deb; do
	dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --exclude='./usr/share/doc/*' --exclude='./usr/share/lintian*' --exclude='./usr/share/man*'
done
mkdir -p "$root"/{etc/ssl/certs,etc/postern,tmp,usr/bin,usr/share/doc/postern-broker,var/lib/postern-broker}
chmod 1777 "$root/tmp"
chmod 0700 "$root/var/lib/postern-broker"
find "$root/usr/share/ca-certificates" -name '*.crt' | sort | xargs cat >"$root/etc/ssl/certs/ca-certificates.crt"
rm -rf "$root/usr/sbin/update-ca-certificates" "$root/usr/share/ca-certificates" "$root/etc/ca-certificates"
echo "postern-broker:x:65532:65532:Postern broker:/var/lib/postern-broker:/nonexistent" >"$root/etc/passwd"
echo "postern-broker:x:65532:" >"$root/etc/group"
install -m 0755 "$program" "$root/usr/bin/postern-broker"
install -m 0644 "$(dirname "$0")/../../LICENSE" "$(dirname "$program")/../licences/postern-broker.txt.gz" "$root/usr/share/doc/postern-broker/"

# The program finds everything that it is linked to.
chroot "$root" /usr/bin/postern-broker --version

# The same files always make the same layer.
layer=$work/layer.tar
tar -C "$root" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --format=posix \
	--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -cf "$layer" --exclude=./var/lib/postern-broker .
tar -C "$root" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=65532 --group=65532 --numeric-owner --format=posix \
	--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -rf "$layer" ./var/lib/postern-broker

created=$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
umoci init --layout "$work/image"
umoci new --image "$work/image:$version"
umoci raw add-layer --image "$work/image:$version" --history.created "$created" --history.created_by "packaging/oci/image.sh" "$layer"
umoci config --image "$work/image:$version" --no-history --created "$created" --architecture amd64 --os linux \
	--config.user 65532:65532 --config.workingdir /var/lib/postern-broker --config.entrypoint /usr/bin/postern-broker --config.cmd serve \
	--config.exposedports 7443/tcp --config.volume /var/lib/postern-broker --config.env PATH=/usr/bin \
	--config.env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
	--config.label org.opencontainers.image.title=postern-broker --config.label "org.opencontainers.image.version=$version" \
	--config.label org.opencontainers.image.licenses=Apache-2.0
umoci gc --layout "$work/image"
tar -C "$work/image" --sort=name --mode=go+r --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf "$output.tar" .
