#include "trace_file.h"

#include "errors.h"
#include "output_file.h"
#include "tensor_names.h"
#include "text.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <stdexcept>
#include <system_error>

namespace app {
namespace {

std::string quoted(const std::string & text) {
    std::string out = "\"";
    for (const char c : text) {
        out += c == '\0' ? std::string("\xEF\xBF\xBD") : std::string(c == '"' ? 2 : 1, c);  // CSV has no NUL
    }
    return out + '"';
}

// As many digits as tell one float from the next.
std::string number(float value) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.9g", double(value));
    return std::isnan(value) ? "" : text;
}

bool leaves_attention_out(const ffnskip::Trace & trace) {
    return std::find(trace.attention_skipped.begin(), trace.attention_skipped.end(), 1) !=
           trace.attention_skipped.end();
}

std::string header(const ffnskip::Trace & trace, bool attention) {
    std::vector<std::string> names = { ",similarity_", ",skipped_" };
    if (attention) {
        names.push_back(",attention_skipped_");
    }
    if (!trace.kept.empty()) {
        for (const char * kind : ffnskip::k_input_kind_names) {
            names.push_back(",kept_" + std::string(kind) + '_');
        }
    }
    std::string line = "token,text";
    for (const std::string & name : names) {
        for (int il = 0; il < trace.n_layer; ++il) {
            line += name + std::to_string(il);
        }
    }
    return line;
}

std::string row(const ffnskip::Trace & trace, size_t i, const std::string & piece, bool attention) {
    const size_t n_layer = size_t(trace.n_layer);
    std::string  line    = std::to_string(i) + ',' + quoted(replace_invalid_utf8(piece));
    for (size_t il = 0; il < n_layer; ++il) {
        line += ',' + number(trace.similarity[i * n_layer + il]);
    }
    for (size_t il = 0; il < n_layer; ++il) {
        line += trace.skipped[i * n_layer + il] != 0 ? ",1" : ",0";
    }
    for (size_t il = 0; attention && il < n_layer; ++il) {
        line += trace.attention_skipped[i * n_layer + il] != 0 ? ",1" : ",0";
    }
    for (size_t kind = 0; !trace.kept.empty() && kind < ffnskip::k_input_kinds; ++kind) {
        for (size_t il = 0; il < n_layer; ++il) {
            line += ',' + number(trace.kept[(i * n_layer + il) * ffnskip::k_input_kinds + kind]);
        }
    }
    return line;
}

}  // namespace

void require_trace_file(const std::string & path, const std::vector<std::string> & inputs) {
    namespace fs           = std::filesystem;
    const std::string what = "--trace: '" + path + "'";
    std::error_code   none;
    if (fs::is_directory(path, none)) {
        throw BadInput(what + " is a directory, not a file");
    }
    for (const std::string & input : inputs) {
        if (fs::equivalent(path, input, none)) {
            throw BadInput(what + " is '" + input + "', which is read; give another name");
        }
    }
    if (fs::is_regular_file(path, none) && ffnskip::is_open_on(STDIN_FILENO, path)) {
        throw BadInput(what + " is what standard input comes from; give another name");
    }
    const std::string why = ffnskip::why_not_writable(path);
    if (!why.empty()) {
        throw BadInput(what + " can't be written: " + why);
    }
}

void write_trace(const std::string & path, const ffnskip::Trace & trace, const Tokens & tokens, const Model & model) {
    if (size_t(trace.n_tokens) != tokens.size()) {
        throw std::logic_error("the trace has " + std::to_string(trace.n_tokens) + " rows for " +
                               std::to_string(tokens.size()) + " tokens");
    }
    const bool  attention = leaves_attention_out(trace);
    std::string text      = header(trace, attention) + '\n';
    for (size_t i = 0; i < tokens.size(); ++i) {
        text += row(trace, i, model.piece(tokens[i], true), attention) + '\n';
    }
    const std::string why = ffnskip::write_file(path, text);
    if (!why.empty()) {
        throw std::runtime_error("--trace: '" + path + "' can't be written: " + why);
    }
}

}  // namespace app
