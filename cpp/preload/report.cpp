#include "report.h"

#include "part_file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace ffnskip {
namespace {

namespace fs = std::filesystem;

std::string write(const fs::path & path, const std::string & text, const char * mode) {
    std::FILE * file = std::fopen(path.c_str(), mode);
    if (file == nullptr) {
        return std::strerror(errno);
    }
    const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
    const bool closed  = std::fclose(file) == 0;
    return written && closed ? "" : std::strerror(errno);
}

// What is no file, and the files that the program's own output goes to: /dev/stdout may be either.
bool is_written_into(const std::string & path) {
    struct stat named, stream;
    if (stat(path.c_str(), &named) != 0) {
        return false;
    }
    bool is_output = false;
    for (const int descriptor : { STDOUT_FILENO, STDERR_FILENO }) {
        is_output |= fstat(descriptor, &stream) == 0 && stream.st_dev == named.st_dev && stream.st_ino == named.st_ino;
    }
    return is_output || !S_ISREG(named.st_mode);
}

bool is_gguf(const fs::path & path) {
    char          magic[4] = {};
    std::ifstream file(path, std::ios::binary);
    return file.read(magic, sizeof(magic)) && std::memcmp(magic, "GGUF", sizeof(magic)) == 0;
}

}  // namespace

void add(Stats & sum, const Stats & more) {
    sum.tokens += more.tokens;
    sum.ffn_total += more.ffn_total;
    sum.ffn_skipped += more.ffn_skipped;
    sum.checks += more.checks;
    sum.tokens_never_tripped += more.tokens_never_tripped;
    sum.ffn_bytes_not_read += more.ffn_bytes_not_read;
    sum.skipped_per_layer.resize(std::max(sum.skipped_per_layer.size(), more.skipped_per_layer.size()), 0);
    for (size_t il = 0; il < more.skipped_per_layer.size(); ++il) {
        sum.skipped_per_layer[il] += more.skipped_per_layer[il];
    }
}

std::string to_line(const Stats & stats) {
    char text[256];
    std::snprintf(text, sizeof(text),
                  "%llu generated tokens, %.1f %% of their FFN blocks skipped (%llu of %llu), %.2f checks per token, "
                  "%.1f MiB of FFN weights not read",
                  static_cast<unsigned long long>(stats.tokens), 100.0 * stats.skip_ratio(),
                  static_cast<unsigned long long>(stats.ffn_skipped), static_cast<unsigned long long>(stats.ffn_total),
                  stats.tokens == 0 ? 0.0 : double(stats.checks) / double(stats.tokens),
                  double(stats.ffn_bytes_not_read) / (1024.0 * 1024.0));
    return text;
}

std::string to_json(const Stats & stats) {
    std::ostringstream json;
    json << "{\n  \"tokens\": " << stats.tokens << ",\n  \"ffn_total\": " << stats.ffn_total
         << ",\n  \"ffn_skipped\": " << stats.ffn_skipped << ",\n  \"skip_ratio\": " << stats.skip_ratio()
         << ",\n  \"checks\": " << stats.checks << ",\n  \"tokens_never_tripped\": " << stats.tokens_never_tripped
         << ",\n  \"ffn_bytes_not_read\": " << stats.ffn_bytes_not_read << ",\n  \"skipped_per_layer\": [";
    for (size_t il = 0; il < stats.skipped_per_layer.size(); ++il) {
        json << (il == 0 ? "" : ", ") << stats.skipped_per_layer[il];
    }
    json << "]\n}\n";
    return json.str();
}

std::string write_report(const std::string & path, const std::string & text) {
    if (is_written_into(path)) {
        std::fflush(nullptr);  // what the program said comes first
        return write(path, text, "a");
    }
    const fs::path target = behind_links(path);
    if (is_gguf(target)) {
        return "is a GGUF file, which is not overwritten";
    }
    const fs::path part = begin_part(target);
    std::string    why  = write(part, text, "w");
    if (why.empty() && !end_part(part, target)) {
        why = std::strerror(errno);
    }
    if (!why.empty()) {
        std::remove(part.c_str());
    }
    return why;
}

}  // namespace ffnskip
