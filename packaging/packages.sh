#!/usr/bin/env bash
# Builds the packages into target/packages/: for the agent, the broker and the command a .deb and an .rpm with its debug symbols apart, and
# an OCI image of the broker. It lints all of them, and writes SHA256SUMS.
#
#     packages.sh                builds
#     packages.sh reproduce      builds again, from a clone in another folder, and compares the bytes with SHA256SUMS
#
# With POSTERN_PROGRAMS=DIR it packages the programs in DIR, compresses less, and builds none: to try changes of the packaging itself.
#
# The programs run on x86_64 with the C library of the machine that builds them, or a newer one: on Debian 12 that is glibc 2.36.
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD

# Exactly these versions, so that a new release of a tool does not change the bytes of a package.
TOOLS=(cargo-auditable@0.7.7 cargo-deb@3.8.0 cargo-generate-rpm@0.21.1)
TOOLS_DIR=${XDG_CACHE_HOME:-$HOME/.cache}/postern-packaging
# Program that must be there, and the Debian package that has it.
NEEDS=(lintian:lintian rpmbuild:rpm rpmlint:rpmlint lowdown:lowdown mandoc:mandoc umoci:umoci dpkg-shlibdeps:dpkg-dev objcopy:binutils)

OUT=$ROOT/target/packages
STAGE=$OUT/stage
BUILD=${CARGO_TARGET_DIR:-$ROOT/target}
PROGRAMS=${POSTERN_PROGRAMS:-$BUILD/release}
COMPRESSION=(${POSTERN_PROGRAMS:+--fast})
# Each program with its crate.
CRATES=(postern-agent:agent postern-broker:broker postern:cli)

install_tools() {
	local missing=() need tool
	for need in "${NEEDS[@]}"; do command -v "${need%%:*}" >/dev/null || missing+=("${need##*:}"); done
	if [ "${#missing[@]}" -gt 0 ]; then
		echo "packages: installing ${missing[*]}"
		apt-get update -qq
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null
	fi
	export PATH=$TOOLS_DIR/bin:$PATH
	for tool in "${TOOLS[@]}"; do
		if ! grep -qsF "\"${tool%@*} ${tool#*@} " "$TOOLS_DIR/.crates.toml"; then
			echo "packages: installing $tool"
			# Its own target directory: the tools' dependencies have other features than Postern's.
			CARGO_TARGET_DIR=$TOOLS_DIR/build cargo install --quiet --locked --root "$TOOLS_DIR" "$tool"
		fi
	done
}

# Sets what makes a build independent of its folder and of its time.
fix_environment() {
	SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
	export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC CARGO_INCREMENTAL=0
	local cargo_home=${CARGO_HOME:-$HOME/.cargo} option flags=()
	for option in --remap-path-prefix -ffile-prefix-map; do
		# The last one that fits counts, and the target directory may be within the checkout.
		flags+=("$option=$cargo_home=/usr/src/cargo $option=$ROOT=/usr/src/postern $option=$BUILD=/usr/src/target")
	done
	export RUSTFLAGS=${flags[0]} CFLAGS=${flags[1]}
	VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
}

build_programs() {
	# Each package from its own crate alone, without features that only tests need. cargo-auditable puts the list of dependencies into each
	# program, where `cargo audit bin` and scanners find it.
	CARGO_TARGET_DIR=$BUILD cargo auditable build --locked --release -p postern-broker -p postern-agent -p postern-cli
}

stage_programs() {
	local program
	rm -rf "$STAGE"
	mkdir -p "$STAGE"/{bin,debug,man,manual,licences,sbom}
	for program in "${CRATES[@]%%:*}"; do
		objcopy --only-keep-debug --compress-debug-sections=zlib "$PROGRAMS/$program" "$STAGE/debug/$program.debug"
		objcopy --strip-all "$PROGRAMS/$program" "$STAGE/bin/$program"
		(cd "$STAGE/debug" && objcopy --add-gnu-debuglink="$program.debug" "$STAGE/bin/$program")
		chmod 0755 "$STAGE/bin/$program"
	done
}

