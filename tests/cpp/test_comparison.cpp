// Property: wherever the rows of a check lie, the host or devices that it can't look into, the same comes out of it;
// only rows that want something cross, neighbours together, and where a device has kernels none does and one call
// waits.
//
// The devices here are made up: their addresses are never mapped, so whoever follows one crashes.
#include "comparison.h"
#include "expect.h"

#include <ggml.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

using namespace ffnskip;

namespace {

size_t g_allocations = 0;

}  // namespace

// Not inline: GCC warns of a pair of which it has inlined one.
[[gnu::noinline]] void * operator new(size_t size) {
    ++g_allocations;
    void * memory = std::malloc(size);
    return memory != nullptr ? memory : throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void * memory) noexcept {
    std::free(memory);
}
[[gnu::noinline]] void operator delete(void * memory, size_t) noexcept {
    std::free(memory);
}

namespace {

constexpr int64_t k_n = 37;

using Values = std::vector<float>;

// Few rows of many, as a server's batch has them: eight others stand between its runs, seven in one of them.
const std::string k_few = "--c"
                          "-------"
                          "ss"
                          "--------"
                          "cc---s"
                          "-----------------"
                          "s---";

// What is at addresses of the devices.
class DeviceMemory {
public:
    float * store(const Values & values) {
        float * address                               = reinterpret_cast<float *>(++n_stored_ * 0x10000);
        blocks_[reinterpret_cast<uintptr_t>(address)] = values;
        return address;
    }
    float * at(const void * address) {
        const uintptr_t wanted = reinterpret_cast<uintptr_t>(address);
        auto            block  = --blocks_.upper_bound(wanted);
        return block->second.data() + (wanted - block->first) / sizeof(float);
    }

private:
    std::map<uintptr_t, Values> blocks_;
    uintptr_t                   n_stored_ = 0;
};

double exact_cosine(const std::function<double(int64_t)> & x, const std::function<double(int64_t)> & y) {
    double xy = 0, xx = 0, yy = 0;
    for (int64_t i = 0; i < k_n; ++i) {
        xy += x(i) * y(i);
        xx += x(i) * x(i);
        yy += y(i) * y(i);
    }
    return xy / std::sqrt(xx * yy);
}

// Does what a device does, when it is waited for.
class FakeKernels final : public RowKernels {
public:
    explicit FakeKernels(DeviceMemory & memory) : memory_(memory) {}

    void cosine(Pair pair, const Rows & a, const Rows & b) override {
        enqueue([this, pair, a, b] {
            cosines_.assign(size_t(a.n_rows), 0.0f);
            for (int64_t r = 0; r < a.n_rows; ++r) {
                const float * x     = row(a, r);
                const float * y     = row(b, r);
                const double  sign  = pair == Pair::sum ? 1.0 : -1.0;
                const auto    own   = [&](int64_t i) { return double(x[i]); };
                const auto    both  = [&](int64_t i) { return double(x[i]) + sign * double(y[i]); };
                cosines_[size_t(r)] = float(exact_cosine(own, both));
            }
        });
    }
    void zero(const Rows & to, const uint8_t * mask) override {
        for (int64_t r = 0; r < to.n_rows; ++r) {
            if (mask[r] != 0) {
                enqueue([this, to, r] { std::fill_n(row(to, r), to.n, 0.0f); });
            }
        }
    }
    Rows keep(const Rows & rows) override {
        const Rows kept{ memory_.store(Values(size_t(rows.n * rows.n_rows))), rows.n, rows.n_rows, rows.n * 4 };
        enqueue([this, rows, kept] {
            for (int64_t r = 0; r < rows.n_rows; ++r) {
                std::copy_n(row(rows, r), rows.n, row(kept, r));
            }
        });
        return kept;
    }
    void read(const Rows & rows, float * to) override {
        enqueue([this, rows, to] {
            for (int64_t r = 0; r < rows.n_rows; ++r) {
                std::copy_n(row(rows, r), rows.n, to + r * rows.n);
            }
        });
    }
    const float * finish() override {
        for (const auto & work : work_) {
            work();
        }
        work_.clear();
        ++n_finished;
        return cosines_.data();
    }

