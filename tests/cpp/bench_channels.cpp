// How fast products with channels left out are, against llama.cpp's own dense ones: as graphs of the CPU backend, on
// its threads, its weights repacked where it repacks them. Both run in turn in one process; what is printed are medians
// of the ratios of neighbouring runs, with their quartiles. Not a test: it takes minutes.
//
//   bench_channels [types=q4_0,q4_K] [shapes=4096x11008,...] [kept=100,50] [threads=1,2] [rows=1] [rounds=15]
//                  [kernels=AVX2] [tile=4096] [pages=huge] [clock=cpu]
//
// rows: of a batch, up to 4, each with channels of its own. clock=cpu: of the processor, where others use it, too.
// tile: outputs, of weights by channel. pages=huge: of ggml's weights, too, which llama.cpp has in small ones.
#include "channels/channel_kernels.h"
#include "channels/channel_memory.h"
#include "channels/channel_weights.h"

#include <ggml-backend.h>
#include <ggml-cpu.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

using namespace ffnskip;

namespace {

constexpr size_t k_bytes       = size_t(160) << 20;  // of the matrices of a graph, more than caches hold
constexpr int    k_max_threads = 16;

bool g_cpu_clock = false;

double now() {
    if (g_cpu_clock) {
        return double(std::clock()) / CLOCKS_PER_SEC;
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<std::string> split(const std::string & text, char at) {
    std::vector<std::string> parts;
    std::istringstream       stream(text);
    for (std::string part; std::getline(stream, part, at);) {
        parts.push_back(part);
    }
    return parts;
}

struct Free {
    void operator()(ggml_context * c) const { ggml_free(c); }

    void operator()(ggml_backend_buffer * b) const { ggml_backend_buffer_free(b); }

    void operator()(ggml_backend * b) const { ggml_backend_free(b); }
};

using Context = std::unique_ptr<ggml_context, Free>;
using Buffer  = std::unique_ptr<ggml_backend_buffer, Free>;
using Backend = std::unique_ptr<ggml_backend, Free>;

Context context() {
    return Context(ggml_init({ size_t(64) << 20, nullptr, true }));
}

// The product of a few rows by channel, as a node's function has it.
struct Product {
    const ChannelKernels *      kernels;
    const ChannelLayout *       layout;
    const uint8_t *             data;
    std::vector<ChannelInput> * inputs;  // k_max_channel_rows for each thread
    float                       threshold;
};

void run_product(ggml_tensor * y, int ith, int nth, void * userdata) {
    const Product &    p     = *static_cast<Product *>(userdata);
    const float *      norms = channel_norms(*p.layout, p.data);
    const ChannelSlice slice = channel_slice(*p.layout, ith, nth);
    const int          n     = int(y->ne[1]);
    KeptChannels       kept[k_max_channel_rows];
    for (int r = 0; r < n; ++r) {
        ChannelInput & input = (*p.inputs)[size_t(ith * k_max_channel_rows + r)];
        input.keep(*p.kernels, *p.layout, static_cast<const float *>(y->src[0]->data) + r * p.layout->n_in, norms,
                   p.threshold);
        kept[r] = input.kept();
    }
    p.kernels->multiply(*p.layout, p.data, kept, n, slice.first, slice.last, static_cast<float *>(y->data));
}

// Matrices of one type and shape, for ggml and by channel, and a graph of their products for each.
class Bench {
public:
    Bench(const ChannelKernels & kernels, ggml_type type, int64_t n_in, int64_t n_out, int n_rows, int64_t tile,
          bool huge_pages)
        : layout_(type, n_in, n_out, tile), n_rows_(n_rows), backend_(ggml_backend_cpu_init()), weights_(context()),
          graphs_(context()) {
        const size_t row_bytes = ggml_row_size(type, n_in), bytes = row_bytes * size_t(n_out);
        n_ = std::max<size_t>(4, k_bytes / bytes);
        for (int i = 0; i < k_max_threads * k_max_channel_rows; ++i) {
            inputs_.emplace_back(n_in);
        }

        std::mt19937                    random(1);
        std::normal_distribution<float> normal;
        const int64_t                   n_differ = 64;  // rows of weights
        std::vector<uint8_t>            rows(row_bytes * size_t(n_differ)), all(bytes);
        std::vector<float>              row(static_cast<size_t>(n_in));
        for (int64_t o = 0; o < n_differ; ++o) {
            std::generate(row.begin(), row.end(), [&] { return 0.02f * normal(random); });
            if (type == GGML_TYPE_F32) {
                std::memcpy(rows.data() + size_t(o) * row_bytes, row.data(), row_bytes);
            } else {
                ggml_get_type_traits(type)->from_float_ref(row.data(), rows.data() + size_t(o) * row_bytes, n_in);
            }
        }
        for (int64_t o = 0; o < n_out; ++o) {
            std::memcpy(all.data() + size_t(o) * row_bytes, rows.data() + size_t(o % n_differ) * row_bytes, row_bytes);
        }

        ggml_tensor * x = ggml_new_tensor_2d(graphs_.get(), GGML_TYPE_F32, n_in, n_rows);
        for (size_t i = 0; i < n_; ++i) {
            dense_.push_back(ggml_new_tensor_2d(weights_.get(), type, n_in, n_out));
        }
        weights_buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(weights_.get(), buffer_type(x)));
        repacked_ = !ggml_backend_buffer_is_host(weights_buffer_.get());
        if (huge_pages) {
            advise_huge_pages();
        }
        memory_ = std::make_unique<ChannelMemory>(n_ * padded());
        products_.resize(n_);
        for (size_t i = 0; i < n_; ++i) {
            ggml_backend_tensor_set(dense_[i], all.data(), 0, bytes);
            uint8_t * to = memory_->data() + i * padded();
            if (i == 0) {
                build_channels(
                    layout_,
                    [&](int64_t first, int64_t n, uint8_t * raw) {
                        std::memcpy(raw, all.data() + size_t(first) * row_bytes, size_t(n) * row_bytes);
                    },
                    1, to);
            } else {
                std::memcpy(to, memory_->data(), size_t(layout_.bytes()));
            }
            products_[i] = { &kernels, &layout_, to, &inputs_, 0.0f };
        }
        dense_graph_   = ggml_new_graph_custom(graphs_.get(), n_ + 8, false);
        channel_graph_ = ggml_new_graph_custom(graphs_.get(), n_ + 8, false);
        for (size_t i = 0; i < n_; ++i) {
            ggml_build_forward_expand(dense_graph_, ggml_mul_mat(graphs_.get(), dense_[i], x));
            ggml_build_forward_expand(channel_graph_,
                                      ggml_custom_4d(graphs_.get(), GGML_TYPE_F32, n_out, n_rows, 1, 1, &x, 1,
                                                     run_product, GGML_N_TASKS_MAX, &products_[i]));
        }
        graphs_buffer_.reset(ggml_backend_alloc_ctx_tensors(graphs_.get(), backend_.get()));
        row.resize(size_t(n_in * n_rows));
        std::generate(row.begin(), row.end(), [&] { return normal(random); });
        ggml_backend_tensor_set(x, row.data(), 0, row.size() * sizeof(float));
        const float * norms = channel_norms(layout_, memory_->data());
        for (size_t j = 0; j < row.size(); ++j) {
            reach_.push_back(std::fabs(row[j]) * norms[j % size_t(n_in)]);
        }
        std::sort(reach_.begin(), reach_.end());
    }

    void run(int n_threads, int percent, int rounds) {
        ggml_backend_cpu_set_n_threads(backend_.get(), n_threads);
        const size_t n_kept = std::max<size_t>(1, reach_.size() * size_t(percent) / 100);
        for (Product & product : products_) {
            product.threshold = reach_[reach_.size() - n_kept];
        }
        std::vector<double> ratios, dense, channels;
        for (int i = -1; i < rounds; ++i) {
            double t = now();
            ggml_backend_graph_compute(backend_.get(), dense_graph_);
            const double first = now() - t;
            t                  = now();
            ggml_backend_graph_compute(backend_.get(), channel_graph_);
            const double second = now() - t;
            if (i >= 0) {
                dense.push_back(first / double(n_));
                channels.push_back(second / double(n_));
                ratios.push_back(first / second);
            }
        }
        for (auto * values : { &ratios, &dense, &channels }) {
            std::sort(values->begin(), values->end());
        }
        const auto at = [](const std::vector<double> & values, double q) {
            return values[size_t(q * double(values.size() - 1) + 0.5)];
        };
        const double bytes = double(ggml_row_size(layout_.format->type, layout_.n_in) * size_t(layout_.n_out));
        const double read  = double(layout_.bytes_read(int64_t(n_kept) / n_rows_));  // by one row
        std::printf("%-5s%s %5lld -> %5lld  rows %d  threads %d  kept %3d %%: x%.2f (%.2f to %.2f), bytes allow x%.2f; "
                    " %.3f ms, dense "
                    "%.3f; GB/s %.1f, dense %.1f\n",
                    ggml_type_name(layout_.format->type), repacked_ ? "*" : " ", (long long) layout_.n_in,
                    (long long) layout_.n_out, n_rows_, n_threads, percent, at(ratios, 0.5), at(ratios, 0.25),
                    at(ratios, 0.75), bytes / read, at(channels, 0.5) * 1e3, at(dense, 0.5) * 1e3,
                    read / at(channels, 0.5) / 1e9, bytes / at(dense, 0.5) / 1e9);
        std::fflush(stdout);
    }

private:
    void advise_huge_pages() {
#ifdef MADV_HUGEPAGE
        constexpr size_t page  = 4096;
        const size_t     begin = reinterpret_cast<size_t>(ggml_backend_buffer_get_base(weights_buffer_.get()));
        const size_t     first = (begin + page - 1) / page * page;
        const size_t     last  = (begin + ggml_backend_buffer_get_size(weights_buffer_.get())) / page * page;
        madvise(reinterpret_cast<void *>(first), last - first, MADV_HUGEPAGE);
#endif
    }

    size_t padded() const { return (size_t(layout_.bytes()) + 63) / 64 * 64; }

    // Where llama.cpp would have these weights: what repacks them, if anything does.
    ggml_backend_buffer_type_t buffer_type(ggml_tensor * x) {
        ggml_backend_dev_t device = ggml_backend_get_device(backend_.get());
        const auto    extra   = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts"));
        ggml_tensor * product = ggml_mul_mat(graphs_.get(), dense_[0], x);
        for (auto * type = extra ? extra(device) : nullptr; type && *type; ++type) {
            const Buffer empty(ggml_backend_buft_alloc_buffer(*type, 0));
            dense_[0]->buffer = empty.get();
            const bool does   = ggml_backend_dev_supports_op(device, product);
            dense_[0]->buffer = nullptr;
            if (does) {
                return *type;
            }
        }
        return ggml_backend_get_default_buffer_type(backend_.get());
    }

    ChannelLayout                  layout_;
    int                            n_rows_;
    Backend                        backend_;
    Context                        weights_, graphs_;
    Buffer                         weights_buffer_, graphs_buffer_;
    std::vector<ggml_tensor *>     dense_;
    std::unique_ptr<ChannelMemory> memory_;
    std::vector<ChannelInput>      inputs_;
    std::vector<Product>           products_;
    std::vector<float>             reach_;
    ggml_cgraph *                  dense_graph_;
    ggml_cgraph *                  channel_graph_;
    size_t                         n_;
    bool                           repacked_;
};

ggml_type type_named(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        if (ggml_type_name(ggml_type(i)) && name == ggml_type_name(ggml_type(i))) {
            return ggml_type(i);
        }
    }
    std::fprintf(stderr, "no such type: %s\n", name.c_str());
    std::exit(2);
}

}  // namespace

