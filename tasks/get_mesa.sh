#!/bin/sh
# Unpacks Mesa's Vulkan drivers, 25 or later, from this machine's Debian or Ubuntu
# mirror into DIR, for `deno task radv --mesa DIR`. Nothing is installed.
#
#   tasks/get_mesa.sh DIR
set -eu
dir=${1:?"say into which folder: tasks/get_mesa.sh DIR"}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$dir" "$work/lists/partial" "$work/archives/partial"
dir=$(cd "$dir" && pwd)

# apt with lists of its own, so that neither root nor a change of the system is needed.
apt() {
  command=$1
  shift
  "apt-$command" -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work" \
    -o APT::Sandbox::User="$(id -un)" -o Dir::Etc::SourceParts="$work/sources" "$@"
}
mkdir -p "$work/sources"
cp /etc/apt/sources.list.d/* "$work/sources/" 2>/dev/null || true
. /etc/os-release
release=
if [ "$ID $VERSION_CODENAME" = "debian bookworm" ]; then
  # Its own Mesa is too old; the backports lie on the same mirror.
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | head -n 1)
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" \
    > "$work/sources/backports.list"
  release=bookworm-backports
fi
apt get -qq update
cd "$work"
apt get -qq ${release:+-t "$release"} download mesa-vulkan-drivers libdrm2 libdrm-amdgpu1
for package in *.deb; do dpkg -x "$package" "$dir"; done
ls "$dir"/usr/lib/*/libvulkan_radeon.so "$dir"/usr/lib/*/libvulkan_lvp.so
