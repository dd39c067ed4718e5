#include "rows.h"

#include "similarity.h"

#include <algorithm>
#include <cstring>

namespace ffnskip {
namespace {

DeviceRows device_rows(const ggml_tensor * tensor) {
    return { static_cast<float *>(tensor->data), tensor->ne[0], ggml_nrows(tensor), int64_t(tensor->nb[1]) };
}

// From the first byte of the first row to the last byte of the last.
size_t span_of(const ggml_tensor * tensor) {
    return size_t(ggml_nrows(tensor) - 1) * tensor->nb[1] + size_t(tensor->ne[0]) * sizeof(float);
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
    const View before = view(h, scratch_[0]);
    const View after  = view(out, scratch_[1]);
    const float * similarity = compare(tasks, [&](int64_t r) { return cosine(before.row(r), after.row(r), after.n); });
    if (tasks.any_skips) {
        for (int64_t r = 0; r < tasks.n_rows; ++r) {
            if (tasks.skips[size_t(r)]) {
                std::memcpy(after.row(r), before.row(r), size_t(after.n) * sizeof(float));
            }
        }
        write_back(after, out);
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
    const View branch = view(f, scratch_[1]);
    const float * similarity = nullptr;
    if (tasks.any_checks) {
        const View before = view(h, scratch_[0]);
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
    const View branch = view(f, scratch_[1]);
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
        kept_by_->read(kept_on_device_, kept_.data());
        kept_by_->finish();
    }
    const View after = view(out, scratch_[0]);
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

// The tensor's own rows, or `scratch` filled with all of them.
Rows::View Rows::view(const ggml_tensor * tensor, std::vector<float> & scratch) {
    View view{ static_cast<char *>(tensor->data), tensor->ne[0], int64_t(tensor->nb[1]) };
    if (!memory_.on_host(tensor)) {
        const size_t size = span_of(tensor);
        scratch.resize(std::max(scratch.size(), size / sizeof(float)));
        memory_.read(tensor, 0, size, scratch.data());
        view.data = reinterpret_cast<char *>(scratch.data());
    }
    return view;
}

void Rows::write_back(const View & view, ggml_tensor * tensor) {
    if (!memory_.on_host(tensor)) {
        memory_.write(tensor, 0, span_of(tensor), view.data);
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
    write_back(f, tensor);
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
