#include "log.h"

#include <llama.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace app {
namespace {

bool        g_verbose = false;
std::string g_error;
std::string g_what;  // before the message of an abort
int         g_status = 1;

void on_abort(const char * message) {
    const std::string text = message;  // "/folder/file.cpp:123: GGML_ASSERT(...) failed"
    const size_t      file = text.rfind('/', text.find(": ")) + 1;
    std::fprintf(stderr, "ffnskip-main: %s: libllama gives up: %s\n", g_what.c_str(), text.c_str() + file);
    std::_Exit(g_status);
}

void on_log(ggml_log_level level, const char * text, void *) {
    if (g_verbose) {
        std::fputs(text, stderr);
    }
    if (level == GGML_LOG_LEVEL_ERROR && g_error.empty()) {
        g_error = text;
    }
}

}  // namespace

void keep_log(bool verbose) {
    g_verbose = verbose;
    llama_log_set(on_log, nullptr);
}

std::string take_error() {
    std::string line;
    line.swap(g_error);
    line.erase(std::min(line.find('\n'), line.size()));
    const size_t colon = line.find(": ");
    return colon != std::string::npos && line.find(' ') > colon ? line.substr(colon + 2) : line;
}

void explain_aborts(const std::string & what, int status) {
    g_what   = what;
    g_status = status;
    ggml_set_abort_callback(on_abort);
}

}  // namespace app
