#include "channel_kernels.h"

#include "kernels.h"

#include <stdexcept>
#include <string>

#ifdef FFNSKIP_AVX
#include <cpuid.h>
#endif

#if defined(FFNSKIP_NEON) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace ffnskip {
namespace {

#ifdef FFNSKIP_AVX
// By its bit: Clang 14, as one, has no name for it.
bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

#ifdef FFNSKIP_NEON
bool has_dot_product() {
#ifdef __linux__
    return (getauxval(AT_HWCAP) & (1ul << 20)) != 0;  // HWCAP_ASIMDDP
#else
    return true;  // all of Apple's
#endif
}
#endif

std::vector<const ChannelKernels *> usable() {
    std::vector<const ChannelKernels *> kernels;
#ifdef FFNSKIP_AVX
    if (has_avx512()) {
        kernels.push_back(&k_avx512_kernels);
    }
    if (has_avx2()) {
        kernels.push_back(&k_avx2_kernels);
    }
#endif
#ifdef FFNSKIP_NEON
    if (has_dot_product()) {
        kernels.push_back(&k_neon_kernels);
    }
#endif
    kernels.push_back(&k_plain_kernels);
    return kernels;
}

}  // namespace

const std::vector<const ChannelKernels *> & all_channel_kernels() {
    static const std::vector<const ChannelKernels *> kernels = usable();
    return kernels;
}

const ChannelKernels & channel_kernels() {
    return *all_channel_kernels().front();
}

ChannelInput::ChannelInput(int64_t n_in) {
    // The smallest blocks have 16 inputs; vectors are stored whole, past the end of a list.
    const size_t n_blocks = size_t(n_in + 15) / 16, n = n_blocks * 16 + 64;
    bits_.resize(size_t(n_in + 31) / 32);
    integers_.resize(2 * n_blocks + 1);
    floats_.resize(n + 2 * n_blocks);
    bytes_.resize(2 * n);
    kept_ = { integers_.data(),
              bytes_.data(),
              reinterpret_cast<int8_t *>(bytes_.data() + n),
              floats_.data(),
              floats_.data() + n,
              floats_.data() + n + n_blocks,
              integers_.data() + n_blocks + 1 };
}

int64_t ChannelInput::keep(const ChannelKernels & kernels, const ChannelLayout & layout, const float * v,
                           const float * norms, float threshold) {
    const int64_t n = kernels.select(v, norms, threshold, layout.n_in, bits_.data());
    kernels.prepare(layout, v, bits_.data(), kept_);
    return n;
}

void ChannelInput::keep(const ChannelKernels & kernels, const ChannelLayout & layout, const float * v,
                        const uint32_t * kept) {
    kernels.prepare(layout, v, kept, kept_);
}

}  // namespace ffnskip
