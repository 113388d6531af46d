#!/usr/bin/env bash
# The checks of the C++ editor that `make cpp` leaves out, each on its own: make cpp-checks, or checks.sh NAME...
#   clang      clang++, warnings as errors, the TensorRT backend against its real headers; run with AddressSanitizer and
#              UBSan
#   tidy       clang-tidy of the library
#   fuzz       the parsers, at the same time, for a minute, from the kept corpus (FUZZ_SECONDS)
#   thread     ThreadSanitizer
#   aarch64    cross-compiled and run under qemu: the Jetson's CPU
# What a machine lacks is skipped with a line that says so; with ILAT_REQUIRE_CPP=1, as in CI, that is a failure.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
jobs=${CPP_JOBS:-2}
onnxruntime=$(realpath "${ONNXRUNTIME:-build/onnxruntime}")
bundles=${ILAT_TINY_BUNDLES:-build/tiny}
export ILAT_ONNXRUNTIME=${ILAT_ONNXRUNTIME:-$onnxruntime/lib/libonnxruntime.so.1}
skipped=()

say() { printf '\n== %s\n' "$*" >&2; }

# Whether the programs are there; says so otherwise.
have() {
	for program in "$@"; do
		if ! command -v "$program" >/dev/null; then
			say "SKIPPED ${FUNCNAME[-2]}: $program is not installed"
			skipped+=("${FUNCNAME[-2]}")
			return 1
		fi
	done
}

# configure FOLDER [OPTIONS...], then build.
build() {
	local folder=build/$1
	shift
	cmake -S ilat_runtime/cpp -B "$folder" -DILAT_WERROR=ON -DILAT_ONNXRUNTIME_INCLUDE="$onnxruntime/include" "$@" >/dev/null
	cmake --build "$folder" -j "$jobs" >/dev/null
}

# Random-weight bundles of two kinds; the third takes a part of their ways.
tiny() {
	for kind in pose sketch; do
		test -e "$bundles/$kind/manifest.json" ||
			"$python" -c "from pathlib import Path; from ilat_export.tiny import tiny_bundle
tiny_bundle(Path('$bundles/$kind'), kind='$kind')" >/dev/null
	done
}

run_tests() {
	tiny
	"$1/tests/unit-tests" --no-version
	"$1/tests/c-header"
	for kind in pose sketch; do
		ILAT_TEST_BUNDLE=$bundles/$kind "$1/tests/editor-tests" --no-version
	done
}

