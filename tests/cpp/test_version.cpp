// Property: a program on another llama.cpp than the one ffnskip was built for gets no controller attached, and is told why.
//
// This program is on one: it has a llama_version() of its own, which stands before that of libllama.
#include "expect.h"

#include <ffnskip/ffnskip.h>

#include <string>

const char * llama_version() {
    return "0.4.0";
}

int main() {
    expect(std::string(ffnskip::version()) == FFNSKIP_VERSION, "the library's version is that of its headers");

    ffnskip::Controller  controller;
    llama_context_params params = llama_context_default_params();
    std::string          said;
    try {
        controller.attach(params);
    } catch (const ffnskip::Unsupported & unsupported) {
        said = unsupported.what();
    }
    for (const std::string part :
         { "built for llama.cpp " FFNSKIP_LLAMA_VERSION " (ggml " FFNSKIP_GGML_VERSION ")",
           "llama.cpp 0.4.0 (ggml " FFNSKIP_GGML_VERSION ") is loaded", "cmake --fresh", "pip install" }) {
        expect(said.find(part) != std::string::npos, "says " + part + ": " + said);
    }
    expect(params.cb_eval == nullptr, "nothing is attached");
    return result();
}
