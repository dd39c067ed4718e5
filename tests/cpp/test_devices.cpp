// Property: rows in buffers of ggml's real devices are compared and put back as rows on the host are, by the kernels
// where the device is one of CUDA and this build has them. Needs a device that is no CPU; says so by 77 where there is
// none.
#include "comparison.h"
#include "expect.h"
#include "similarity.h"

#include <ggml-backend.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace ffnskip;

namespace {

constexpr int64_t k_n = 256, k_rows = 3;

using Values = std::vector<float>;

// [k_rows, k_n] in a buffer of the device.
class Matrix {
public:
    Matrix(ggml_backend_dev_t device, const Values & values)
        : ctx_(ggml_init({ ggml_tensor_overhead() * 2, nullptr, true })) {
        tensor  = ggml_new_tensor_2d(ctx_, GGML_TYPE_F32, k_n, k_rows);
        buffer_ = ggml_backend_alloc_ctx_tensors_from_buft(ctx_, ggml_backend_dev_buffer_type(device));
        ggml_backend_tensor_set(tensor, values.data(), 0, values.size() * sizeof(float));
    }
    ~Matrix() {
        ggml_backend_buffer_free(buffer_);
        ggml_free(ctx_);
    }
    Matrix(const Matrix &)             = delete;
    Matrix & operator=(const Matrix &) = delete;

    Values get() const {
        Values values(size_t(k_n * k_rows));
        ggml_backend_tensor_get(tensor, values.data(), 0, values.size() * sizeof(float));
        return values;
    }
    ggml_tensor * tensor;

private:
    ggml_context *        ctx_;
    ggml_backend_buffer_t buffer_;
};

Values random_rows(uint32_t seed) {
    std::mt19937                    random(seed);
    std::normal_distribution<float> normal;
    Values                          values(size_t(k_n * k_rows));
    for (float & value : values) {
        value = normal(random);
    }
    return values;
}

void check_on(ggml_backend_dev_t device_h, ggml_backend_dev_t device_out) {
    const std::string what = std::string(ggml_backend_dev_name(device_h)) + " and " + ggml_backend_dev_name(device_out);
    const Values      h = random_rows(1), f = random_rows(2);
    Values            sum = h;
    for (size_t i = 0; i < sum.size(); ++i) {
        sum[i] += f[i];
    }
    RowTasks tasks;
    tasks.checks     = { 1, 0, 1 };
    tasks.skips      = { 0, 1, 0 };
    tasks.n_rows     = k_rows;
    tasks.any_checks = tasks.any_skips = true;

    const auto   buffers = ggml_buffers();
    Comparison   comparison(*buffers);
    const Matrix before(device_h, h), after(device_out, sum), added(device_out, f), kept(device_out, f);
    Values       expected = f;
    std::fill_n(&expected[k_n], k_n, 0.0f);

    const auto near = [&](const float *  similarity, float (*cosine)(const float *, const float *, int64_t),
                          const Values & a) {
        for (const size_t r : { size_t(0), size_t(2) }) {
            expect(std::fabs(similarity[r] - cosine(&a[r * k_n], &f[r * k_n], k_n)) < 2e-6f, what + ": similarity");
        }
    };
    near(comparison.before_add(before.tensor, added.tensor, tasks), cosine<Pair::sum>, h);
    comparison.keep(kept.tensor, tasks);
    near(comparison.after_add(after.tensor, tasks), cosine<Pair::difference>, sum);
    expect(added.get() == expected && kept.get() == expected, what + ": f has left the row that skips");
    expect(before.get() == h && after.get() == sum, what + ": nothing else has changed");

#ifdef FFNSKIP_CUDA
    if (std::strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(device_out)), "CUDA") == 0) {
        expect(buffers->kernels(after.tensor) != nullptr, what + ": CUDA devices have kernels");
    }
#endif
}

}  // namespace

int main() {
    ggml_backend_load_all();
    std::vector<ggml_backend_dev_t> devices;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto               type   = ggml_backend_dev_type(device);
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            devices.push_back(device);
        }
    }
    const size_t n_gpus = devices.size();
    devices.push_back(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    for (const ggml_backend_dev_t device_h : devices) {
        for (const ggml_backend_dev_t device_out : devices) {
            check_on(device_h, device_out);
        }
    }
    const int status = result();
    if (status == 0 && n_gpus == 0) {
        std::printf("on the host alone: there is no GPU here\n");
        return 77;
    }
    return status;
}
