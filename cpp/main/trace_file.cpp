#include "trace_file.h"

#include "errors.h"
#include "part_file.h"
#include "text.h"

#include <sys/stat.h>
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

template <typename Stat> bool is_same(const struct stat & file, Stat stat_other) {
    struct stat other;
    return stat_other(&other) == 0 && other.st_dev == file.st_dev && other.st_ino == file.st_ino;
}

bool is_stream(const struct stat & file, int stream) {
    return is_same(file, [&](struct stat * of) { return fstat(stream, of); });
}

}  // namespace

TraceFile::TraceFile(const std::string & path, const std::vector<std::string> & inputs) {
    const std::string what = "--trace: '" + path + "'";
    path_                  = path;
    struct stat status     = {};
    const bool  exists     = stat(path.c_str(), &status) == 0;
    if (exists && S_ISDIR(status.st_mode)) {
        throw BadInput(what + " is a directory, not a file");
    }
    for (const std::string & input : inputs) {
        if (exists && is_same(status, [&](struct stat * of) { return stat(input.c_str(), of); })) {
            throw BadInput(what + " is '" + input + "', which is read; give another name");
        }
    }
    if (exists && S_ISREG(status.st_mode) && is_stream(status, STDIN_FILENO)) {
        throw BadInput(what + " is what standard input comes from; give another name");
    }
    if (exists && access(path_.c_str(), W_OK) != 0) {
        throw BadInput(what + " can't be written: " + std::strerror(errno));
    }
    if (exists && (!S_ISREG(status.st_mode) || is_stream(status, STDOUT_FILENO) || is_stream(status, STDERR_FILENO))) {
        return;
    }
    const std::filesystem::path file = ffnskip::behind_links(path);
    path_                            = file.string();
    part_                            = ffnskip::begin_part(file).string();
    if (!std::ofstream(part_)) {
        throw BadInput(what + " can't be written: " + std::strerror(errno));
    }
    std::remove(part_.c_str());  // until there is something to write
}

void TraceFile::write(const ffnskip::Trace & trace, const Tokens & tokens, const Model & model) const {
    if (size_t(trace.n_tokens) != tokens.size()) {
        throw std::logic_error("the trace has " + std::to_string(trace.n_tokens) + " rows for " +
                               std::to_string(tokens.size()) + " tokens");
    }
    std::ofstream file(part_.empty() ? path_ : part_, std::ios::binary | std::ios::app);
    file << header(trace.n_layer) << '\n';
    for (size_t i = 0; i < tokens.size(); ++i) {
        file << row(trace, i, model.piece(tokens[i], true)) << '\n';
    }
    file.close();
    if (!file || (!part_.empty() && !ffnskip::end_part(part_, path_))) {
        const std::string reason = std::strerror(errno);
        if (!part_.empty()) {
            std::remove(part_.c_str());
        }
        throw std::runtime_error("--trace: '" + path_ + "' can't be written: " + reason);
    }
}

}  // namespace app
