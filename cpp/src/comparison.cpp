#include "comparison.h"

#include "similarity.h"

#include <algorithm>

namespace ffnskip {
namespace {

Rows rows_of(const ggml_tensor * tensor) {
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

const float * Comparison::before_add(const ggml_tensor * h, ggml_tensor * f, const RowTasks & tasks) {
    if (RowKernels * kernels = shared_kernels(h, f)) {
        if (tasks.any_checks) {
            kernels->cosine(Pair::sum, rows_of(h), rows_of(f));
        }
        if (tasks.any_skips) {
            kernels->zero(rows_of(f), tasks.skips.data());
        }
        return kernels->finish();
    }
    const Rows branch = on_host(f, scratch_[1], tasks);
    if (tasks.any_checks) {
        compare<Pair::sum>(on_host(h, scratch_[0], tasks), branch, tasks);
    }
    zero_skipping(branch, f, tasks);
    return similarity_.data();
}

void Comparison::keep(ggml_tensor * f, const RowTasks & tasks) {
    kept_by_ = shared_kernels(f, f);
    if (kept_by_ != nullptr) {
        if (tasks.any_checks) {
            kept_ = kept_by_->keep(rows_of(f));
        }
        if (tasks.any_skips) {
            kept_by_->zero(rows_of(f), tasks.skips.data());
        }
        kept_by_->finish();
        return;
    }
    kept_ = copy(f, kept_on_host_, tasks);
    zero_skipping(buffers_.on_host(f) ? rows_of(f) : kept_, f, tasks);
}

const float * Comparison::after_add(const ggml_tensor * out, const RowTasks & tasks) {
    if (kept_by_ != nullptr && kept_by_ == shared_kernels(out, out)) {
        kept_by_->cosine(Pair::difference, rows_of(out), kept_);
        return kept_by_->finish();
    }
    if (kept_by_ != nullptr) {
        kept_on_host_.resize(std::max(kept_on_host_.size(), size_t(kept_.n * kept_.n_rows)));
        const Rows host{ kept_on_host_.data(), kept_.n, kept_.n_rows, kept_.n * int64_t(sizeof(float)) };
        for_runs(tasks, [&](int64_t first, int64_t n) {
            kept_by_->read({ kept_.row(first), kept_.n, n, kept_.stride }, host.row(first));
        });
        kept_by_->finish();
        kept_ = host;
    }
    return compare<Pair::difference>(on_host(out, scratch_[0], tasks), kept_, tasks);
}

// Kernels of the one device that both lie on, if they do.
RowKernels * Comparison::shared_kernels(const ggml_tensor * a, const ggml_tensor * b) {
    if (buffers_.on_host(a) || buffers_.on_host(b)) {
        return nullptr;
    }
    RowKernels * kernels = buffers_.kernels(a);
    return kernels == buffers_.kernels(b) ? kernels : nullptr;
}

// The rows that check or skip, in `scratch`, which gets the layout of the tensor.
Rows Comparison::copy(const ggml_tensor * tensor, std::vector<float> & scratch, const RowTasks & tasks) {
    scratch.resize(std::max(scratch.size(), span_of(tensor, tasks.n_rows) / sizeof(float)));
    Rows rows = rows_of(tensor);
    rows.data = scratch.data();
    for_runs(tasks, [&](int64_t first, int64_t n) {
        buffers_.read(tensor, size_t(first) * tensor->nb[1], span_of(tensor, n), rows.row(first));
    });
    return rows;
}

// The same, but the tensor's own rows where the host can use them.
Rows Comparison::on_host(const ggml_tensor * tensor, std::vector<float> & scratch, const RowTasks & tasks) {
    return buffers_.on_host(tensor) ? rows_of(tensor) : copy(tensor, scratch, tasks);
}

// `f` is what on_host() gave of the tensor.
void Comparison::zero_skipping(const Rows & f, ggml_tensor * tensor, const RowTasks & tasks) {
    if (!tasks.any_skips) {
        return;
    }
    for (int64_t r = 0; r < tasks.n_rows; ++r) {
        if (tasks.skips[size_t(r)]) {
            std::fill_n(f.row(r), f.n, 0.0f);
        }
    }
    if (!buffers_.on_host(tensor)) {
        for_runs(tasks, [&](int64_t first, int64_t n) {
            buffers_.write(tensor, size_t(first) * tensor->nb[1], span_of(tensor, n), f.row(first));
        });
    }
}

template <Pair pair> const float * Comparison::compare(const Rows & a, const Rows & b, const RowTasks & tasks) {
    similarity_.resize(std::max(similarity_.size(), size_t(tasks.n_rows)));
    for (int64_t r = 0; r < tasks.n_rows; ++r) {
        if (tasks.checks[size_t(r)]) {
            similarity_[size_t(r)] = cosine<pair>(a.row(r), b.row(r), a.n);
        }
    }
    return similarity_.data();
}

}  // namespace ffnskip