    bool pending() const { return !work_.empty(); }
    int  n_finished = 0;

private:
    float * row(const Rows & rows, int64_t r) { return memory_.at(rows.data) + r * rows.stride / 4; }
    void    enqueue(std::function<void()> work) { work_.push_back(std::move(work)); }

    DeviceMemory &                     memory_;
    std::vector<std::function<void()>> work_;
    Values                             cosines_;
};

enum Place { host, plain_device, device_0, device_1 };  // the last two have kernels
constexpr Place        k_places[] = { host, plain_device, device_0, device_1 };
constexpr const char * k_names[]  = { "the host", "a device without kernels", "device 0", "device 1" };

class FakeBuffers final : public Buffers {
public:
    bool on_host(const ggml_tensor * tensor) const override { return place_.at(tensor) == host; }
    void read(const ggml_tensor * from, size_t offset, size_t size, void * to) override {
        if (on_host(from)) {
            std::memcpy(to, static_cast<char *>(from->data) + offset, size);
            return;
        }
        n_rows_read += rows_of(from, size);
        std::memcpy(to, reinterpret_cast<char *>(devices.at(from->data)) + offset, size);
        ++n_read;
    }
    void write(ggml_tensor * to, size_t offset, size_t size, const void * from) override {
        expect(!on_host(to), "no write to the host");
        n_rows_written += rows_of(to, size);
        std::memcpy(reinterpret_cast<char *>(devices.at(to->data)) + offset, from, size);
        ++n_written;
    }
    RowKernels * kernels(const ggml_tensor * tensor) override {
        const Place place = place_.at(tensor);
        return place == device_0 ? &kernels_0 : place == device_1 ? &kernels_1 : nullptr;
    }

    // [n_rows, k_n] in rows of k_n + padding floats.
    ggml_tensor * put(Place place, const Values & values, int64_t padding) {
        const int64_t n_rows = int64_t(values.size()) / k_n;
        ggml_tensor * tensor = ggml_new_tensor_2d(ctx_.get(), GGML_TYPE_F32, k_n, n_rows);
        tensor->nb[1]        = size_t(k_n + padding) * sizeof(float);
        Values rows(size_t((k_n + padding) * n_rows), k_untouched);
        for (int64_t r = 0; r < n_rows; ++r) {
            std::copy_n(&values[size_t(r * k_n)], k_n, &rows[size_t(r * (k_n + padding))]);
        }
        place_[tensor] = place;
        if (place == host) {
            host_.push_back(std::make_unique<Values>(rows));
            tensor->data = host_.back()->data();
        } else {
            tensor->data = devices.store(rows);
        }
        return tensor;
    }

    Values get(const ggml_tensor * tensor) {
        const float * data = place_.at(tensor) == host ? static_cast<float *>(tensor->data) : devices.at(tensor->data);
        const int64_t stride = int64_t(tensor->nb[1] / sizeof(float));
        Values        values;
        for (int64_t r = 0; r < ggml_nrows(tensor); ++r) {
            values.insert(values.end(), data + r * stride, data + r * stride + k_n);
            expect(
                std::all_of(data + r * stride + k_n, data + (r + 1) * stride, [](float x) { return x == k_untouched; }),
                "what lies between rows is not touched");
        }
        return values;
    }

    DeviceMemory devices;
    FakeKernels  kernels_0{ devices }, kernels_1{ devices };
    int          n_read = 0, n_written = 0;
    int64_t      n_rows_read = 0, n_rows_written = 0;

private:
    static int64_t rows_of(const ggml_tensor * tensor, size_t size) {
        return int64_t((size - size_t(k_n) * sizeof(float)) / tensor->nb[1]) + 1;
    }

