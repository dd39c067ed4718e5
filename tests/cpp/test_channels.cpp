// Weights by channel, and every kernel that this CPU runs: against sums in float64 of ggml's own dequantised weights,
// and against the error of ggml's own quantised dot product of the same input. With the argument `large` the shapes of
// a 7B model, too; with `threads` only what several threads do.
#include "channels/channel_kernels.h"
#include "channels/channel_weights.h"
#include "channels/half.h"
#include "expect.h"

#include <ggml-cpu.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

using namespace ffnskip;

namespace {

constexpr ggml_type k_types[] = { GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q4_K, GGML_TYPE_Q5_0,
                                  GGML_TYPE_Q5_1, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_Q8_0,
                                  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_F32 };

std::mt19937 g_random(20);

float normal() {
    return std::normal_distribution<float>()(g_random);
}

// As many zeros as a matrix has bytes and not one more, so that sanitizers see what is read or written beside it.
class Bytes {
public:
    explicit Bytes(int64_t n) : data_(static_cast<uint8_t *>(::operator new(size_t(n), k_alignment))) {
        std::memset(data_.get(), 0, size_t(n));
    }

    uint8_t * data() const { return data_.get(); }

private:
    static constexpr std::align_val_t k_alignment{ 64 };

    struct Delete {
        void operator()(uint8_t * data) const { ::operator delete(data, k_alignment); }
    };

    std::unique_ptr<uint8_t, Delete> data_;
};

// A matrix as a model's file has it, and by channel.
struct Matrix {
    Matrix(ggml_type type, int64_t n_in, int64_t n_out, int n_threads, int64_t tile = 0)
        : layout(type, n_in, n_out, tile), row_bytes(ggml_row_size(type, n_in)), rows(row_bytes * size_t(n_out)),
          memory(layout.bytes()) {
        std::vector<float> row(static_cast<size_t>(n_in));
        for (int64_t o = 0; o < n_out; ++o) {
            const float size = 0.02f * std::exp(0.5f * normal());
            std::generate(row.begin(), row.end(), [&] { return size * normal(); });
            if (type == GGML_TYPE_F32) {
                std::memcpy(rows.data() + size_t(o) * row_bytes, row.data(), row_bytes);
            } else {
                ggml_get_type_traits(type)->from_float_ref(row.data(), rows.data() + size_t(o) * row_bytes, n_in);
            }
        }
        build_channels(layout, source(), n_threads, memory.data());
    }

    ChannelSource source() const {
        return [this](int64_t first, int64_t n, uint8_t * to) {
            std::memcpy(to, rows.data() + size_t(first) * row_bytes, size_t(n) * row_bytes);
        };
    }

    std::vector<float> dequantized(int64_t o) const {
        std::vector<float> row(size_t(layout.n_in));
        if (layout.format->type == GGML_TYPE_F32) {
            std::memcpy(row.data(), rows.data() + size_t(o) * row_bytes, row_bytes);
        } else {
            ggml_get_type_traits(layout.format->type)
                ->to_float(rows.data() + size_t(o) * row_bytes, row.data(), layout.n_in);
        }
        return row;
    }

    const float * norms() const { return channel_norms(layout, memory.data()); }

    std::string name() const {
        return std::string(ggml_type_name(layout.format->type)) + " " + std::to_string(layout.n_in) + " -> " +
               std::to_string(layout.n_out);
    }

