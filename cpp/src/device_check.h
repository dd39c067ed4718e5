// Whether a device does what graph_edit.h asks of it.
//
// A backend that looks at neither the COMPUTE flag nor an operation changed after the graph was built computes
// something else than it was told, and reports success. So each device that holds an FFN block has to show it once, on
// a graph of two nodes.
#pragma once

#include <ggml-backend.h>

#include <string>

namespace ffnskip {

// What is wrong with a device whose memory is of type `memory`: such as "computes what is left out"; empty if nothing
// is.
// `compute(data, graph)` computes a graph whose tensors are in that memory; false where it can't.
std::string edits_fault(ggml_backend_buffer_type_t memory, bool (*compute)(void * data, ggml_cgraph * graph),
                        void *                     data);

template <typename Compute> std::string edits_fault(ggml_backend_buffer_type_t memory, Compute compute) {
    return edits_fault(
        memory, [](void * data, ggml_cgraph * graph) { return (*static_cast<Compute *>(data))(graph); }, &compute);
}

// The same for a device, with its name: tried once in a process. From any thread; null is no device that can be tried.
const std::string & edits_fault(ggml_backend_dev_t device);

// The device that computes a node in this buffer. (A GPU's host memory is where the CPU computes beside it.)
ggml_backend_dev_t computing_device(ggml_backend_buffer_t buffer);

}  // namespace ffnskip