    static constexpr float k_untouched = 77.0f;
    struct Free {
        void operator()(ggml_context * ctx) const { ggml_free(ctx); }
    };
    std::unique_ptr<ggml_context, Free>  ctx_{ ggml_init({ size_t(1) << 16, nullptr, true }) };
    std::map<const ggml_tensor *, Place> place_;
    std::vector<std::unique_ptr<Values>> host_;
};

Values random_rows(uint32_t seed, int64_t n_rows) {
    std::mt19937                    random(seed);
    std::normal_distribution<float> normal;
    Values                          values(size_t(k_n * n_rows));
    for (float & value : values) {
        value = normal(random);
    }
    return values;
}

RowTasks tasks_of(const std::string & wants) {  // per row: c checks, s skips, - neither
    RowTasks tasks;
    for (const char want : wants) {
        tasks.checks.push_back(want == 'c');
        tasks.skips.push_back(want == 's');
        tasks.any_checks = tasks.any_checks || want == 'c';
        tasks.any_skips  = tasks.any_skips || want == 's';
    }
    tasks.n_rows = int64_t(wants.size());
    return tasks;
}

void expect_similarity(const float * got, const RowTasks & tasks, const Values & x, const Values & y,
                       const std::string & what) {
    for (int64_t r = 0; r < tasks.n_rows; ++r) {
        const double expected = exact_cosine([&](int64_t i) { return double(x[size_t(r * k_n + i)]); },
                                             [&](int64_t i) { return double(y[size_t(r * k_n + i)]); });
        if (tasks.checks[size_t(r)]) {
            expect(std::fabs(double(got[r]) - expected) < 1e-6, what + ", similarity of row " + std::to_string(r));
        }
    }
}

Values without_skipping(Values values, const RowTasks & tasks) {
    for (int64_t i = 0; i < k_n * tasks.n_rows; ++i) {
        if (tasks.skips[size_t(i / k_n)]) {
            values[size_t(i)] = 0.0f;
        }
    }
    return values;
}

// The rows that want something, in runs that eight or more others stand between.
struct Runs {
    explicit Runs(const std::string & wants) {
        for (size_t i = wants.find_first_not_of('-'), next; i != std::string::npos; i = next) {
            next            = wants.find_first_not_of('-', i + 1);
            const bool last = next == std::string::npos || next - i > 8;
            n += int(last);
            n_rows += last ? 1 : int64_t(next - i);
        }
    }
    int     n      = 0;
    int64_t n_rows = 0;
};

// Nothing is pending; with kernels nothing has crossed, else the runs of `n_read` tensors, and back those of
// `n_written`.
void expect_crossings(FakeBuffers & buffers, bool kernels, int n_read, int n_written, const std::string & wants,
                      const std::string & what) {
    expect(!buffers.kernels_0.pending() && !buffers.kernels_1.pending(), what + ": nothing is left pending");
    expect(buffers.kernels_0.n_finished + buffers.kernels_1.n_finished == int(kernels),
           what + ": waits once, with kernels alone");
    const Runs runs(wants);
    expect(wants != k_few || (runs.n == 3 && runs.n_rows == 17), "few rows of many");
    expect(buffers.n_read == n_read * runs.n && buffers.n_written == n_written * runs.n,
           what + ": " + std::to_string(buffers.n_read) + " reads, " + std::to_string(buffers.n_written) + " writes");
    expect(buffers.n_rows_read == n_read * runs.n_rows && buffers.n_rows_written == n_written * runs.n_rows,
           what + ": rows that are not wanted stay where they are");
}

Values sum_of(const Values & h, const Values & f) {
    Values sum = h;
    for (size_t i = 0; i < f.size(); ++i) {
        sum[i] += f[i];
    }
    return sum;
}

void before_add(Place place_h, Place place_f, const std::string & wants, int64_t padding) {
    const RowTasks      tasks = tasks_of(wants);
    const Values        h = random_rows(1, tasks.n_rows), f = random_rows(2, tasks.n_rows);
    const bool          kernels   = place_h == place_f && place_h >= device_0;
    const int           fetched_h = !kernels && place_h != host, fetched_f = !kernels && place_f != host;
    const std::string   what = std::string("h on ") + k_names[place_h] + ", f on " + k_names[place_f] + ", " + wants;
    FakeBuffers         buffers;
    Comparison          comparison(buffers);
    const ggml_tensor * h_rows = buffers.put(place_h, h, 3 - padding);
    ggml_tensor *       f_rows = buffers.put(place_f, f, padding);
    expect_similarity(comparison.before_add(h_rows, f_rows, tasks), tasks, h, sum_of(h, f), what);
    expect(buffers.get(f_rows) == without_skipping(f, tasks) && buffers.get(h_rows) == h,
           what + ": f leaves rows that skip");
    expect_crossings(buffers, kernels, fetched_h * tasks.any_checks + fetched_f, fetched_f * tasks.any_skips, wants,
                     what);
}

void after_add(Place place_f, Place place_out, const std::string & wants, int64_t padding) {
    const RowTasks    tasks = tasks_of(wants);
    const Values      h = random_rows(3, tasks.n_rows), f = random_rows(4, tasks.n_rows);
    const Values      out = sum_of(h, f);
    const std::string what =
        std::string("f kept, f on ") + k_names[place_f] + ", out on " + k_names[place_out] + ", " + wants;
    FakeBuffers   buffers;
    Comparison    comparison(buffers);
    ggml_tensor * branch = buffers.put(place_f, f, padding);
    comparison.keep(branch, tasks);
    expect(buffers.get(branch) == without_skipping(f, tasks), what + ": f leaves rows that skip");
    expect_crossings(buffers, place_f >= device_0, place_f == plain_device, place_f == plain_device && tasks.any_skips,
                     wants, what);
    if (!tasks.any_checks) {
        return;
    }
    // By then something else is in the memory f was in.
    const Values other = random_rows(5, tasks.n_rows);
    for (int64_t r = 0; r < tasks.n_rows; ++r) {
        float * row = (place_f == host ? static_cast<float *>(branch->data) : buffers.devices.at(branch->data)) +
                      r * int64_t(branch->nb[1] / sizeof(float));
        std::copy_n(&other[size_t(r * k_n)], k_n, row);
    }
    buffers.n_read = buffers.n_written = 0;
    buffers.n_rows_read = buffers.n_rows_written = buffers.kernels_0.n_finished = buffers.kernels_1.n_finished = 0;
    const ggml_tensor * sum = buffers.put(place_out, out, 0);
    expect_similarity(comparison.after_add(sum, tasks), tasks, h, out, what);
    expect_crossings(buffers, place_f >= device_0, !(place_f == place_out && place_f >= device_0) && place_out != host,
                     0, wants, what);
}

// On the host a check costs arithmetic, and nothing else.
void no_allocation_on_the_host() {
    const RowTasks tasks = tasks_of("csc-");
    FakeBuffers    buffers;
    Comparison     comparison(buffers);
    ggml_tensor *  h   = buffers.put(host, random_rows(6, tasks.n_rows), 0);
    ggml_tensor *  f   = buffers.put(host, random_rows(7, tasks.n_rows), 0);
    const auto     all = [&] {
        comparison.before_add(h, f, tasks);
        comparison.keep(f, tasks);
        comparison.after_add(h, tasks);
    };
    all();
    const size_t before = g_allocations;
    all();
    const bool none = g_allocations == before;
    expect(none, "no allocation on the host but the first time");
}

}  // namespace

int main() {
    for (const Place first : k_places) {
        for (const Place second : k_places) {
            for (const char * wants : { "cccc", "ssss", "csc-", "--s-", "c---", "sccs", k_few.c_str() }) {
                for (const int64_t padding : { 0, 3 }) {
                    before_add(first, second, wants, padding);
                    after_add(first, second, wants, padding);
                }
            }
        }
    }
    no_allocation_on_the_host();
    return result();
}
