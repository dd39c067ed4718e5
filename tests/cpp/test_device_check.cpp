// Property: a device that computes what is left out, or does not hand on the residual, is found out; one that does both is not.
//
// The devices at fault are made up: each computes on the CPU what such a backend would make of the graph.
#include "device_check.h"
#include "expect.h"

#include <ggml-backend.h>

#include <functional>
#include <memory>
#include <string>

using namespace ffnskip;

namespace {

using NodeChange = std::function<void(ggml_tensor * node, int n_computed)>;

// What is found of a device that takes the nodes for what `misread` makes of them.
std::string fault_of(const NodeChange & misread) {
    const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const std::unique_ptr<ggml_backend, void (*)(ggml_backend_t)> backend(ggml_backend_dev_init(cpu, nullptr),
                                                                          ggml_backend_free);
    // One thread: the thread sanitizer does not see how OpenMP's wait for each other.
    void * const set_n_threads =
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_set_n_threads");
    reinterpret_cast<ggml_backend_set_n_threads_t>(set_n_threads)(backend.get(), 1);
    int n_computed = 0;
    return edits_fault(ggml_backend_dev_buffer_type(cpu), [&](ggml_cgraph * graph) {
        ggml_tensor *     nodes[] = { ggml_graph_node(graph, 0), ggml_graph_node(graph, 1) };
        const ggml_tensor kept[]  = { *nodes[0], *nodes[1] };
        for (ggml_tensor * node : nodes) {
            misread(node, n_computed);
        }
        ++n_computed;
        const bool done = ggml_backend_graph_compute(backend.get(), graph) == GGML_STATUS_SUCCESS;
        *nodes[0]       = kept[0];
        *nodes[1]       = kept[1];
        return done;
    });
}

bool is_left_out(const ggml_tensor * node) {
    return (node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0;
}

}  // namespace

int main() {
    expect(fault_of([](ggml_tensor *, int) {}).empty(), "a device that does as it is told has no fault");

    const auto flag_ignored = [](ggml_tensor * node, int) { node->flags |= GGML_TENSOR_FLAG_COMPUTE; };
    expect(fault_of(flag_ignored) == "computes what is left out", "a device that ignores the flag");

    const auto copy_unknown = [](ggml_tensor * node, int) {
        if (node->op == GGML_OP_CONT) {
            node->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
        }
    };
    expect(fault_of(copy_unknown) == "does not copy the residual in place of adding to it",
           "a device that skips what it does not know");

    const auto still_adds = [](ggml_tensor * node, int) { node->op = GGML_OP_ADD; };
    expect(fault_of(still_adds) == "does not copy the residual in place of adding to it",
           "a device that keeps the operation it was built with");

    bool       left_out_once = false;
    const auto stays         = [&](ggml_tensor * node, int n_computed) {
        left_out_once = left_out_once || is_left_out(node);
        if (n_computed == 2 && left_out_once && node->src[0] != nullptr && node->op == GGML_OP_ADD) {
            node->flags &= ~GGML_TENSOR_FLAG_COMPUTE;
        }
    };
    expect(fault_of(stays) == "does not compute what was left out before",
           "a device that keeps the graph of the time before");

    expect(edits_fault(ggml_backend_dev_buffer_type(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)),
                       [](ggml_cgraph *) { return false; }) == "can't add",
           "a device that fails");

    // Of this machine: each is tried once, and what was found is kept.
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto               type   = ggml_backend_dev_type(device);
        if (type == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
            continue;  // computes matrix products in the CPU's memory, and no sums
        }
        expect(edits_fault(device).empty(),
               std::string(ggml_backend_dev_name(device)) + " honours the edits: " + edits_fault(device));
        expect(&edits_fault(device) == &edits_fault(device), "a device is tried once");
    }
    expect(!edits_fault(ggml_backend_dev_t(nullptr)).empty(), "memory of no device is refused");
    return result();
}
