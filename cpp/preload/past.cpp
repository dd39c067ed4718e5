// Programs that open libllama by themselves, where this library does not stand before its functions. What libllama itself asks
// of ggml comes by here, wherever libllama was opened from.
#include "process.h"

#include <dlfcn.h>
#include <link.h>
#include <sys/stat.h>
#include <unistd.h>

#include <ggml-backend.h>

#include <cstdlib>
#include <cstring>

namespace ffnskip {
namespace {

std::atomic<bool> g_past{ false };  // some model was loaded past here
std::atomic<bool> g_said{ false };

// ffnskip_cpp skips by itself in what it opens.
bool is_ffnskip_cpp_loaded() {
    const auto is_it = [](dl_phdr_info * info, size_t, void *) {
        return int(std::strstr(info->dlpi_name, "/ffnskip_cpp/_core.") != nullptr);
    };
    return dl_iterate_phdr(is_it, nullptr) != 0;
}

// llama_cpp sends what is said to nobody while it loads a model.
bool is_stderr_seen() {
    struct stat error{}, null{};
    return fstat(STDERR_FILENO, &error) == 0 && stat("/dev/null", &null) == 0 && error.st_rdev != null.st_rdev;
}

// ggml's own function, for a caller that may have opened its ggml where nobody else finds it.
template <typename Function> Function * of_ggml(Function *, const char * name, void * caller) {
    void *  found = dlsym(RTLD_NEXT, name);
    Dl_info library{};
    if (found == nullptr && dladdr(caller, &library) != 0) {
        void * const handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
        found               = handle == nullptr ? nullptr : dlsym(handle, name);
    }
    if (found == nullptr) {
        say("no '%s' was found; run the program without ffnskip", name);
        std::abort();
    }
    return reinterpret_cast<Function *>(found);
}

bool is_of_libllama(void * address) {
    Dl_info library{}, decode{};
    if (dladdr(address, &library) == 0) {
        return false;
    }
    void * const handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    return handle != nullptr && dladdr(dlsym(handle, "llama_decode"), &decode) != 0 &&
           decode.dli_fbase == library.dli_fbase;
}

}  // namespace

void say_past() {
    if (!g_said.exchange(true) && !is_ffnskip_cpp_loaded()) {
        say("the program opened libllama by itself, where it can't be reached; nothing is skipped%s. In Python, use "
            "ffnskip_cpp.Llama in place of llama_cpp.Llama",
            strict() ? "; stopped (--strict)" : "");
        if (strict()) {
            stop();
        }
    }
}

}  // namespace ffnskip

using namespace ffnskip;

// While it loads a model.
FFNSKIP_INTERPOSED size_t ggml_backend_dev_count() {
    void * const      caller = __builtin_return_address(0);
    static const auto found  = of_ggml(&ggml_backend_dev_count, "ggml_backend_dev_count", caller);
    if (!g_linked && !g_reached && !g_past && is_of_libllama(caller)) {
        g_past = true;
    }
    return found();
}

// While it loads one, and with every decode.
FFNSKIP_INTERPOSED int64_t ggml_time_us() {
    void * const      caller = __builtin_return_address(0);
    static const auto found  = of_ggml(&ggml_time_us, "ggml_time_us", caller);
    if (g_past && !g_said && is_stderr_seen()) {
        say_past();
    }
    return found();
}