stage_manual() {
	local program
	packaging/config-manual.py "$STAGE/man"
	for program in "${CRATES[@]%%:*}"; do
		"$STAGE/bin/$program" manual "$STAGE/manual/$program"
		mkdir -p "$STAGE/man/$program"
		cp "$STAGE/manual/$program"/man/* "$STAGE/man/$program/"
		if [ -e "$STAGE/man/${program#postern-}.toml.5" ]; then mv "$STAGE/man/${program#postern-}.toml.5" "$STAGE/man/$program/"; fi
	done
	find "$STAGE/man" -name '*.[158]' -exec gzip -9n {} +
	{
		echo "postern ($VERSION-1) unstable; urgency=medium"
		echo
		echo "  * The changes are in CHANGELOG.md of the sources."
		echo
		echo " -- The Postern authors <postern@example.org>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")"
	} >"$STAGE/changelog"
}

# The licences of all crates in each program, and its bill of materials in the form of CycloneDX.
stage_provenance() {
	local pair program crate
	for pair in "${CRATES[@]}"; do
		program=${pair%%:*} crate=${pair##*:}
		packaging/provenance.py "postern-$crate" "$program" "$STAGE/licences/$program.txt" "$STAGE/sbom/$program.cdx.json"
	done
	gzip -9n "$STAGE"/licences/*.txt "$STAGE"/sbom/*.json
}

make_debs() {
	local pair program crate tree
	for pair in "${CRATES[@]}"; do
		program=${pair%%:*} crate=${pair##*:}
		CARGO_TARGET_DIR=$BUILD cargo deb --quiet "${COMPRESSION[@]}" --no-build --no-strip --no-dbgsym --multiarch none --manifest-path "$crate/Cargo.toml" \
			--output "$OUT/${program}_$VERSION-1_amd64.deb"
		tree=$STAGE/dbgsym/$program
		install -D -m 0644 "$STAGE/debug/$program.debug" "$tree/usr/lib/debug/usr/bin/$program.debug"
		install -D -m 0644 packaging/deb/copyright "$tree/usr/share/doc/$program-dbgsym/copyright"
		gzip -9nc "$STAGE/changelog" >"$STAGE/changelog.gz"
		install -D -m 0644 "$STAGE/changelog.gz" "$tree/usr/share/doc/$program-dbgsym/changelog.Debian.gz"
		install -d "$tree/DEBIAN"
		{
			echo "Package: $program-dbgsym"
			echo "Version: $VERSION-1"
			echo "Architecture: amd64"
			echo "Maintainer: The Postern authors <postern@example.org>"
			echo "Section: debug"
			echo "Priority: optional"
			echo "Depends: $program (= $VERSION-1)"
			echo "Installed-Size: $(du -sk --apparent-size "$tree/usr" | cut -f1)"
			echo "Description: debug symbols of $program"
			echo " The debug symbols of the program, for a debugger and for addr2line."
		} >"$tree/DEBIAN/control"
		(cd "$tree" && find usr -type f -exec md5sum {} + | sort -k2 >DEBIAN/md5sums)
		# The symbols are compressed already.
		find "$tree" -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
		dpkg-deb --root-owner-group -Zxz -z0 --build "$tree" "$OUT/$program-dbgsym_$VERSION-1_amd64.deb" >/dev/null
	done
}

make_rpms() {
	local pair program crate
	# cargo-generate-rpm takes over the time of each file, up to that of the last commit.
	mkdir -p "$STAGE/source"
	cp -R docs packaging LICENSE "$STAGE/source/"
	find "$STAGE" -path "$STAGE/dbgsym" -prune -o -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
	for pair in "${CRATES[@]}"; do
		program=${pair%%:*} crate=${pair##*:}
		CARGO_TARGET_DIR=$BUILD cargo generate-rpm --package "$crate" --auto-req builtin --source-date "$SOURCE_DATE_EPOCH" \
			--output "$OUT/$program-$VERSION-1.x86_64.rpm"
		rpmbuild --quiet -bb --define "_binary_payload w3.zstdio" --define "_topdir $STAGE/rpmbuild" --define "_rpmdir $OUT" --define "_rpmfilename %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm" \
			--define "_buildhost postern" --define "use_source_date_epoch_as_buildtime 1" --define "clamp_mtime_to_source_date_epoch 1" \
			--define "program $program" --define "version_of_program $VERSION" --define "stage $STAGE" packaging/rpm/debuginfo.spec
	done
}

make_image() {
	packaging/oci/image.sh "$STAGE/bin/postern-broker" "$VERSION" "$OUT/postern-broker-$VERSION.oci"
}

lint() {
	local program
	for program in "${CRATES[@]%%:*}"; do
		# cargo-auditable's list of crates; programs that were built by other means have none.
		[ -n "${POSTERN_PROGRAMS:-}" ] || readelf --sections --wide "$STAGE/bin/$program" | grep -qF .dep-v0 ||
			{ echo "packages: $program has no list of its crates" >&2; exit 1; }
	done
	packaging/config-manual.py check "$STAGE/bin"
	lintian --fail-on error,warning --suppress-tags-from-file packaging/deb/lintian.suppress "$OUT"/*.deb
	rpmlint --strict --config packaging/rpm/rpmlint.toml "$OUT"/*.rpm
	find "$STAGE/man" -name '*.gz' | sort | while read -r page; do
		# mandoc takes no compressed file as such.
		gzip -dc "$page" | mandoc -Tlint -Wunsupp || { echo "packages: $page is no good page" >&2; exit 1; }
	done
}

summarize() {
	(cd "$OUT" && find . -maxdepth 1 -type f \( -name '*.deb' -o -name '*.rpm' -o -name '*.tar' \) -printf '%P\n' | sort | xargs sha256sum >SHA256SUMS)
	(cd "$OUT" && find . -maxdepth 1 -type f \( -name '*.deb' -o -name '*.rpm' -o -name '*.tar' \) -printf '%f\t%k KiB\n' | sort)
	echo "packages: in $OUT, for x86_64 with $(ldd --version | sed -n '1s/.* /glibc /p') or later"
}

make_packages() {
	install_tools
	fix_environment
	[ -n "${POSTERN_PROGRAMS:-}" ] || build_programs
	rm -rf "$OUT"
	mkdir -p "$OUT"
	stage_programs
	stage_manual
	stage_provenance
	make_debs
	make_rpms
	make_image
	lint
	summarize
}

reproduce() {
	[ -f "$OUT/SHA256SUMS" ] || { echo "packages: run make packages first: there is nothing to compare with" >&2; exit 1; }
	local clone
	clone=$(mktemp -d "${TMPDIR:-/tmp}/postern-reproduce.XXXXXX")
	trap 'rm -rf "$clone"' EXIT
	git clone --quiet --shared . "$clone/elsewhere"
	(cd "$clone/elsewhere" && CARGO_TARGET_DIR=$clone/build packaging/packages.sh)
	diff "$OUT/SHA256SUMS" "$clone/elsewhere/target/packages/SHA256SUMS"
	echo "packages: $(wc -l <"$OUT/SHA256SUMS") files are the same, byte for byte, from two folders"
}

case "${1:-build}" in
build) make_packages ;;
reproduce) reproduce ;;
*)
	echo "packages: $1 is no step; run it without an argument, or with reproduce" >&2
	exit 2
	;;
esac