int main(int argc, char ** argv) {
    std::map<std::string, std::string> options = { { "types", "q4_0,q4_K,q8_0" },
                                                   { "threads", "1,2" },
                                                   { "rows", "1" },
                                                   { "clock", "" },
                                                   { "rounds", "15" },
                                                   { "tile", "0" },
                                                   { "pages", "" },
                                                   { "kernels", "" },
                                                   { "shapes", "4096x11008,11008x4096,576x1536" },
                                                   { "kept", "100,75,60,50,30" } };
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i], name = argument.substr(0, argument.find('='));
        if (options.count(name) == 0 || name == argument) {
            std::fprintf(stderr, "no such option: %s\n", argument.c_str());
            return 2;
        }
        options[name] = argument.substr(name.size() + 1);
    }
    const ChannelKernels * kernels = &channel_kernels();
    for (const ChannelKernels * other : all_channel_kernels()) {
        kernels = options["kernels"] == other->name ? other : kernels;
    }
    g_cpu_clock = options["clock"] == "cpu";
    std::printf("kernels: %s; * repacked by the CPU backend\n", kernels->name);
    for (const std::string & type : split(options["types"], ',')) {
        for (const std::string & shape : split(options["shapes"], ',')) {
            const auto sides = split(shape, 'x');
            if (std::stol(sides[0]) % ggml_blck_size(type_named(type)) != 0) {
                continue;
            }
            for (const std::string & rows : split(options["rows"], ',')) {
                Bench bench(*kernels, type_named(type), std::stol(sides[0]), std::stol(sides[1]),
                            std::min(k_max_channel_rows, std::stoi(rows)), std::stol(options["tile"]),
                            options["pages"] == "huge");
                for (const std::string & threads : split(options["threads"], ',')) {
                    for (const std::string & kept : split(options["kept"], ',')) {
                        bench.run(std::min(k_max_threads, std::stoi(threads)), std::stoi(kept),
                                  std::stoi(options["rounds"]));
                    }
                }
            }
        }
    }
}