    ChannelLayout        layout;
    size_t               row_bytes;
    std::vector<uint8_t> rows;
    Bytes                memory;
};

// ---- stored weights ----

void test_weights(const Matrix & m) {
    std::vector<double> squares(size_t(m.layout.n_in));
    double              worst = 0;
    for (int64_t o = 0; o < m.layout.n_out; ++o) {
        const std::vector<float> row = m.dequantized(o);
        for (int64_t j = 0; j < m.layout.n_in; ++j) {
            const double weight = row[size_t(j)];
            // Compilers may round the product and the sum of a minimum once or twice: relative to the terms, not to
            // their sum.
            worst = std::max(worst, std::fabs(channel_weight(m.layout, m.memory.data(), j, o) - weight) /
                                        (std::fabs(weight) + 1e-2));
            squares[size_t(j)] += weight * weight;
        }
    }
    const bool has_minimum =
        m.layout.format->scales == ChannelScales::d_m || m.layout.format->scales == ChannelScales::k;
    expect(has_minimum ? worst < 1e-6 : worst == 0,
           m.name() + ": weights equal ggml's, difference " + std::to_string(worst));
    for (size_t j = 0; j < squares.size(); ++j) {
        const double norm = std::sqrt(squares[j]);
        expect(std::fabs(m.norms()[j] - norm) <= 1e-6 * norm, m.name() + ": norm of channel " + std::to_string(j));
    }
}

// ---- products ----

struct Share {
    const char *      name;
    std::vector<bool> kept;
};

std::vector<Share> shares(int64_t n_in) {
    const auto some = [&](double share) {
        std::vector<bool> kept(static_cast<size_t>(n_in));
        for (size_t j = 0; j < kept.size(); ++j) {
            kept[j] = std::uniform_real_distribution<>()(g_random) < share;
        }
        return kept;
    };
    std::vector<bool> one(static_cast<size_t>(n_in));
    one[g_random() % one.size()] = true;
    // Whole blocks without a channel, and one with few.
    std::vector<bool> clustered(static_cast<size_t>(n_in));
    for (size_t j = 0; j < clustered.size(); ++j) {
        clustered[j] = j / 48 % 3 == 1 && j % 7 != 3;
    }
    return { { "none", some(0) },    { "one", one },       { "25 %", some(0.25) },    { "50 %", some(0.5) },
             { "75 %", some(0.75) }, { "all", some(1.1) }, { "clustered", clustered } };
}

std::vector<uint32_t> bits_of(const std::vector<bool> & kept) {
    std::vector<uint32_t> bits((kept.size() + 31) / 32);
    for (size_t j = 0; j < kept.size(); ++j) {
        bits[j / 32] |= uint32_t(kept[j]) << j % 32;
    }
    return bits;
}

// ggml's own dense product of the input, quantised as it does.
std::vector<double> ggml_product(const Matrix & m, const std::vector<float> & v) {
    const ggml_type_traits_cpu * traits = ggml_get_type_traits_cpu(m.layout.format->type);
    std::vector<uint8_t>         input(ggml_row_size(traits->vec_dot_type, m.layout.n_in) + 64);
    if (traits->vec_dot_type == GGML_TYPE_F32) {
        std::memcpy(input.data(), v.data(), v.size() * sizeof(float));
    } else {
        ggml_get_type_traits_cpu(traits->vec_dot_type)->from_float(v.data(), input.data(), m.layout.n_in);
    }
    std::vector<double> y(static_cast<size_t>(m.layout.n_out));
    if (m.layout.format->type == GGML_TYPE_F16 && ggml_cpu_has_fp16_va()) {
        // There ggml's sums are 16-bit floats as well: only its rounding of the input is taken, and added up in float64.
        std::vector<float> rounded(v.size());
        ggml_fp16_to_fp32_row(reinterpret_cast<const ggml_fp16_t *>(input.data()), rounded.data(), m.layout.n_in);
        for (int64_t o = 0; o < m.layout.n_out; ++o) {
            const std::vector<float> row = m.dequantized(o);
            y[size_t(o)]                 = std::inner_product(row.begin(), row.end(), rounded.begin(), 0.0);
        }
        return y;
    }
    for (int64_t o = 0; o < m.layout.n_out; ++o) {
        float sum = 0;
        traits->vec_dot(int(m.layout.n_in), &sum, 0, m.rows.data() + size_t(o) * m.row_bytes, 0, input.data(), 0, 1);
        y[size_t(o)] = sum;
    }
    return y;
}

double norm_of_difference(const std::vector<double> & a, const std::vector<double> & b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        sum += (a[i] - b[i]) * (a[i] - b[i]);
    }
    return std::sqrt(sum);
}

struct Errors {
    double ours = 0, ggml = 0, between = 0;  // the largest, relative to the size of the terms
} g_errors[GGML_TYPE_COUNT];

std::vector<double> multiply(const ChannelKernels & kernels, const Matrix & m, const ChannelInput & input,
                             int n_slices) {
    const float        untouched = -12345.0f;
    std::vector<float> y(size_t(m.layout.n_out) + 3, untouched);
    for (int i = 0; i < n_slices; ++i) {
        const ChannelSlice slice = channel_slice(m.layout, i, n_slices);
        kernels.multiply(m.layout, m.memory.data(), &input.kept(), 1, slice.first, slice.last, y.data());
    }
    expect(std::all_of(y.end() - 3, y.end(), [&](float value) { return value == untouched; }),
           m.name() + ": nothing past the end is written");
    return std::vector<double>(y.begin(), y.end() - 3);
}

