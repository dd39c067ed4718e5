#include "ffnskip/version.h"

#include "ffnskip/errors.h"

#include <ggml.h>
#include <llama.h>

#include <dlfcn.h>

#include <cstring>

namespace ffnskip {
namespace {

std::string path_of_libllama() {
    Dl_info info{};
    void *  found = dlsym(RTLD_DEFAULT, "llama_decode");
    return found != nullptr && dladdr(found, &info) != 0 ? std::string(", from ") + info.dli_fname : "";
}

// Builds of a version under development share its name. ggml tells where in a tensor its name is, which lies behind all else.
bool same_layout() {
    ggml_context *      ctx    = ggml_init({ 2 * ggml_tensor_overhead(), nullptr, true });
    const ggml_tensor * tensor = ggml_new_tensor_1d(ctx, GGML_TYPE_F32, 1);
    const bool          same   = ggml_get_name(tensor) == tensor->name;
    ggml_free(ctx);
    return same;
}

std::string find_mismatch() {
    const std::string built = "built for llama.cpp " FFNSKIP_LLAMA_VERSION " (ggml " FFNSKIP_GGML_VERSION ")";
    const char *      llama = loaded_llama_version();
    const char *      ggml  = ggml_version();
    if (std::strcmp(llama, FFNSKIP_LLAMA_VERSION) != 0 || std::strcmp(ggml, FFNSKIP_GGML_VERSION) != 0) {
        return built + ", but llama.cpp " + llama + " (ggml " + ggml + ") is loaded" + path_of_libllama();
    }
    return same_layout() ? "" : built + ", but another state of that version is loaded" + path_of_libllama();
}

}  // namespace

const char * version() {
    return FFNSKIP_VERSION;
}

const char * loaded_llama_version() {
#ifdef FFNSKIP_HAVE_LLAMA_VERSION
    // An older shared libllama has no such function, and calling it would end the process.
    if (dlsym(RTLD_DEFAULT, "llama_decode") == nullptr || dlsym(RTLD_DEFAULT, "llama_version") != nullptr) {
        return llama_version();
    }
#endif
    return "unknown";
}

std::string llama_mismatch() {
    static const std::string mismatch = find_mismatch();
    return mismatch;
}

void require_llama_version() {
    const std::string mismatch = llama_mismatch();
    if (!mismatch.empty()) {
        throw Unsupported("ffnskip was " + mismatch +
                          ". Run it with the llama.cpp it was built for, or build it again for this "
                          "one: cmake --fresh -B build && cmake --build build; Python: "
                          "pip install --force-reinstall --no-build-isolation --no-deps .");
    }
}

}  // namespace ffnskip
