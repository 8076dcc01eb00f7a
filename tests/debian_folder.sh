#!/usr/bin/env bash
# debian_folder.sh SUITE FOLDER PACKAGE...
#
# Unpack packages of a Debian suite, with all the libraries that they need (the C library included),
# into FOLDER, and write FOLDER/run: `FOLDER/run PROGRAM ARGS...` runs a program of that folder under
# its own libraries. Nothing is installed: the system's packages and apt's own state stay as they
# are, and another suite than the system's own will do. Needs no root, but apt, dpkg and curl or wget
# are not asked for: apt itself downloads from the mirror that it is set up with.
set -euo pipefail

suite=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd -P)
shift 2

# Programs for installing or for a whole system, which a server in a folder never calls.
unwanted='adduser|base-files|bash|coreutils|dash|debconf|debianutils|dpkg|findutils|galera-.*|gawk'
unwanted+='|gcc-[0-9]+-base|gettext-base|grep|hostname|init-system-helpers|iproute2|libpam.*'
unwanted+='|libperl.*|login.*|lsb-base|lsof|mariadb-common|mount|mysql-common|passwd|perl.*|procps'
unwanted+='|psmisc|rsync|sed|sensible-utils|socat|sysvinit-utils|tar|util-linux'

# The mirror: as the system's apt has it, for Debian itself (not its security archive).
mirror=${LANECACHE_DEBIAN_MIRROR:-$(
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -m 1 -E '/debian/?$' ||
        echo http://deb.debian.org/debian/
)}

# An apt of our own: its configuration, lists and the belief that nothing at all is installed.
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt/lists/partial" "$apt/cache/partial" "$apt/debs/partial"
: >"$apt/status"
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keys] $mirror $suite main" >"$apt/sources.list"
cat >"$apt/apt.conf" <<EOF
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::State "$apt";
Dir::State::Lists "$apt/lists";
Dir::State::Status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Cache::Archives "$apt/debs";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Debug::NoLocking "true";
pkgCacheGen::Essential "none";
EOF
export APT_CONFIG=$apt/apt.conf

apt-get -qq update

# With nothing installed, the plan to install the packages is the closure of what they depend on.
apt-get --print-uris --yes install "$@" | sed -n "s/^'[^']*' \([^ ]*\.deb\) .*/\1/p" >"$apt/plan"
if [ ! -s "$apt/plan" ]; then
    echo "debian_folder.sh: $suite has no $*" >&2
    exit 1
fi

while read -r deb; do
    package=${deb%%_*}
    if [[ $package =~ ^($unwanted)$ ]]; then continue; fi
    version=${deb#*_} version=${version%_*} version=${version//%3a/:} version=${version//%2b/+}
    (cd "$apt/debs" && apt-get -qq download "$package=$version")
    dpkg-deb --fsys-tarfile "$apt/debs/$deb" | tar --extract --directory "$folder" \
        --keep-directory-symlink --no-same-owner --exclude './usr/share/doc*' \
        --exclude './usr/share/man*' --exclude './usr/share/locale*'
    rm "$apt/debs/$deb"
done <"$apt/plan"

# Where the suite's packages no longer have these, some programs' paths still do.
for name in bin sbin lib lib64; do
    if [ -d "$folder/usr/$name" ] && [ ! -e "$folder/$name" ]; then
        ln -s "usr/$name" "$folder/$name"
    fi
done

cat >"$folder/run" <<'EOF'
#!/usr/bin/env bash
# run PROGRAM ARGS...: run a program of this folder under the folder's own loader and libraries.
root=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
program=$1
shift
for place in usr/sbin usr/bin; do
    if [ -x "$root/$place/$program" ]; then program=$root/$place/$program; fi
done
for loader in "$root"/usr/lib64/ld-linux-*.so.* "$root"/lib64/ld-linux-*.so.* \
    "$root"/usr/lib/*-linux-gnu/ld-linux-*.so.* "$root"/lib/ld-linux-*.so.*; do
    if [ -e "$loader" ]; then break; fi
done
libraries=$(printf '%s:' "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu \
    "$root"/usr/lib/mysql/private "$root"/usr/lib)
exec "$loader" --library-path "$libraries" "$program" "$@"
EOF
chmod +x "$folder/run"