void test_products(const Matrix & m, bool all_slices) {
    const size_t       n_in = size_t(m.layout.n_in), n_out = size_t(m.layout.n_out);
    std::vector<float> v(n_in);
    std::generate(v.begin(), v.end(), [] { return normal() * std::exp(normal()); });
    ChannelInput                    input(m.layout.n_in);
    std::vector<std::vector<float>> weights;
    for (size_t o = 0; o < n_out; ++o) {
        weights.push_back(m.dequantized(int64_t(o)));
    }
    for (const Share & share : shares(m.layout.n_in)) {
        const std::vector<uint32_t> bits = bits_of(share.kept);
        std::vector<float>          masked(n_in);
        for (size_t j = 0; j < n_in; ++j) {
            masked[j] = share.kept[j] ? v[j] : 0.0f;
        }
        std::vector<double> exact(n_out);
        // Of the terms, for sums may cancel out; and so may a weight's own, its scale's and its minimum's.
        double size = 0;
        for (size_t o = 0; o < n_out; ++o) {
            for (size_t j = 0; j < n_in; ++j) {
                const double term = double(masked[j]) * weights[o][j];
                exact[o] += term;
                size += term * term + double(masked[j]) * masked[j] * 1e-4;
            }
        }
        size                                 = std::sqrt(size) + 1e-30;
        const std::vector<double> dense      = ggml_product(m, masked);
        const double              ggml_error = norm_of_difference(dense, exact) / size;
        for (const ChannelKernels * kernels : all_channel_kernels()) {
            const std::string what = m.name() + ", " + share.name + ", " + kernels->name;
            input.keep(*kernels, m.layout, v.data(), bits.data());
            const std::vector<double> y = multiply(*kernels, m, input, 1);
            const double error = norm_of_difference(y, exact) / size, between = norm_of_difference(y, dense) / size;
            Errors &     errors = g_errors[m.layout.format->type];
            errors              = { std::max(errors.ours, error), std::max(errors.ggml, ggml_error),
                                    std::max(errors.between, between) };
            // The error is that of the input's rounding, which is ggml's own; what is between them is floats' rounding.
            expect(error <= 1.05 * ggml_error + 1e-6,
                   what + ": error " + std::to_string(error) + ", ggml's " + std::to_string(ggml_error));
            expect(between <= 3e-6, what + ": differs from ggml's by " + std::to_string(between));
            for (int n = 2; all_slices && n <= 5; ++n) {
                expect(multiply(*kernels, m, input, n) == y, what + ": the same in " + std::to_string(n) + " slices");
            }
        }
    }
}

// Several rows at once: each is what it is alone, whatever the others keep.
void test_rows(const Matrix & m) {
    const int64_t             n_in = m.layout.n_in, n_out = m.layout.n_out;
    std::vector<ChannelInput> inputs;
    for (int r = 0; r < k_max_channel_rows; ++r) {
        inputs.emplace_back(n_in);
    }
    for (const ChannelKernels * kernels : all_channel_kernels()) {
        for (int n_rows = 2; n_rows <= k_max_channel_rows; ++n_rows) {
            KeptChannels                     kept[k_max_channel_rows];
            std::vector<std::vector<double>> alone;
            std::vector<Share>               all = shares(n_in);
            std::shuffle(all.begin(), all.end(), g_random);
            for (int r = 0; r < n_rows; ++r) {
                std::vector<float> v(static_cast<size_t>(n_in));
                std::generate(v.begin(), v.end(), [] { return normal() * std::exp(normal()); });
                ChannelInput & input = inputs[size_t(r)];
                input.keep(*kernels, m.layout, v.data(), bits_of(all[size_t(r) % all.size()].kept).data());
                kept[r] = input.kept();
                alone.push_back(multiply(*kernels, m, input, 1));
            }
            for (int n_slices = 1; n_slices <= 3; ++n_slices) {
                std::vector<float> y(size_t(n_rows * n_out));
                for (int i = 0; i < n_slices; ++i) {
                    const ChannelSlice slice = channel_slice(m.layout, i, n_slices);
                    kernels->multiply(m.layout, m.memory.data(), kept, n_rows, slice.first, slice.last, y.data());
                }
                for (int r = 0; r < n_rows; ++r) {
                    const auto row = y.begin() + r * n_out;
                    expect(std::equal(row, row + n_out, alone[size_t(r)].begin()),
                           m.name() + ", " + kernels->name + ": row " + std::to_string(r) + " of " +
                               std::to_string(n_rows) + ", as it is alone");
                }
            }
        }
    }
}

