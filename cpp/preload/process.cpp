#include "process.h"

#include "ffnskip/version.h"

#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <string>
#include <vector>

namespace ffnskip {

const Hooks *     g_hooks  = nullptr;
bool              g_linked = false;
std::atomic<bool> g_active{ false };
std::atomic<bool> g_used{ false };
std::atomic<bool> g_reached{ false };

namespace {

const char * version_of(const char * function) {
    void * found = find(function);
    return found == nullptr ? "unknown" : reinterpret_cast<const char * (*)()>(found)();
}

std::string path_of_this_library() {
    Dl_info self{};
    dladdr(reinterpret_cast<const void *>(&path_of_this_library), &self);
    return self.dli_fname;
}

// LD_PRELOAD as it was before `ffnskip run`: it may be a list, separated by spaces or colons.
void leave_ld_preload() {
    const char *      list = std::getenv("LD_PRELOAD");
    const std::string all = list == nullptr ? "" : list, ours = path_of_this_library();
    std::string       others;
    for (size_t begin = 0; begin <= all.size();) {
        const size_t      end  = std::min(all.find_first_of(" :", begin), all.size());
        const std::string name = all.substr(begin, end - begin);
        if (!name.empty() && name != ours) {
            others += (others.empty() ? "" : " ") + name;
        }
        begin = end + 1;
    }
    others.empty() ? unsetenv("LD_PRELOAD") : setenv("LD_PRELOAD", others.c_str(), 1);
}

// The structures that llama.cpp's functions take by value differ between versions, so none may pass through here: the
// program starts over without this library.
[[noreturn]] void start_without() {
    std::ifstream            file("/proc/self/cmdline", std::ios::binary);
    std::vector<std::string> words;
    for (std::string word; std::getline(file, word, '\0');) {
        words.push_back(word);
    }
    std::vector<char *> argv;
    for (std::string & word : words) {
        argv.push_back(word.data());
    }
    argv.push_back(nullptr);
    leave_ld_preload();
    execv("/proc/self/exe", argv.data());
    say("can't start over: %s", std::strerror(errno));
    std::_Exit(2);
}

bool same_version() {
    return std::strcmp(version_of("llama_version"), FFNSKIP_LLAMA_VERSION) == 0 &&
           std::strcmp(version_of("ggml_version"), FFNSKIP_GGML_VERSION) == 0;
}

const Hooks * load_overlay() {
    std::string path = path_of_this_library();
    path             = path.substr(0, path.rfind('/') + 1) + "libffnskip-overlay.so";
    void * overlay   = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (overlay == nullptr) {
        say("%s; the program runs dense", dlerror());
        return nullptr;
    }
    const auto hooks = reinterpret_cast<decltype(&ffnskip_hooks)>(dlsym(overlay, "ffnskip_hooks"));
    return hooks == nullptr ? nullptr : hooks();
}

std::string versions() {
    return std::string("built for llama.cpp " FFNSKIP_LLAMA_VERSION " (ggml " FFNSKIP_GGML_VERSION
                       "), but the program uses ") +
           version_of("llama_version") + " (ggml " + version_of("ggml_version") + "); ";
}

__attribute__((constructor)) void begin() {
    g_linked = dlsym(RTLD_NEXT, "llama_decode") != nullptr;
    if (!g_linked) {
        return;  // a shell, say, that will start a llama.cpp program
    }
    if (!same_version()) {
        say("%s%s", versions().c_str(), strict() ? "not started (--strict)" : "it runs dense");
        if (strict()) {
            std::_Exit(2);
        }
        start_without();
    }
    g_hooks = load_overlay();
    if (g_hooks == nullptr && strict()) {
        std::_Exit(2);
    }
}

__attribute__((destructor)) void end() {
    if (g_active || (g_hooks != nullptr && g_used && std::getenv("FFNSKIP_STATS_FILE") != nullptr)) {
        g_hooks->report();
        return;
    }
    if (g_used && g_hooks != nullptr && std::getenv("FFNSKIP_DRAFT_ONLY") != nullptr) {
        say("the program loaded no draft model; nothing was skipped (--draft-only)");
    }
    if (g_used || find("llama_decode") == nullptr) {
        return;
    }
    if (g_linked) {
        say("the program made no context of a shared libllama; nothing was skipped");
    } else {
        say_past();
    }
}

}  // namespace

void say(const char * format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::fputs("ffnskip: ", stderr);
    std::vfprintf(stderr, format, arguments);
    std::fputc('\n', stderr);
    va_end(arguments);
}

void * find(const char * name) {
    if (void * next = dlsym(RTLD_NEXT, name)) {
        return next;
    }
    for (const char * library : { "libllama.so.0", "libllama.so" }) {
        if (void * handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD)) {
            return dlsym(handle, name);
        }
    }
    return nullptr;
}

bool strict() {
    return std::getenv("FFNSKIP_STRICT") != nullptr;
}

void stop() {
    std::fflush(nullptr);
    std::_Exit(2);
}

void begin_late() {
    static std::once_flag once;
    std::call_once(once, [] {
        if (g_linked) {
            return;
        }
        if (!same_version()) {  // and it is too late to start over
            say("%sstopped; start it without ffnskip", versions().c_str());
            stop();
        }
        for (const char * library : { "libllama.so.0", "libllama.so" }) {
            dlopen(library, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL);  // where the overlay finds it
        }
        g_hooks = load_overlay();
        if (g_hooks == nullptr && strict()) {
            stop();
        }
    });
    g_reached = true;
}

}  // namespace ffnskip
