#include "machine.h"

#include "errors.h"

#include <ggml-backend.h>

#ifdef __APPLE__
#include <mach-o/dyld.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

namespace app {
namespace {

// Linux: what can be had without swapping, files that are only cached included; 0 elsewhere.
uint64_t available_main_memory() {
    std::ifstream file("/proc/meminfo");
    for (std::string name; file >> name;) {
        uint64_t kib = 0;
        if (name == "MemAvailable:" && file >> kib) {
            return kib * 1024;
        }
        file.ignore(256, '\n');
    }
    return 0;
}

// Memory that can still be had, on all devices together, in bytes.
uint64_t free_memory() {
    uint64_t sum = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        size_t                   free   = 0;
        size_t                   total  = 0;
        ggml_backend_dev_memory(device, &free, &total);
        const uint64_t main_memory =
            ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU ? available_main_memory() : 0;
        sum += main_memory != 0 ? main_memory : free;
    }
    return sum;
}

// Bytes that the keys and values of `n_ctx` tokens take at least; 0 where that can't be told from the public API.
uint64_t cache_bytes(const llama_model * model, const llama_context_params & params) {
    if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model) || llama_model_n_swa(model) > 0) {
        return 0;
    }
    const int64_t n_head   = std::max(1, llama_model_n_head(model));
    const int64_t n_embd   = llama_model_n_embd(model) / n_head * llama_model_n_head_kv(model);
    const double  n_values = double(params.n_ctx) * double(n_embd) * llama_model_n_layer(model);
    const auto    size     = [](ggml_type type) { return double(ggml_type_size(type)) / double(ggml_blck_size(type)); };
    return uint64_t(n_values * (size(params.type_k) + size(params.type_v)));
}

std::filesystem::path executable() {
#ifdef __APPLE__
    char     path[4096];
    uint32_t size = sizeof(path);
    return _NSGetExecutablePath(path, &size) == 0 ? std::filesystem::canonical(path) : "";
#else
    return std::filesystem::read_symlink("/proc/self/exe");
#endif
}

}  // namespace

int32_t physical_cores() {
    std::set<std::string> cores;
    for (int cpu = 0;; ++cpu) {
        std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
        std::string   siblings;
        if (!std::getline(file, siblings)) {
            break;
        }
        cores.insert(siblings);
    }
    const int usable = std::max(1, int(std::thread::hardware_concurrency()));
    return cores.empty() ? usable : std::min(usable, int(cores.size()));
}

void require_memory(const llama_model * model, const llama_context_params & params) {
    const uint64_t needed = cache_bytes(model, params);
    const uint64_t free   = free_memory();
    if (needed > free) {
        char text[128];
        std::snprintf(text, sizeof(text), "%u tokens of context need %.1f GiB of memory, %.1f GiB are free; give fewer",
                      params.n_ctx, double(needed) / double(1 << 30), double(free) / double(1 << 30));
        throw BadInput(std::string("--ctx-size: ") + text);
    }
}

std::string demo_model() {
    const char *                path  = std::getenv("FFNSKIP_DEMO_MODEL");
    const std::filesystem::path model = path != nullptr ? path : executable().parent_path() / FFNSKIP_DEMO_MODEL;
    std::error_code             ignored;
    if (!std::filesystem::exists(model, ignored)) {
        throw BadInput("the demo model is not at '" + model.lexically_normal().string() +
                       "'; give a model with -m FILE, or its place in the environment variable FFNSKIP_DEMO_MODEL");
    }
    return model.lexically_normal().string();
}

}  // namespace app
