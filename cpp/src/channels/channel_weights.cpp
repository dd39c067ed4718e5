#include "channel_weights.h"

#include "channel_span.h"
#include "half.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace ffnskip {
namespace {

constexpr int k_group = k_channel_group, k_span = k_channel_span;

// What the codes of a block are multiplied by, and what is added.
struct Scale {
    float d, m;
};

Scale scale_of(ChannelScales scales, uint16_t d, uint16_t m, uint8_t s, uint8_t t, uint16_t span_d,
               uint16_t span_dmin) {
    switch (scales) {
        case ChannelScales::d:
            return { from_half(d), 0.0f };
        case ChannelScales::d_m:
            return { from_half(d), from_half(m) };
        case ChannelScales::k:
            return { from_half(span_d) * float(s), -(from_half(span_dmin) * float(t)) };
        case ChannelScales::k_signed:
            return { from_half(span_d) * float(int8_t(s)), 0.0f };
        case ChannelScales::none:
            break;
    }
    return { 1.0f, 0.0f };
}

float float_at(ChannelValues values, const uint8_t * from, int64_t i) {
    return values == ChannelValues::f32   ? bits_as<float>(read32(from + i * 4))
           : values == ChannelValues::f16 ? from_half(read16(from + i * 2))
                                          : from_bfloat(read16(from + i * 2));
}

// ---- one group of outputs ----

// Where a group's part of its tile's arrays is.
struct Place {
    Place(const ChannelLayout & layout, int64_t group)
        : format(*layout.format), tile(layout.tile_of(group)), width(tile.width), index(group - tile.first) {}

    int64_t low(int64_t input) const {
        return tile.block(input / format.block) + input % format.block * tile.low_stride +
               index * low_bytes(format.values);
    }

    int64_t high(int64_t input) const {
        return tile.block(input / format.block) + tile.high + input % format.block * tile.high_stride +
               index * high_bytes(format.values);
    }

    // The tile's scales; the group's begin `index` groups after.
    int64_t scales(int64_t b) const { return tile.block(b) + tile.scales; }

    int64_t span(int64_t b) const { return tile.span(b); }

    const ChannelFormat & format;
    const ChannelTile     tile;
    const int64_t         width, index;
};

// Writes the weights of one group of outputs after the other, 256 inputs at a time.
class GroupBuilder {
public:
    GroupBuilder(const ChannelLayout & layout, uint8_t * to)
        : layout_(layout), format_(*layout.format), to_(to),
          row_bytes_(int64_t(ggml_row_size(format_.type, layout.n_in))), rows_(size_t(k_group * row_bytes_)),
          spans_(k_group), part_(size_t(k_group * k_part)) {}

    // `squares`, [n_in] zeros, will hold the sums of the squares of each input's weights in this group.
    void build(int64_t group, const ChannelSource & source, float * squares) {
        const int64_t first = group * k_group;
        n_                  = std::min<int64_t>(k_group, layout_.n_out - first);
        source(first, n_, rows_.data());
        const Place place(layout_, group);
        for (int64_t j = 0; j < layout_.n_in; j += k_span) {
            const int64_t n_inputs = std::min<int64_t>(k_span, layout_.n_in - j);
            if (format_.scales == ChannelScales::none) {
                write_floats(place, j, n_inputs, squares + j);
            } else {
                write_codes(place, j, n_inputs, squares + j);
            }
        }
    }

private:
    // Bytes for an output, and for a byte of the codes: not powers of two, which caches don't hold many of.
    static constexpr int k_part  = k_span * 4 + 64;
    static constexpr int k_codes = k_span + 64;

    void write_floats(const Place & place, int64_t first, int64_t n_inputs, float * squares) {
        const int64_t size = low_bytes(format_.values) / k_group;
        for (int64_t o = 0; o < n_; ++o) {
            uint8_t * part = part_.data() + o * k_part;
            std::memcpy(part, rows_.data() + o * row_bytes_ + first * size, size_t(n_inputs * size));
            for (int64_t j = 0; j < n_inputs; ++j) {
                const float value = float_at(format_.values, part, j);
                squares[j] += value * value;
            }
        }
        for (int64_t j = 0; j < n_inputs; ++j) {
            uint8_t * to = to_ + place.low(first + j);
            if (size == 2) {
                write_column<2>(j, to);
            } else {
                write_column<4>(j, to);
            }
        }
    }

