#include "trace_file.h"

#include "errors.h"
#include "text.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace app {
namespace {

namespace fs = std::filesystem;

constexpr char k_part[] = ".part";

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

// The file that `path` leads to, there or not.
fs::path behind_links(fs::path path) {
    constexpr int k_most = 40;  // as the system follows
    for (int i = 0; i < k_most && fs::is_symlink(fs::symlink_status(path)); ++i) {
        path = path.parent_path() / fs::read_symlink(path);
    }
    return path;
}

template <typename Stat> bool is_same(const struct stat & file, Stat stat_other) {
    struct stat other;
    return stat_other(&other) == 0 && other.st_dev == file.st_dev && other.st_ino == file.st_ino;
}

bool is_stream(const struct stat & file, int stream) {
    return is_same(file, [&](struct stat * of) { return fstat(stream, of); });
}

// What runs that were killed have left of `file`.
void remove_left_over(const fs::path & file) {
    const std::string before = "." + file.filename().string() + ".";
    const fs::path    folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
    std::error_code   error;
    for (const fs::directory_entry & entry : fs::directory_iterator(folder, error)) {
        const std::string name = entry.path().filename().string();
        int               pid  = 0;
        int               end  = 0;
        if (name.compare(0, before.size(), before) == 0 &&
            std::sscanf(name.c_str() + before.size(), "%d.part%n", &pid, &end) == 1 && pid > 0 &&
            before.size() + size_t(end) == name.size() && kill(pid, 0) != 0 && errno == ESRCH) {
            fs::remove(entry.path(), error);
        }
    }
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
    const fs::path file = behind_links(path);
    remove_left_over(file);
    path_ = file.string();
    part_ = (file.parent_path() / ("." + file.filename().string() + "." + std::to_string(getpid()) + k_part)).string();
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
    struct stat old;
    if (file && !part_.empty() && stat(path_.c_str(), &old) == 0) {
        chmod(part_.c_str(), old.st_mode & 07777);
    }
    if (!file || (!part_.empty() && std::rename(part_.c_str(), path_.c_str()) != 0)) {
        const std::string reason = std::strerror(errno);
        if (!part_.empty()) {
            std::remove(part_.c_str());
        }
        throw std::runtime_error("--trace: '" + path_ + "' can't be written: " + reason);
    }
}

}  // namespace app
