#include "trace_file.h"

#include "errors.h"
#include "text.h"

#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace app {
namespace {

std::string quoted(const std::string & text) {
    std::string out = "\"";
    for (const char c : text) {
        out += c;
        if (c == '"') {
            out += c;
        }
    }
    return out + '"';
}

// As many digits as tell one float from the next.
std::string number(float value) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.9g", double(value));
    return std::isnan(value) ? "" : text;
}

std::string header(int n_layer) {
    std::string line = "token,text";
    for (const char * name : { ",similarity_", ",skipped_" }) {
        for (int il = 0; il < n_layer; ++il) {
            line += name + std::to_string(il);
        }
    }
    return line;
}

std::string row(const ffnskip::Trace & trace, size_t i, const std::string & piece) {
    const size_t n_layer = size_t(trace.n_layer);
    std::string  line    = std::to_string(i) + ',' + quoted(replace_invalid_utf8(piece));
    for (size_t il = 0; il < n_layer; ++il) {
        line += ',' + number(trace.similarity[i * n_layer + il]);
    }
    for (size_t il = 0; il < n_layer; ++il) {
        line += trace.skipped[i * n_layer + il] != 0 ? ",1" : ",0";
    }
    return line;
}

}  // namespace

TraceFile::TraceFile(std::string path) : path_(std::move(path)), unfinished_(path_ + "." + std::to_string(getpid())) {
    if (std::filesystem::is_directory(path_)) {
        throw BadInput("--trace: '" + path_ + "' is a directory, not a file");
    }
    if (!std::ofstream(unfinished_)) {
        throw BadInput("--trace: '" + path_ + "' can't be written: " + std::strerror(errno));
    }
    std::remove(unfinished_.c_str());  // until there is something to write
}

void TraceFile::write(const ffnskip::Trace & trace, const Tokens & tokens, const Model & model) const {
    if (size_t(trace.n_tokens) != tokens.size()) {
        throw std::logic_error("the trace has " + std::to_string(trace.n_tokens) + " rows for " +
                               std::to_string(tokens.size()) + " tokens");
    }
    std::ofstream file(unfinished_, std::ios::binary);
    file << header(trace.n_layer) << '\n';
    for (size_t i = 0; i < tokens.size(); ++i) {
        file << row(trace, i, model.piece(tokens[i], true)) << '\n';
    }
    file.close();
    if (!file || std::rename(unfinished_.c_str(), path_.c_str()) != 0) {
        const std::string reason = std::strerror(errno);
        std::remove(unfinished_.c_str());
        throw std::runtime_error("--trace: '" + path_ + "' can't be written: " + reason);
    }
}

}  // namespace app
