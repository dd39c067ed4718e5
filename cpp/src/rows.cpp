#include "rows.h"

#include "similarity.h"

#include <algorithm>
#include <cstring>

namespace ffnskip {
namespace {

DeviceRows device_rows(const ggml_tensor * tensor) {
    return { static_cast<float *>(tensor->data), tensor->ne[0], ggml_nrows(tensor), int64_t(tensor->nb[1]) };
}

// A copy to or from a device takes about as long as this many rows of 4096 floats.
constexpr int64_t k_gap = 8;

// From the first byte of the first of `n_rows` rows to the last byte of the last.
size_t span_of(const ggml_tensor * tensor, int64_t n_rows) {
    return size_t(n_rows - 1) * tensor->nb[1] + size_t(tensor->ne[0]) * sizeof(float);
}

// The rows that check or skip, in runs: transfer(first, n). Fewer than k_gap other rows between two such travel along.
template <typename Transfer> void for_runs(const RowTasks & tasks, Transfer transfer) {
    int64_t first = -1, last = -1;
    for (int64_t r = 0; r < tasks.n_rows; ++r) {
        if (!tasks.checks[size_t(r)] && !tasks.skips[size_t(r)]) {
            continue;
        }
        if (first >= 0 && r - last > k_gap) {
            transfer(first, last - first + 1);
            first = -1;
        }
        first = first < 0 ? r : first;
        last  = r;
    }
    if (first >= 0) {
        transfer(first, last - first + 1);
    }
}

}  // namespace

const float * Rows::after_add(const ggml_tensor * h, ggml_tensor * out, const RowTasks & tasks) {
    if (RowKernels * kernels = shared_kernels(h, out)) {
        if (tasks.any_checks) {
            kernels->cosine(Pair::given, device_rows(h), device_rows(out));
        }
        if (tasks.any_skips) {
            kernels->copy_rows(device_rows(h), device_rows(out), tasks.skips.data());
        }
        return kernels->finish();
    }
    const View before = view(h, scratch_[0], tasks);
    const View after  = view(out, scratch_[1], tasks);
    const float * similarity = compare(tasks, [&](int64_t r) { return cosine(before.row(r), after.row(r), after.n); });
    if (tasks.any_skips) {
        for (int64_t r = 0; r < tasks.n_rows; ++r) {
            if (tasks.skips[size_t(r)]) {
                std::memcpy(after.row(r), before.row(r), size_t(after.n) * sizeof(float));
            }
        }
        write_back(after, out, tasks);
    }
    return similarity;
}

const float * Rows::before_add(const ggml_tensor * h, ggml_tensor * f, const RowTasks & tasks) {
    if (RowKernels * kernels = shared_kernels(h, f)) {
        if (tasks.any_checks) {
            kernels->cosine(Pair::sum, device_rows(h), device_rows(f));
        }
        if (tasks.any_skips) {
            kernels->zero_rows(device_rows(f), tasks.skips.data());
        }
        return kernels->finish();
    }
    const View branch = view(f, scratch_[1], tasks);
    const float * similarity = nullptr;
    if (tasks.any_checks) {
        const View before = view(h, scratch_[0], tasks);
        similarity = compare(tasks, [&](int64_t r) { return cosine_with_sum(before.row(r), branch.row(r), branch.n); });
    }
    zero_skipping(branch, f, tasks);
    return similarity;
}

void Rows::keep(ggml_tensor * f, const RowTasks & tasks) {
    kept_by_ = shared_kernels(f, f);
    if (kept_by_ != nullptr) {
        if (tasks.any_checks) {
            kept_on_device_ = kept_by_->keep(device_rows(f));
        }
        if (tasks.any_skips) {
            kept_by_->zero_rows(device_rows(f), tasks.skips.data());
        }
        kept_by_->finish();
        return;
    }
    const View branch = view(f, scratch_[1], tasks);
    kept_.resize(std::max(kept_.size(), size_t(branch.n * tasks.n_rows)));
    for (int64_t r = 0; r < tasks.n_rows; ++r) {
        if (tasks.checks[size_t(r)]) {
            std::memcpy(&kept_[size_t(r * branch.n)], branch.row(r), size_t(branch.n) * sizeof(float));
        }
    }
    zero_skipping(branch, f, tasks);
}

const float * Rows::after_layer(const ggml_tensor * out, const RowTasks & tasks) {
    if (kept_by_ != nullptr) {
        if (kept_by_ == shared_kernels(out, out)) {
            kept_by_->cosine(Pair::difference, device_rows(out), kept_on_device_);
            return kept_by_->finish();
        }
        kept_.resize(std::max(kept_.size(), size_t(kept_on_device_.n * kept_on_device_.n_rows)));
        for_runs(tasks, [&](int64_t first, int64_t n) {
            const DeviceRows & all = kept_on_device_;
            char *             from = reinterpret_cast<char *>(all.data) + first * all.stride;
            kept_by_->read({ reinterpret_cast<float *>(from), all.n, n, all.stride }, &kept_[size_t(first * all.n)]);
        });
        kept_by_->finish();
    }
    const View after = view(out, scratch_[0], tasks);
    return compare(tasks, [&](int64_t r) {
        return cosine_with_difference(after.row(r), &kept_[size_t(r * after.n)], after.n);
    });
}

// Kernels of the one device that both lie on, if they do.
RowKernels * Rows::shared_kernels(const ggml_tensor * a, const ggml_tensor * b) {
    if (memory_.on_host(a) || memory_.on_host(b)) {
        return nullptr;
    }
    RowKernels * kernels = memory_.kernels(a);
    return kernels == memory_.kernels(b) ? kernels : nullptr;
}

// The tensor's own rows, or `scratch`, of the same layout, filled with those that check or skip.
Rows::View Rows::view(const ggml_tensor * tensor, std::vector<float> & scratch, const RowTasks & tasks) {
    View view{ static_cast<char *>(tensor->data), tensor->ne[0], int64_t(tensor->nb[1]) };
    if (!memory_.on_host(tensor)) {
        scratch.resize(std::max(scratch.size(), span_of(tensor, tasks.n_rows) / sizeof(float)));
        view.data = reinterpret_cast<char *>(scratch.data());
        for_runs(tasks, [&](int64_t first, int64_t n) {
            memory_.read(tensor, size_t(first) * tensor->nb[1], span_of(tensor, n), view.row(first));
        });
    }
    return view;
}

// What view() gave, changed.
void Rows::write_back(const View & view, ggml_tensor * tensor, const RowTasks & tasks) {
    if (!memory_.on_host(tensor)) {
        for_runs(tasks, [&](int64_t first, int64_t n) {
            memory_.write(tensor, size_t(first) * tensor->nb[1], span_of(tensor, n), view.row(first));
        });
    }
}

void Rows::zero_skipping(const View & f, ggml_tensor * tensor, const RowTasks & tasks) {
    if (!tasks.any_skips) {
        return;
    }
    for (int64_t r = 0; r < tasks.n_rows; ++r) {
        if (tasks.skips[size_t(r)]) {
            std::memset(f.row(r), 0, size_t(f.n) * sizeof(float));
        }
    }
    write_back(f, tensor, tasks);
}

template <typename Cosine> const float * Rows::compare(const RowTasks & tasks, Cosine cosine) {
    similarity_.resize(std::max(similarity_.size(), size_t(tasks.n_rows)));
    for (int64_t r = 0; r < tasks.n_rows; ++r) {
        if (tasks.checks[size_t(r)]) {
            similarity_[size_t(r)] = cosine(r);
        }
    }
    return similarity_.data();
}

}  // namespace ffnskip