# TensorRT's and CUDA's headers, to compile against: build/tensorrt/{tensorrt,cuda}
tensorrt_headers() {
	test -e build/tensorrt/done && return
	local work
	work=$(mktemp -d)
	"$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --dest "$work" \
		kernel-lens==2.0.1 nvidia-cuda-runtime-cu12==12.9.79 nvidia-cuda-nvcc-cu12==12.9.86
	for wheel in "$work"/*.whl; do "$python" -m zipfile -e "$wheel" "$work/all"; done
	mkdir -p build/tensorrt
	cp -r "$work/all/kernel_lens/include/tensorrt" build/tensorrt/
	cp -r "$work/all/nvidia/cuda_runtime/include" build/tensorrt/cuda
	cp -r "$work/all/nvidia/cuda_nvcc/include/crt" build/tensorrt/cuda/
	rm -r "$work"
	touch build/tensorrt/done
}

# One build for clang, tidy and fuzz: compiling takes longer than most of the checks.
clang_build() {
	have clang++ clang-tidy || return 1
	if ! echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
		clang++ -x c++ -fsanitize=fuzzer - -o /dev/null 2>/dev/null; then
		say "SKIPPED ${FUNCNAME[-2]}: this clang has no libFuzzer (libclang-rt-dev)"
		skipped+=("${FUNCNAME[-2]}")
		return 1
	fi
	tensorrt_headers
	build clang -DCMAKE_CXX_COMPILER=clang++ -DCMAKE_C_COMPILER=clang -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -g1" \
		-DBUILD_SHARED_LIBS=OFF -DILAT_SANITIZE=address,undefined -DILAT_FUZZ=ON -DILAT_BUILD_TESTS=ON \
		-DILAT_BUILD_SAMPLES=ON -DILAT_TENSORRT_INCLUDE="$PWD/build/tensorrt/tensorrt" \
		-DILAT_CUDA_INCLUDE="$PWD/build/tensorrt/cuda"
	grep -q tensorrt.cpp build/clang/compile_commands.json
}

clang() {
	clang_build || return 0
	LSAN_OPTIONS=suppressions=tests/cpp/lsan.supp run_tests build/clang
}

tidy() {
	clang_build || return 0
	# Of the library only: a file takes half a minute.
	find ilat_runtime/cpp/src -name '*.cpp' -print0 |
		xargs -0 -n 1 -P "$jobs" clang-tidy --quiet -p build/clang 2>/dev/null
}

fuzz() {
	clang_build || return 0
	local target running=() failed=0
	for target in manifest poses image; do
		mkdir -p "build/fuzz/found-$target"
		"build/clang/tests/fuzz-$target" -max_total_time="${FUZZ_SECONDS:-60}" -timeout=10 -max_len=20000 \
			-print_final_stats=0 -print_funcs=0 -verbosity=0 -artifact_prefix="build/fuzz/$target-" "build/fuzz/found-$target" \
			"tests/cpp/fuzz/corpus/$target" &
		running+=($!)
	done
	for target in "${running[@]}"; do wait "$target" || failed=1; done
	return $failed
}

thread() {
	build thread -DCMAKE_BUILD_TYPE=None -DCMAKE_CXX_FLAGS="-O1 -g1" -DILAT_SANITIZE=thread -DILAT_BUILD_TESTS=ON
	# Not its reports of unlocked mutexes: with its locks ignored, those that ONNX Runtime unlocks at exit look so.
	TSAN_OPTIONS="suppressions=tests/cpp/tsan.supp halt_on_error=1 report_mutex_bugs=0" run_tests build/thread
}

aarch64() {
	have aarch64-linux-gnu-g++ qemu-aarch64-static || return 0
	tiny
	local arm=build/aarch64 tools=(-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64
		-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_BUILD_TYPE=Release)
	mkdir -p $arm/onnxruntime
	ln -sfn "$onnxruntime/include" $arm/onnxruntime/include
	PYTHON=$python ilat_runtime/cpp/fetch_onnxruntime.sh $arm/onnxruntime manylinux_2_28_aarch64
	build aarch64/ilat "${tools[@]}" -DILAT_JSON_INCLUDE=/usr/include
	cmake --install $arm/ilat --prefix $arm/prefix >/dev/null
	cmake --no-warn-unused-cli -S samples/cpp-app -B $arm/app "${tools[@]}" -Dilat_DIR="$PWD/$arm/prefix/lib/cmake/ilat" >/dev/null
	cmake --build $arm/app >/dev/null
	# qemu passes the host's /proc/cpuinfo on; ONNX Runtime's start-up probe wants that of an Arm machine.
	mkdir -p $arm/root/proc
	ln -sfn /usr/aarch64-linux-gnu/lib $arm/root/lib
	cat >$arm/root/proc/cpuinfo <<-END
		processor	: 0
		BogoMIPS	: 50.00
		Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
		CPU implementer	: 0x41
		CPU architecture: 8
		CPU variant	: 0x4
		CPU part	: 0xd0b
		CPU revision	: 1
	END
	"$python" tests/cpp/compare_aarch64.py "$bundles/pose" "$bundles/sketch" -- env -u ILAT_ONNXRUNTIME \
		qemu-aarch64-static -cpu cortex-a76 -L $arm/root \
		-E ILAT_ONNXRUNTIME="$PWD/$arm/onnxruntime/lib/libonnxruntime.so.1" \
		-E LD_LIBRARY_PATH="$PWD/$arm/prefix/lib:/lib" $arm/app/cpp-app
}

for check in "${@:-clang tidy fuzz thread aarch64}"; do
	for name in $check; do
		say "$name"
		SECONDS=0
		$name
		echo "$name: $SECONDS s" >&2
	done
done
if [ ${#skipped[@]} -gt 0 ]; then
	say "skipped: ${skipped[*]}"
	test "${ILAT_REQUIRE_CPP:-}" != 1
fi