    template <int size> void write_column(int64_t j, uint8_t * to) const {
        for (int64_t o = 0; o < n_; ++o) {
            std::memcpy(to + o * size, part_.data() + o * k_part + j * size, size);
        }
    }

    void write_codes(const Place & place, int64_t first, int64_t n_inputs, float * squares) {
        for (int64_t o = 0; o < n_; ++o) {
            ChannelSpan & span = spans_[size_t(o)];
            unpack_channels(format_, rows_.data() + o * row_bytes_ + int64_t(ggml_row_size(format_.type, first)),
                            n_inputs, span);
            add_squares(span, n_inputs, squares);
        }
        for (int64_t o = n_; o < k_group; ++o) {
            std::memset(spans_[size_t(o)].code, 0, k_span);
        }
        for (int o = 0; o < k_group; ++o) {
            if (format_.values == ChannelValues::eight_bits) {
                add_field(o, 0, 255, { o / 64 * 64 + code_byte(o % 64), 0 });
            } else {
                add_field(o, 0, 15, { code_byte(o % 64), o / 64 * 4 });
            }
        }
        for (int64_t j = 0; j < n_inputs; ++j) {
            write_part(j, low_bytes(format_.values), to_ + place.low(first + j));
        }
        if (high_bytes(format_.values) > 0) {
            for (int o = 0; o < k_group; ++o) {
                add_field(o, 4, 15, high_bits(format_.values, o));
            }
            for (int64_t j = 0; j < n_inputs; ++j) {
                write_part(j, high_bytes(format_.values), to_ + place.high(first + j));
            }
        }
        for (int64_t b = 0; b < n_inputs / format_.block; ++b) {
            write_scales(place, first / format_.block + b, b);
        }
        if (span_bytes(format_.scales) > 0) {
            uint8_t * to = to_ + place.span(first / format_.block);
            for (int64_t o = 0; o < n_; ++o) {
                put(to, place, 0, o, spans_[size_t(o)].span_d);
                if (format_.scales == ChannelScales::k) {
                    put(to, place, 1, o, spans_[size_t(o)].span_dmin);
                }
            }
        }
    }

    // Bits of the codes of output o, from bit `down` on. Byte b of the group's part of input j's row is part_[b *
    // k_codes + j], until it is written; a byte's first bits are those at shift 0.
    void add_field(int o, int down, int mask, CodeBits at) {
        const uint8_t * code = spans_[size_t(o)].code;
        uint8_t *       part = part_.data() + at.byte * k_codes;
        for (int j = 0; j < k_span; ++j) {
            part[j] = uint8_t((at.shift == 0 ? 0 : part[j]) | (code[j] >> down & mask) << at.shift);
        }
    }

    void write_part(int64_t j, int n_bytes, uint8_t * to) const {
        const uint8_t * part = part_.data() + j;
        for (int b = 0; b < n_bytes; ++b) {
            to[b] = part[b * k_codes];
        }
    }

    // Block number `block` of the matrix, and b of the spans.
    void write_scales(const Place & place, int64_t block, int64_t b) {
        uint8_t * to = to_ + place.scales(block);
        for (int64_t o = 0; o < n_; ++o) {
            const ChannelSpan & span = spans_[size_t(o)];
            switch (format_.scales) {
                case ChannelScales::d_m:
                    put(to, place, 1, o, span.m[b]);
                    [[fallthrough]];
                case ChannelScales::d:
                    put(to, place, 0, o, span.d[b]);
                    break;
                case ChannelScales::k:
                    put(to, place, 1, o, span.t[b]);
                    [[fallthrough]];
                case ChannelScales::k_signed:
                    put(to, place, 0, o, span.s[b]);
                    break;
                case ChannelScales::none:
                    break;
            }
        }
    }

    // Output o of the group, in one of two arrays of the tile's outputs.
    template <typename T> static void put(uint8_t * arrays, const Place & place, int which, int64_t o, T value) {
        std::memcpy(arrays + ((which * place.width + place.index) * k_group + o) * int64_t(sizeof(T)), &value,
                    sizeof(T));
    }