// ---- which channels ----

void test_select() {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (int64_t n : { 1, 15, 31, 32, 33, 64, 100, 576, 1007 }) {
        std::vector<float> v(static_cast<size_t>(n)), norms(v);
        std::generate(v.begin(), v.end(), normal);
        std::generate(norms.begin(), norms.end(), [] { return std::fabs(normal()); });
        v[0]                 = nan;
        v[size_t(n) - 1]     = -2.0f;
        norms[size_t(n) - 1] = 0.25f;  // reaches a threshold of 0.5, just
        for (float threshold : { 0.0f, 0.5f, 0.51f, 100.0f }) {
            std::vector<uint32_t> expected(size_t(n + 31) / 32);
            int64_t               count = 0;
            for (size_t j = 0; j < v.size(); ++j) {
                const bool keep = std::isnan(v[j]) || std::fabs(v[j]) * norms[j] >= threshold;
                expected[j / 32] |= uint32_t(keep) << j % 32;
                count += keep;
            }
            for (const ChannelKernels * kernels : all_channel_kernels()) {
                std::vector<uint32_t> kept(expected.size(), 0xdeadbeef);
                const int64_t         n_kept = kernels->select(v.data(), norms.data(), threshold, n, kept.data());
                expect(kept == expected && n_kept == count,
                       std::string(kernels->name) + " selects of " + std::to_string(n));
            }
        }
    }
}

// A number that is none reaches the outputs, and is not left out.
void test_not_a_number() {
    for (ggml_type type : k_types) {
        const Matrix       m(type, 256, 130, 1);
        std::vector<float> v(256, 0.001f);
        v[70] = std::numeric_limits<float>::quiet_NaN();
        ChannelInput input(256);
        for (const ChannelKernels * kernels : all_channel_kernels()) {
            expect(input.keep(*kernels, m.layout, v.data(), m.norms(), 1e9f) == 1,
                   m.name() + ": what is not a number is kept");
            const std::vector<double> y = multiply(*kernels, m, input, 1);
            expect(std::all_of(y.begin(), y.end(), [](double value) { return std::isnan(value); }),
                   m.name() + ", " + kernels->name + ": outputs are not numbers");
        }
    }
}

// Zeros, although kept, make zeros: their codes' scale has no inverse.
void test_zeros() {
    for (ggml_type type : k_types) {
        const Matrix             m(type, 256, 130, 1);
        const std::vector<float> v(256);
        ChannelInput             input(256);
        for (const ChannelKernels * kernels : all_channel_kernels()) {
            expect(input.keep(*kernels, m.layout, v.data(), m.norms(), 0.0f) == 256, m.name() + ": zeros are kept");
            const std::vector<double> y = multiply(*kernels, m, input, 1);
            expect(std::all_of(y.begin(), y.end(), [](double value) { return value == 0.0; }),
                   m.name() + ", " + kernels->name + ": outputs of zeros");
        }
    }
}

// ---- building ----

// Any number of threads, the same bytes.
void test_build_in_threads() {
    for (ggml_type type : k_types) {
        const Matrix one(type, 512, 1000, 1);
        const Bytes  other(one.layout.bytes());
        build_channels(one.layout, one.source(), 3, other.data());
        expect(std::memcmp(one.memory.data(), other.data(), size_t(one.layout.bytes())) == 0,
               one.name() + ": three threads build the same");

        const ChannelSource broken = [&](int64_t first, int64_t n, uint8_t * to) {
            if (first >= 256) {
                throw std::invalid_argument("no such row");
            }
            one.source()(first, n, to);
        };
        expect_refused([&] { build_channels(one.layout, broken, 3, other.data()); }, "no such row");
    }
}

void test_refused_layouts() {
    for (ggml_type type : { GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4 }) {
        expect_refused([&] { ChannelLayout(type, 256, 256); }, ggml_type_name(type));
    }
    expect_refused([] { ChannelLayout(GGML_TYPE_Q4_0, 48, 64); }, "48 x 64");
    expect_refused([] { ChannelLayout(GGML_TYPE_Q4_K, 128, 64); }, "multiple of 256");
    expect_refused([] { ChannelLayout(GGML_TYPE_F16, 0, 64); }, "0 x 64");
    expect_refused([] { ChannelLayout(GGML_TYPE_F16, 64, 64, 20000); }, "20000");
}

