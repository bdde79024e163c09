// Instruction sets: what this machine can run, and which kernels a call has. Those of its set; or others whose products of floats are in
// bfloat16 (amx.hpp), where PyTorch has been told that they may be (torch.set_float32_matmul_precision) and the machine has what it takes.
#pragma once

#include <nanobind/nanobind.h>

#include <stdexcept>
#include <string>
#include <vector>

#if defined(ELMAN_HAS_AMX) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "program.hpp"

namespace elman {

namespace nb = nanobind;

namespace plain {
extern const Kernels kernels;
}
#if defined(ELMAN_HAS_AVX2)
namespace avx2 {
extern const Kernels kernels;
}
#endif
#if defined(ELMAN_HAS_AVX512)
namespace avx512 {
extern const Kernels kernels;
}
#endif
#if defined(ELMAN_HAS_AMX)
namespace amx {
void in_bfloat16(Kernels& kernels);
}
#endif

namespace {

// What this machine can run, the best first.
std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
#if defined(ELMAN_HAS_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        found.push_back(&avx512::kernels);
#endif
#if defined(ELMAN_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::kernels);
#endif
    found.push_back(&plain::kernels);
    return found;
}

const Kernels& named(const std::string& name) {
    for (const Kernels* kernels : usable())
        if (name == kernels->name) return *kernels;
    throw std::invalid_argument("this machine or this build has no instruction set '" + name + "'");
}

// Whether the processor has AMX-TILE, AMX-BF16 and AVX512-BF16.
bool multiplies_tiles() {
#if defined(ELMAN_HAS_AMX) && defined(__linux__)
    unsigned most, more, a, b, c, d;
    return __get_cpuid_count(7, 0, &most, &b, &c, &d) && most >= 1 && (d >> 22 & d >> 24 & 1) && __get_cpuid_count(7, 1, &more, &a, &b, &c) && (more >> 5 & 1);
#else
    return false;
#endif
}

// Whether the system keeps the tiles of this process from one of its turns to the next, which has to be asked for: once, and for no
// process that has no use for it.
bool keeps_tiles() {
#if defined(ELMAN_HAS_AMX) && defined(__linux__)
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, from Linux 5.16 on
    static const bool granted = multiplies_tiles() && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return granted;
#else
    return false;
#endif
}

// () -> "bf16" where products may be in bfloat16. Asked anew by every call, with Python's lock; by none where it would change nothing.
PyObject* precision = nullptr;

const Kernels& of_now(const Kernels& kernels) {
#if defined(ELMAN_HAS_AMX)
    static const bool of_use = multiplies_tiles();
    if (!of_use || !precision || &kernels != &avx512::kernels) return kernels;
    const nb::object said = nb::steal(PyObject_CallNoArgs(precision));
    if (!said.is_valid()) throw nb::python_error();
    if (!PyUnicode_Check(said.ptr()) || PyUnicode_CompareWithASCIIString(said.ptr(), "bf16") != 0 || !keeps_tiles()) return kernels;
    static const Kernels in_halves = [] {
        Kernels made = avx512::kernels;
        amx::in_bfloat16(made);
        return made;
    }();
    return in_halves;
#else
    return kernels;
#endif
}

}  // namespace
}  // namespace elman
