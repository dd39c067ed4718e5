#include "device_check.h"

#include "graph_edit.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace ffnskip {
namespace {

constexpr int64_t k_n = 256;

struct Free {
    void operator()(ggml_context * ctx) const { ggml_free(ctx); }
    void operator()(ggml_backend_buffer_t buffer) const { ggml_backend_buffer_free(buffer); }
    void operator()(ggml_backend_t backend) const { ggml_backend_free(backend); }
};

void set(ggml_tensor * tensor, float value) {
    const std::vector<float> values(size_t(k_n), value);
    ggml_backend_tensor_set(tensor, values.data(), 0, values.size() * sizeof(float));
}

bool holds(const ggml_tensor * tensor, float value) {
    std::vector<float> values(static_cast<size_t>(k_n));
    ggml_backend_tensor_get(tensor, values.data(), 0, values.size() * sizeof(float));
    return std::all_of(values.begin(), values.end(), [&](float found) { return found == value; });
}

std::string try_device(ggml_backend_dev_t device) {
    const std::string                         name = "device '" + std::string(ggml_backend_dev_name(device)) + "' ";
    const std::unique_ptr<ggml_backend, Free> backend(ggml_backend_dev_init(device, nullptr));
    if (backend == nullptr) {
        return name + "can't be opened a second time, to try whether it passes over what is left out";
    }
    // A thread of our own is enough for two nodes, and leaves the program without threads where it had none.
    if (void * found =
            ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads")) {
        reinterpret_cast<ggml_backend_set_n_threads_t>(found)(backend.get(), 1);
    }
    const std::string fault = edits_fault(ggml_backend_dev_buffer_type(device), [&](ggml_cgraph * graph) {
        for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
            if (!ggml_backend_dev_supports_op(device, ggml_graph_node(graph, i))) {
                return false;
            }
        }
        return ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS;
    });
    return fault.empty() ? fault : name + fault;
}

}  // namespace

std::string edits_fault(ggml_backend_buffer_type_t memory, bool (*compute)(void * data, ggml_cgraph * graph),
                        void *                     data) {
    constexpr float k_h = 2.0f, k_f = 3.0f, k_before = 7.0f;

    const size_t                              size = 4 * ggml_tensor_overhead() + ggml_graph_overhead();
    const std::unique_ptr<ggml_context, Free> ctx(ggml_init({ size, nullptr, true }));
    ggml_tensor *                             h     = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, k_n);
    ggml_tensor *                             f     = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, k_n);
    ggml_tensor *                             body  = ggml_add(ctx.get(), h, f);
    ggml_tensor *                             add   = ggml_add(ctx.get(), f, h);
    ggml_cgraph *                             graph = ggml_new_graph(ctx.get());
    ggml_build_forward_expand(graph, body);
    ggml_build_forward_expand(graph, add);
    const std::unique_ptr<ggml_backend_buffer, Free> buffer(
        ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), memory));
    if (buffer == nullptr) {
        return "has no memory left to try whether it passes over what is left out";
    }
    set(h, k_h);
    set(f, k_f);

    // In full, edited, and in full again: what a backend keeps of the graph must not outlive a change.
    for (const bool edited : { false, true, false }) {
        set(body, k_before);
        set(add, k_before);
        restore(body);
        restore(add);
        if (edited) {
            leave_out(body);
            pass_h(add, 1);
        }
        if (!compute(data, graph)) {
            return edited ? "can't copy the residual in place of adding to it" : "can't add";
        }
        if (!holds(body, edited ? k_before : k_h + k_f)) {
            return edited ? "computes what is left out" : "does not compute what was left out before";
        }
        if (!holds(add, edited ? k_h : k_h + k_f)) {
            return edited ? "does not copy the residual in place of adding to it"
                          : "does not add where it copied before";
        }
    }
    return "";
}

const std::string & edits_fault(ggml_backend_dev_t device) {
    static std::mutex                                  mutex;
    static std::map<ggml_backend_dev_t, std::string> & known = *new std::map<ggml_backend_dev_t, std::string>;

    const std::lock_guard<std::mutex> lock(mutex);
    const auto                        found = known.find(device);
    if (found != known.end()) {
        return found->second;
    }
    return known[device] = device == nullptr ? "its memory is of no device that could be tried" : try_device(device);
}

ggml_backend_dev_t computing_device(ggml_backend_buffer_t buffer) {
    return ggml_backend_buffer_is_host(buffer) ? ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)
                                               : ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer));
}

}  // namespace ffnskip
