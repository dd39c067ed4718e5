#include "channel_weights.h"

#include "half.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace ffnskip {
namespace {

constexpr int k_group = k_channel_group, k_span = k_channel_span;
constexpr int k_max_blocks = k_span / 16;  // of a span

// ---- ggml's blocks, taken apart ----

// One output's weights of up to 256 inputs.
struct Span {
    uint8_t  code[k_span];         // of types that have codes
    uint16_t d[k_max_blocks];      // for each block: scales as 16-bit floats, or as bytes
    uint16_t m[k_max_blocks];
    uint8_t  s[k_max_blocks];
    uint8_t  t[k_max_blocks];
    uint16_t span_d, span_dmin;
};

uint16_t read16(const uint8_t * from) {
    uint16_t value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

uint32_t read32(const uint8_t * from) {
    uint32_t value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

// d [m] [32 high bits] 16 bytes of two codes, 16 inputs apart; Q8_0: d, 32 signed bytes.
void unpack_block(const ChannelFormat & format, const uint8_t * from, uint8_t * code, uint16_t & d, uint16_t & m) {
    d = read16(from);
    from += 2;
    if (format.scales == ChannelScales::d_m) {
        m = read16(from);
        from += 2;
    }
    if (format.values == ChannelValues::eight_bits) {
        for (int j = 0; j < 32; ++j) {
            code[j] = uint8_t(from[j] + 128);
        }
        return;
    }
    uint32_t high = 0;
    if (format.values == ChannelValues::five_bits) {
        high = read32(from);
        from += 4;
    }
    for (int j = 0; j < 16; ++j) {
        code[j]      = uint8_t((from[j] & 15) | (high >> j & 1) << 4);
        code[j + 16] = uint8_t(from[j] >> 4 | (high >> (j + 16) & 1) << 4);
    }
}

// d, dmin, 8 pairs of s and t in 6 bits, [a high bit of each: bit i of byte j is that of input 32 * i + j], then 32 bytes for
// each 64 inputs.
void unpack_q4_k_q5_k(const ChannelFormat & format, const uint8_t * from, Span & to) {
    to.span_d    = read16(from);
    to.span_dmin = read16(from + 2);
    const uint8_t * packed = from + 4;
    for (int b = 0; b < 8; ++b) {
        to.s[b] = b < 4 ? packed[b] & 63 : uint8_t((packed[b + 4] & 15) | packed[b - 4] >> 6 << 4);
        to.t[b] = b < 4 ? packed[b + 4] & 63 : uint8_t(packed[b + 4] >> 4 | packed[b] >> 6 << 4);
    }
    const bool      five = format.values == ChannelValues::five_bits;
    const uint8_t * high = from + 16;
    const uint8_t * low  = from + (five ? 48 : 16);
    for (int b = 0; b < 8; ++b) {
        for (int j = 0; j < 32; ++j) {
            to.code[b * 32 + j] =
                uint8_t((low[b / 2 * 32 + j] >> b % 2 * 4 & 15) | (five ? (high[j] >> b & 1) << 4 : 0));
        }
    }
}

// For each half of 128 inputs 64 bytes of low and 32 of high bits; then 16 signed bytes s, and d.
void unpack_q6_k(const uint8_t * from, Span & to) {
    for (int j = 0; j < 256; ++j) {
        const int half = j / 128, quarter = j % 128 / 32, i = j % 32;
        const int low  = from[half * 64 + quarter % 2 * 32 + i] >> quarter / 2 * 4 & 15;
        to.code[j]     = uint8_t(low | (from[128 + half * 32 + i] >> quarter * 2 & 3) << 4);
    }
    std::memcpy(to.s, from + 192, 16);
    to.span_d = read16(from + 208);
}

// `n` inputs beginning with `first`, a multiple of 256, of a row.
void unpack(const ChannelLayout & layout, const uint8_t * row, int64_t first, int64_t n, Span & to) {
    const ChannelFormat & format = *layout.format;
    const uint8_t *       from   = row + ggml_row_size(format.type, first);
    if (format.scales == ChannelScales::k) {
        unpack_q4_k_q5_k(format, from, to);
    } else if (format.scales == ChannelScales::k_signed) {
        unpack_q6_k(from, to);
    } else {
        for (int64_t b = 0; b < n / 32; ++b) {
            unpack_block(format, from + b * int64_t(ggml_type_size(format.type)), to.code + b * 32, to.d[b], to.m[b]);
        }
    }
}

// What the codes of a block are multiplied by, and what is added.
struct Scale {
    float d, m;
};

Scale scale_of(ChannelScales scales, uint16_t d, uint16_t m, uint8_t s, uint8_t t, uint16_t span_d, uint16_t span_dmin) {
    switch (scales) {
        case ChannelScales::d: return { from_half(d), 0.0f };
        case ChannelScales::d_m: return { from_half(d), from_half(m) };
        case ChannelScales::k: return { from_half(span_d) * float(s), -(from_half(span_dmin) * float(t)) };
        case ChannelScales::k_signed: return { from_half(span_d) * float(int8_t(s)), 0.0f };
        case ChannelScales::none: break;
    }
    return { 1.0f, 0.0f };
}

float float_at(ChannelValues values, const uint8_t * from, int64_t i) {
    return values == ChannelValues::f32   ? bits_as<float>(read32(from + i * 4))
           : values == ChannelValues::f16 ? from_half(read16(from + i * 2))
                                          : from_bfloat(read16(from + i * 2));
}

// ---- one group of outputs ----

// Where a group's arrays are: `tile` is the tile's beginning, of `width` groups, and the group is number `index` of them.
struct Place {
    Place(const ChannelLayout & layout, int64_t group) {
        const int64_t t = layout.tile_of(group), begin = layout.tile_begin(t);
        offset = begin * layout.group_bytes;
        width  = layout.tile_begin(t + 1) - begin;
        index  = group - begin;
    }

    int64_t offset, width, index;
};

class GroupBuilder {
public:
    GroupBuilder(const ChannelLayout & layout, uint8_t * to)
        : layout_(layout), to_(to), row_bytes_(int64_t(ggml_row_size(layout.format->type, layout.n_in))),
          rows_(size_t(k_group * row_bytes_)), spans_(k_group) {}

    // `squares`, [n_in]: the sums of the squares of each input's weights in this group.
    void build(int64_t group, const ChannelSource & source, double * squares) {
        const int64_t first = group * k_group;
        n_ = std::min<int64_t>(k_group, layout_.n_out - first);
        source(first, n_, rows_.data());
        const Place place(layout_, group);
        for (int64_t j = 0; j < layout_.n_in; j += k_span) {
            const int64_t n_inputs = std::min<int64_t>(k_span, layout_.n_in - j);
            if (layout_.format->scales == ChannelScales::none) {
                copy_floats(place, j, n_inputs, squares + j);
            } else {
                write_codes(place, j, n_inputs, squares + j);
            }
        }
    }

private:
    void copy_floats(const Place & place, int64_t first, int64_t n_inputs, double * squares) {
        const ChannelValues values = layout_.format->values;
        const int64_t       size   = low_bytes(values) / k_group;
        for (int64_t j = 0; j < n_inputs; ++j) {
            uint8_t * to = input(place, first + j, low_bytes(values), 0);
            for (int64_t o = 0; o < n_; ++o) {
                const uint8_t * from = rows_.data() + o * row_bytes_ + (first + j) * size;
                std::memcpy(to + o * size, from, size_t(size));
                const double value = float_at(values, from, 0);
                squares[j] += value * value;
            }
        }
    }

    void write_codes(const Place & place, int64_t first, int64_t n_inputs, double * squares) {
        const ChannelFormat & format = *layout_.format;
        for (int64_t o = 0; o < n_; ++o) {
            unpack(layout_, rows_.data() + o * row_bytes_, first, n_inputs, spans_[size_t(o)]);
            add_squares(spans_[size_t(o)], n_inputs, squares);
        }
        for (int64_t j = 0; j < n_inputs; ++j) {
            uint8_t * low = input(place, first + j, low_bytes(format.values), 0);
            for (int64_t o = 0; o < n_; ++o) {
                const uint8_t code = spans_[size_t(o)].code[j];
                if (format.values == ChannelValues::eight_bits) {
                    low[o / 64 * 64 + code_byte(int(o % 64))] = code;
                } else {
                    low[code_byte(int(o % 64))] |= uint8_t((code & 15) << o / 64 * 4);
                }
            }
            if (high_bytes(format.values) > 0) {
                uint8_t * high = input(place, first + j, high_bytes(format.values), low_bytes(format.values));
                for (int64_t o = 0; o < n_; ++o) {
                    const HighBits at = high_bits(format.values, int(o));
                    high[at.byte] |= uint8_t(spans_[size_t(o)].code[j] >> 4 << at.shift);
                }
            }
        }
        write_scales(place, first, n_inputs);
    }

    void write_scales(const Place & place, int64_t first, int64_t n_inputs) {
        const ChannelScales scales = layout_.format->scales;
        uint8_t * tile = to_ + place.offset;
        for (int64_t b = 0; b < n_inputs / layout_.format->block; ++b) {
            uint8_t * to = tile + layout_.block_offset(place.width, first / layout_.format->block + b) + place.width * layout_.code_bytes();
            for (int64_t o = 0; o < n_; ++o) {
                const Span &  span = spans_[size_t(o)];
                const int64_t at   = place.index * k_group + o, all = place.width * k_group;
                if (scales == ChannelScales::d || scales == ChannelScales::d_m) {
                    std::memcpy(to + at * 2, &span.d[b], 2);
                    if (scales == ChannelScales::d_m) {
                        std::memcpy(to + (all + at) * 2, &span.m[b], 2);
                    }
                } else {
                    to[at] = span.s[b];
                    if (scales == ChannelScales::k) {
                        to[all + at] = span.t[b];
                    }
                }
            }
        }
        if (span_bytes(scales) > 0) {
            uint8_t * to = tile + layout_.span_offset(place.width, first / k_span);
            for (int64_t o = 0; o < n_; ++o) {
                const int64_t at = place.index * k_group + o, all = place.width * k_group;
                std::memcpy(to + at * 2, &spans_[size_t(o)].span_d, 2);
                if (scales == ChannelScales::k) {
                    std::memcpy(to + (all + at) * 2, &spans_[size_t(o)].span_dmin, 2);
                }
            }
        }
    }

    void add_squares(const Span & span, int64_t n_inputs, double * squares) const {
        const ChannelFormat & format = *layout_.format;
        for (int64_t b = 0; b < n_inputs / format.block; ++b) {
            const Scale scale = scale_of(format.scales, span.d[b], span.m[b], span.s[b], span.t[b], span.span_d, span.span_dmin);
            for (int64_t j = b * format.block; j < (b + 1) * format.block; ++j) {
                const double value = scale.d * float(span.code[j] - format.offset) + scale.m;
                squares[j] += value * value;
            }
        }
    }

    // The group's part of an input's row: `size` bytes for each group; `before`: those of the arrays before, for an input and group.
    uint8_t * input(const Place & place, int64_t input, int64_t size, int64_t before) {
        const int64_t block = layout_.format->block;
        return to_ + place.offset + layout_.block_offset(place.width, input / block) +
               place.width * (before * block + input % block * size) + place.index * size;
    }

    const ChannelLayout & layout_;
    uint8_t * const       to_;
    const int64_t         row_bytes_;
    int64_t               n_ = 0;  // outputs of the group at work
    std::vector<uint8_t>  rows_;
    std::vector<Span>     spans_;
};

}  // namespace

void build_channels(const ChannelLayout & layout, const ChannelSource & source, int n_threads, uint8_t * to) {
    std::vector<double>  squares(size_t(layout.n_groups * layout.n_in));
    std::atomic<int64_t> next{ 0 };
    std::exception_ptr   failure;
    std::mutex           mutex;
    const auto work = [&] {
        try {
            GroupBuilder builder(layout, to);
            for (int64_t group; (group = next++) < layout.n_groups;) {
                builder.build(group, source, squares.data() + group * layout.n_in);
            }
        } catch (...) {
            next = layout.n_groups;
            const std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
        }
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < n_threads; ++i) {
        threads.emplace_back(work);
    }
    work();
    for (std::thread & thread : threads) {
        thread.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
    float * norms = reinterpret_cast<float *>(to + layout.norms_offset());
    for (int64_t j = 0; j < layout.n_in; ++j) {
        double sum = 0;
        for (int64_t group = 0; group < layout.n_groups; ++group) {
            sum += squares[size_t(group * layout.n_in + j)];
        }
        norms[j] = float(std::sqrt(sum));
    }
}

float channel_weight(const ChannelLayout & layout, const uint8_t * data, int64_t input, int64_t output) {
    const ChannelFormat & format = *layout.format;
    const Place     place(layout, output / k_group);
    const int       o     = int(output % k_group);
    const int64_t   block = input / format.block, low_size = low_bytes(format.values), high_size = high_bytes(format.values);
    const uint8_t * begin = data + place.offset + layout.block_offset(place.width, block);
    const uint8_t * low   = begin + (input % format.block * place.width + place.index) * low_size;
    if (format.scales == ChannelScales::none) {
        return float_at(format.values, low, o);
    }
    const bool bytes = format.values == ChannelValues::eight_bits;
    int code = bytes ? low[o / 64 * 64 + code_byte(o % 64)] : low[code_byte(o % 64)] >> o / 64 * 4 & 15;
    if (high_size > 0) {
        const HighBits  at   = high_bits(format.values, o);
        const uint8_t * high = begin + place.width * format.block * low_size + (input % format.block * place.width + place.index) * high_size;
        code |= (high[at.byte] >> at.shift & (high_size == 16 ? 1 : 3)) << 4;
    }
    const uint8_t * scales = begin + place.width * layout.code_bytes();
    const uint8_t * span   = data + place.offset + layout.span_offset(place.width, block / layout.blocks_per_span());
    const int64_t   i = place.index * k_group + o, all = place.width * k_group;
    const auto half = [&](const uint8_t * from, int64_t at) { return read16(from + at * 2); };
    Scale scale{};
    switch (format.scales) {
        case ChannelScales::d: scale = scale_of(format.scales, half(scales, i), 0, 0, 0, 0, 0); break;
        case ChannelScales::d_m: scale = scale_of(format.scales, half(scales, i), half(scales, all + i), 0, 0, 0, 0); break;
        case ChannelScales::k: scale = scale_of(format.scales, 0, 0, scales[i], scales[all + i], half(span, i), half(span, all + i)); break;
        case ChannelScales::k_signed: scale = scale_of(format.scales, 0, 0, scales[i], 0, half(span, i), 0); break;
        case ChannelScales::none: break;
    }
    return scale.d * float(code - format.offset) + scale.m;
}

}  // namespace ffnskip