    void add_squares(const ChannelSpan & span, int64_t n_inputs, float * squares) const {
        for (int64_t b = 0; b < n_inputs / format_.block; ++b) {
            const Scale scale =
                scale_of(format_.scales, span.d[b], span.m[b], span.s[b], span.t[b], span.span_d, span.span_dmin);
            for (int64_t j = b * format_.block; j < (b + 1) * format_.block; ++j) {
                const float value = scale.d * float(span.code[j] - format_.offset) + scale.m;
                squares[j] += value * value;
            }
        }
    }

    const ChannelLayout &    layout_;
    const ChannelFormat &    format_;
    uint8_t * const          to_;
    const int64_t            row_bytes_;
    int64_t                  n_ = 0;  // outputs of the group at work
    std::vector<uint8_t>     rows_;
    std::vector<ChannelSpan> spans_;
    std::vector<uint8_t>     part_;
};

}  // namespace

void build_channels(const ChannelLayout & layout, const ChannelSource & source, int n_threads, uint8_t * to) {
    std::vector<float> squares(
        size_t(layout.n_groups * layout.n_in));  // summed up in order at the end, whoever did which group
    std::atomic<int64_t> next{ 0 };
    std::exception_ptr   failure;
    std::mutex           mutex;
    const auto           work = [&] {
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
    try {
        for (int i = 1; i < n_threads; ++i) {
            threads.emplace_back(work);
        }
    } catch (const std::system_error &) {
        // The system has no more threads: those there are do the work.
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
            sum += double(squares[size_t(group * layout.n_in + j)]);
        }
        norms[j] = float(std::sqrt(sum));
    }
}

void build_experts(const ChannelLayout & layout, int64_t n_experts, const ChannelSource & source, int n_threads,
                   uint8_t * to) {
    for (int64_t expert = 0; expert < n_experts; ++expert) {
        const auto rows = [&](int64_t first, int64_t n, uint8_t * rows_to) {
            source(expert * layout.n_out + first, n, rows_to);
        };
        build_channels(layout, rows, n_threads, to + expert * layout.stride());
    }
}

float channel_weight(const ChannelLayout & layout, const uint8_t * data, int64_t input, int64_t output) {
    const ChannelFormat & format = *layout.format;
    const Place           place(layout, output / k_group);
    const int             o     = int(output % k_group);
    const int64_t         block = input / format.block;
    const uint8_t *       low   = data + place.low(input);
    if (format.scales == ChannelScales::none) {
        return float_at(format.values, low, o);
    }
    const bool bytes = format.values == ChannelValues::eight_bits;
    int        code  = bytes ? low[o / 64 * 64 + code_byte(o % 64)] : low[code_byte(o % 64)] >> o / 64 * 4 & 15;
    if (high_bytes(format.values) > 0) {
        const CodeBits at = high_bits(format.values, o);
        code |= (data[place.high(input) + at.byte] >> at.shift & (format.values == ChannelValues::five_bits ? 1 : 3))
                << 4;
    }
    const uint8_t * scales = data + place.scales(block);
    const uint8_t * span   = data + place.span(block);
    const int64_t   i = place.index * k_group + o, all = place.width * k_group;
    const auto      half = [&](const uint8_t * from, int64_t at) { return read16(from + at * 2); };
    Scale           scale{};
    switch (format.scales) {
        case ChannelScales::d:
            scale = scale_of(format.scales, half(scales, i), 0, 0, 0, 0, 0);
            break;
        case ChannelScales::d_m:
            scale = scale_of(format.scales, half(scales, i), half(scales, all + i), 0, 0, 0, 0);
            break;
        case ChannelScales::k:
            scale = scale_of(format.scales, 0, 0, scales[i], scales[all + i], half(span, i), half(span, all + i));
            break;
        case ChannelScales::k_signed:
            scale = scale_of(format.scales, 0, 0, scales[i], 0, half(span, i), 0);
            break;
        case ChannelScales::none:
            break;
    }
    return scale.d * float(code - format.offset) + scale.m;
}

}  // namespace ffnskip
