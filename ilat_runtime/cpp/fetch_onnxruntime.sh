#!/usr/bin/env bash
# Fetches what the C++ editor needs of ONNX Runtime from the package registries that pip and npm are set up for:
#   DIR/include  the headers (no Python package has them), DIR/lib  the library for this machine.
# A release of ONNX Runtime, unpacked, serves as well: give its folders to CMake and to $ILAT_ONNXRUNTIME.
set -euo pipefail
usage="usage: fetch_onnxruntime.sh DIR [PLATFORM]   (PLATFORM as pip names it, such as manylinux_2_28_aarch64)"
dir=${1:?$usage}
platform=${2:-}
version=${ONNXRUNTIME_VERSION:-1.31.1}
python=${PYTHON:-python3}
# Headers of interface version 29, MIT; the library may be of any release from 1.25.
headers=com.github.asus4.onnxruntime@0.4.9

mkdir -p "$dir"
work=$(mktemp -d "$dir/fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

if [ ! -e "$dir/include/onnxruntime_c_api.h" ]; then
	command -v npm >/dev/null || { echo "fetch_onnxruntime.sh: npm is missing; install it, or put the headers of an" \
		"ONNX Runtime release into $dir/include" >&2; exit 1; }
	echo "fetching the headers of ONNX Runtime: $headers, 150 MB" >&2
	(cd "$work" && npm pack --silent "$headers" >/dev/null)
	mkdir "$work/include"
	tar -xzf "$work"/*.tgz -C "$work/include" --strip-components=7 --wildcards '*/ios-arm64/*/Headers/*.h'
	test -e "$work/include/onnxruntime_c_api.h"
	mv "$work/include" "$dir/include"
fi
if [ ! -e "$dir/lib/libonnxruntime.so.1" ]; then
	echo "fetching the library of ONNX Runtime: onnxruntime $version" >&2
	"$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --dest "$work" \
		${platform:+--platform "$platform" --python-version 3.12} "onnxruntime==$version"
	"$python" -m zipfile -e "$work"/onnxruntime-*.whl "$work/wheel"
	mkdir "$work/lib"
	cp "$work"/wheel/onnxruntime/capi/libonnxruntime.so.* "$work/lib/libonnxruntime.so.1"
	mv "$work/lib" "$dir/lib"
fi