void test_layout() {
    for (ggml_type type : k_types) {
        for (int64_t n_out : { 1, 127, 129, 1536, 4096, 4097, 11008, 14336, 28672 }) {
            for (int64_t tile : { 0, 1, 128, 1000, 4096, 16384 }) {
                const ChannelLayout layout(type, 512, n_out, tile);
                int64_t             n = 0, end = 0;  // groups, bytes
                bool                right = true;
                while (n < layout.n_groups) {
                    const ChannelTile t = layout.tile_of(n);
                    right = right && t.first == n && t.width > 0 && t.width * k_channel_group <= k_max_channel_tile &&
                            t.begin == end && t.low_stride % 512 != 0 &&
                            layout.tile_of(n + t.width - 1).first == t.first;
                    n += t.width;
                    end = t.block(layout.n_blocks - 1) + t.block_bytes;
                }
                right = right && n == layout.n_groups && end == layout.norms_offset();
                expect(right, "tiles of " + std::to_string(tile) + " of " + std::to_string(n_out) + " outputs");
            }
        }
        const ChannelLayout layout(type, 512, 256);
        expect(layout.bytes_read(512) == layout.n_groups * layout.group_bytes &&
                   layout.bytes_read(0) < layout.bytes_read(1),
               "bytes read");
        // Hardly more than the file has.
        expect(double(layout.norms_offset()) <= 1.14 * double(ggml_row_size(type, 512) * 256),
               std::string(ggml_type_name(type)) + " in few bytes");
    }
}

// All 16-bit floats, both ways, against ggml's.
void test_halves() {
    bool right = true;
    for (uint32_t i = 0; i < 65536; ++i) {
        const float value = ggml_fp16_to_fp32(ggml_fp16_t(i));
        if (std::isnan(value)) {
            right = right && std::isnan(from_half(uint16_t(i))) && std::isnan(from_half(to_half(value)));
            continue;
        }
        right             = right && from_half(uint16_t(i)) == value && to_half(value) == i;
        const float above = std::nextafter(value * 1.0003f, 1e30f);
        right =
            right && to_half(above) == ggml_fp32_to_fp16(above) && to_bfloat(above) == ggml_fp32_to_bf16(above).bits;
    }
    expect(right, "16-bit floats are ggml's");
}

}  // namespace

int main(int argc, char ** argv) {
    const std::string what  = argc > 1 ? argv[1] : "";
    const bool        large = what == "large";
    ggml_cpu_init();
    test_build_in_threads();
    if (what == "threads") {
        return result();
    }
    test_refused_layouts();
    test_halves();
    test_layout();
    test_select();
    test_not_a_number();
    test_zeros();
    for (ggml_type type : k_types) {
        const int64_t step = ggml_blck_size(type);
        const auto    test = [&](int64_t n_in, int64_t n_out, int64_t tile = 0) {
            const Matrix m(type, n_in, n_out, 2, tile);
            test_weights(m);
            test_products(m, true);
            test_rows(m);
        };
        test(step, 1);
        test(step == 1 ? 37 : step * 3, 129);
        test(step == 1 ? 577 : step * 5, 255);
        test(step == 256 ? 768 : 576, 1536);
        test(step == 1 ? 95 : step * 2, 1111, 128);  // many tiles
        test(step == 1 ? 33 : step, 700, 256);       // tiles of one group and of two
        for (int i = 0; i < 3; ++i) {
            test(step * int64_t(1 + g_random() % (step == 1 ? 300 : 4)), int64_t(1 + g_random() % 700),
                 int64_t(1 + g_random() % 512));
        }
        if (large) {
            test_products(Matrix(type, 4096, 11008, 2), false);
            test_products(Matrix(type, 11008, 4096, 2), false);
        }
    }
    for (ggml_type type : k_types) {
        const Errors & errors = g_errors[type];
        std::printf("%-5s relative error at most %.2e, of ggml's own product %.2e; between them %.1e\n",
                    ggml_type_name(type), errors.ours, errors.ggml, errors.between);
    }
    for (const ChannelKernels * kernels : all_channel_kernels()) {
        std::printf("%s ", kernels->name);
    }
    std::printf("\n");
    return result();
}
